"""Training runs: preparation, steps, resumption, held-out figures and export."""
