"""Load tests that the service runs against itself, started from the page."""
