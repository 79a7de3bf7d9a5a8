"""Running parts: engines, scorers, supervision, reload, metrics."""
