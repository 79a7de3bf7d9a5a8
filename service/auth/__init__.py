"""API keys: the file that holds them, the middleware that checks them, the commands that edit them."""
