"""HTML reports in one file that loads nothing: what the load test's and the sweeps' reports share."""

from vbon.report_html.page import plot_html, render_page
from vbon.report_html.table import ReportTable

__all__ = ["ReportTable", "plot_html", "render_page"]
