"""``vbon loadtest``: measures the cost and the quality of each mode of a running server.

One run measures all modes, values of N and load levels in turns. A *cell* is one combination of mode, N and
load level; a *block* is one round of one cell. docs/loadtest.md explains how everything is measured.
"""
