"""A simulated fleet: the real admission, fair queue and placement on engines that only take time.

A virtual clock jumps from event to event, so that minutes of 64 replicas take seconds, and equal seeds give
equal figures.
"""
