"""Figures computed from the journal of a load test."""
