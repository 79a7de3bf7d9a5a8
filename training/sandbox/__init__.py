"""The sandbox: a small policy and two reward models, trained from scratch in minutes."""
