"""Atomic writes, checksums, locks, checkpoint checks, and the records beside checkpoints."""
