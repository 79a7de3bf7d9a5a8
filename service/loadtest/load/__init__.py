"""Sending the load of a load test and recording what comes back."""
