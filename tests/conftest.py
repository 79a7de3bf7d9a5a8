"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Tests must not reach for a model hub, whatever the machine's network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

# Timings are never asserted, on a machine that may be doing something else.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
