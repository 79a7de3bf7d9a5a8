"""A real language model and two reward models beside it, made by ``scripts/real-model``."""
