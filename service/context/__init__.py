"""Facts about the request being answered: its id, its caller, notes for its log line."""
