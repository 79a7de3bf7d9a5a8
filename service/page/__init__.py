"""The page served at ``/``: files that need no build step and load nothing from elsewhere."""
