"""A Ray cluster as the place where commands of training do their work."""
