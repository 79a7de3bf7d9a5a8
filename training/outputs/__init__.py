"""Model cards, the identity of outputs, and progress bars."""
