"""Bad input by the thousand, on a running server: ``scripts/fuzz``."""
