"""Engines on vLLM, each in its own process."""
