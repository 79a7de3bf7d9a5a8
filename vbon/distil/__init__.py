"""Answers of a running service that are kept for training: shards on disk, and reward caches made of them."""
