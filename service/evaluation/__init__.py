"""Judging modes on this server: comparison, preference pairs, and the frontier of KL and win rate."""
