"""Sampling from policies, and log-probabilities of the samples."""
