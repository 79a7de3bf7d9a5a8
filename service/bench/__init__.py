"""``vbon bench serve``: compares the service with the bare engine, other programs and its own modes.

Each row of the table measures its two sides in one run, alternately, after a warm-up. ``rows.py`` lists
the rows.
"""
