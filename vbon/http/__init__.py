"""HTTP client code shared by remote engines and remote reward models."""
