"""Without real models and a real engine there is nothing to break."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm")
