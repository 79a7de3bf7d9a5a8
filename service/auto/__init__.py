"""Mode ``auto`` by price: the measured setting with the highest reward less the prices of tokens and time."""
