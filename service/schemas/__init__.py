"""Request and response models, one module per route or concern. Requests reject unknown fields."""

from service.schemas.answer import (
    BatchAnswer,
    CandidateOut,
    ExpectedOut,
    GenerateAnswer,
    PriceRoutingOut,
    RewardCurvePoint,
    RoutingOut,
    Timings,
    Usage,
)
from service.schemas.compare import (
    ComparedAnswer,
    CompareRequest,
    CompareResponse,
    HeadToHead,
    LatencySummary,
    ModeReport,
    PromptRow,
)
from service.schemas.failure import (
    ANY_ROUTE,
    AT_WORK,
    EVENT_STREAM,
    WITH_BODY,
    ErrorBody,
    ErrorResponse,
    errors,
)
from service.schemas.generate import GenerateRequest
from service.schemas.messages import ChatMessage
from service.schemas.modes import DefaultSampling, ModeInfo, ModesResponse
from service.schemas.sampling import SamplingFields, SamplingUsed
from service.schemas.wire import ModelRef, Text, Wire

__all__ = [
    "ANY_ROUTE",
    "AT_WORK",
    "EVENT_STREAM",
    "WITH_BODY",
    "BatchAnswer",
    "CandidateOut",
    "ChatMessage",
    "CompareRequest",
    "CompareResponse",
    "ComparedAnswer",
    "DefaultSampling",
    "ErrorBody",
    "ErrorResponse",
    "ExpectedOut",
    "GenerateAnswer",
    "GenerateRequest",
    "HeadToHead",
    "LatencySummary",
    "ModeInfo",
    "ModeReport",
    "ModelRef",
    "ModesResponse",
    "PriceRoutingOut",
    "PromptRow",
    "RewardCurvePoint",
    "RoutingOut",
    "SamplingFields",
    "SamplingUsed",
    "Text",
    "Timings",
    "Usage",
    "Wire",
    "errors",
]
