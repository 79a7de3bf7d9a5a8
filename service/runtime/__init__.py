"""The running server: engines, scorers, supervision, reload and metrics."""
