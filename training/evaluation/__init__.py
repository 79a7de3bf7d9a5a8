"""Measures held-out reward, win rate and KL of policies."""
