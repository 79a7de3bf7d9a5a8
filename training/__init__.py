"""Trains a checkpoint that answers once what best-of-N answers with N samples (vBoN)."""
