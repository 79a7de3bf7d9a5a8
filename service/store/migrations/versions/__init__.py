"""One file for each change, which names the change before it."""
