"""Trains many cells with equal budgets, records them, and computes Pareto shares."""
