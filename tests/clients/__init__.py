"""What users of OpenAI's clients and frameworks write; each file runs in an environment of its own.

``tests/integration/test_clients.py`` starts the service and runs each one with the service's URL.
"""
