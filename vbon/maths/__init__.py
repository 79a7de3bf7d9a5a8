"""Best-of-N mathematics: distributions, unbiased curves, statistics, seeds."""
