"""The analysis of a load test: computes its result from the journal, and compares two results."""
