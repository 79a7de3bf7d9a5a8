"""What several faults use."""
