"""Judgements of modes by the service itself: comparison, preference pairs, frontier."""
