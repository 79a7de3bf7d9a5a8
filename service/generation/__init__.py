"""The steps from a request to its answer: plan, events and response, in native and OpenAI shape."""
