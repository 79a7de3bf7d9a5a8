"""Generation engines behind one protocol: vLLM in a process of ours, remote servers, and a fake for tests."""

from vbon.engine.protocol import (
    UNKNOWN_TOKEN,
    Candidate,
    Engine,
    FinishReason,
    FoundCall,
    FoundCalls,
    ModelInfo,
    Partial,
    Sampling,
    check_fits,
    clipped,
)

__all__ = [
    "UNKNOWN_TOKEN",
    "Candidate",
    "Engine",
    "FinishReason",
    "FoundCall",
    "FoundCalls",
    "ModelInfo",
    "Partial",
    "Sampling",
    "check_fits",
    "clipped",
]
