"""Measures training speed against TRL, with both trainers in the same run."""
