"""HTML reports in one file that loads nothing: what the load test's and the sweeps' reports share."""

from vbon.report_html.page import render_page
from vbon.report_html.table import ReportTable

__all__ = ["ReportTable", "render_page"]
