"""Generation engines behind one protocol; vLLM is the real one."""

from vbon.engine.protocol import (
    Candidate,
    Engine,
    FinishReason,
    ModelInfo,
    Partial,
    Sampling,
    check_fits,
)

__all__ = ["Candidate", "Engine", "FinishReason", "ModelInfo", "Partial", "Sampling", "check_fits"]
