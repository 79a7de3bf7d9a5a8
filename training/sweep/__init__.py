"""Many trainings under one budget: grid, cells, records, Pareto shares."""
