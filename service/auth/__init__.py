"""API keys: the file that holds them, the middleware that checks them, and the commands that edit it."""
