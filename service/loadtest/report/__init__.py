"""The reports of a load test: HTML page, tables, plots and terminal output."""
