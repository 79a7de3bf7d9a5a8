"""Serves live best-of-N and its distilled checkpoints behind one API."""
