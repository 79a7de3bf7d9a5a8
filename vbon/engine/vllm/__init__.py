"""Policies on vLLM, each engine in a process of its own."""
