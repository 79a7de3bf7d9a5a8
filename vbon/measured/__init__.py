"""Tables of what settings gain and cost, measured on a running service."""
