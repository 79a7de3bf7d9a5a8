"""``vbon bench tune``: all samplers on the same problems at equal numbers of evaluations."""
