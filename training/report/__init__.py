"""The report on sweeps: tables, plots, one HTML page."""
