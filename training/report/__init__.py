"""Reports on sweeps: tables, plots and one HTML page."""
