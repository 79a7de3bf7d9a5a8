"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Tests must not reach for a model hub, whatever the machine's network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
