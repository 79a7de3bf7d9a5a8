"""``vbon tune training``: the search for an objective and its settings, by training cells."""
