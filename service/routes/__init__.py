"""Routes, one file per resource, with their dependencies and the error handlers."""
