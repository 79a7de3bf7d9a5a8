"""Training speed against TRL, both in the same run."""
