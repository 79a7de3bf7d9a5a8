"""Policies behind an OpenAI-compatible server such as `vllm serve`, one or several replicas."""
