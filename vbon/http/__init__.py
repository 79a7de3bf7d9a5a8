"""HTTP parts that engines and reward models share."""
