"""Admission: queue, token bucket, load shedding."""
