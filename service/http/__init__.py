"""HTTP below the routes: middleware, uvicorn protocol, server-sent events, disconnects."""
