"""Beside a checkpoint: model card, identity, progress."""
