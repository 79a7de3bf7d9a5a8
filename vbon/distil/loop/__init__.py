"""Rounds of ``vbon distil run``: wait for answers, train, compare, decide, submit, follow."""
