"""``vbon demo``: live best-of-N beside a vBoN checkpoint on a toy, from nothing."""
