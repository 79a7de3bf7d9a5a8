"""Requests whose state one process of several holds: that process serves them, the others forward them.

Hosted load tests, links to their reports, pairs without a verdict and the table of mode ``auto`` are in the
memory of one process. With several front ends, one of them is the holder.
"""
