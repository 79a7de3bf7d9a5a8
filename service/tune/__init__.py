"""``vbon tune``: the cheapest way to a reward, among all modes, policies, N and settings of a running server."""
