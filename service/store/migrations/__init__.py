"""Alembic's migrations of the store. ``env.py`` runs them on the connection that :mod:`..database` gives."""
