"""The reward cache: scored reference samples of each prompt, on disk."""
