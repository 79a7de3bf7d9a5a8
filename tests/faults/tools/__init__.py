"""Tools that several faults use."""
