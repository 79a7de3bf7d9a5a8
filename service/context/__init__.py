"""Context of the current request: its caller, and the facts recorded for its log record and trace."""
