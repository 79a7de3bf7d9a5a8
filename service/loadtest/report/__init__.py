"""Drawing a load test: HTML page, tables, plots, terminal."""
