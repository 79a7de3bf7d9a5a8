"""The embedded sandbox: a policy and two reward models made from nothing in minutes."""
