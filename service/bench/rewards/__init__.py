"""``vbon bench reward``: reward texts scored per second, by our worker and by vLLM's pooling runner."""
