"""``python -m service.loadtest``: what each mode of a running server costs, and what it is worth.

Modes, N and load levels are measured side by side, in turns, in one run: a *cell* is one mode, N and
level; a *block* is one round of one cell. docs/loadtest.md says how everything is measured.
"""
