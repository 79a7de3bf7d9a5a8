"""From a request to its answer: plan, events, response, in the native and the OpenAI shape."""
