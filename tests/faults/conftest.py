"""Skips the faults where torch or vLLM is missing."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm")
