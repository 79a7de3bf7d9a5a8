"""A training run and its steps."""
