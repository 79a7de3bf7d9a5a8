"""Reports as one HTML file that loads nothing: the page, tables and plots that all of them share."""

from vbon.report_html.page import fill_page, plot_html
from vbon.report_html.table import ReportTable, aligned, html_table

__all__ = ["ReportTable", "aligned", "fill_page", "html_table", "plot_html"]
