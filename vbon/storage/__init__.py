"""Files: atomic writes, checksums, locks, checkpoints and the records beside them."""
