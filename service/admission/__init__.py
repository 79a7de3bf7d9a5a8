"""Admission: a bounded fair queue, token limits of API keys, and load shedding."""
