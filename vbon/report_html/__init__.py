"""Reports as one HTML file that loads nothing: the page, tables and plots that all of them share."""

from vbon.report_html.page import fill_page, plot_html
from vbon.report_html.table import Sheet, aligned, html_table

__all__ = ["Sheet", "aligned", "fill_page", "html_table", "plot_html"]
