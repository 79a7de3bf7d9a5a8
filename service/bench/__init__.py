"""``python -m service bench``: what the service costs over the bare engine, and what strategies save.

Every row takes both its sides in one run, in turns, after a warm-up; see ``service/bench/rows.py``.
"""
