"""Sampling from policies, and the log-probabilities of what was sampled."""
