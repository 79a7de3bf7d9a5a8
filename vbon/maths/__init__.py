"""The mathematics of best-of-N: distributions, unbiased curves, statistics and seeds."""
