"""Held-out metrics: reward, win rate, KL."""
