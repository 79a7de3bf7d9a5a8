"""The load of a load test: sends requests and records the answers."""
