"""``scripts/gpu-check``: training, memory, FSDP and vLLM on one GPU in ten minutes, as JSON and markdown."""
