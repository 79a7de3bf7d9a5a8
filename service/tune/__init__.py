"""``vbon tune``: the cheapest way to a reward, among the modes, policies, N and settings of a server."""
