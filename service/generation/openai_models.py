"""Modes as OpenAI models: the names that requests send, and the entries of ``GET /v1/models``."""

from __future__ import annotations

from service.runtime.modes import Mode
from service.runtime.runtime import Runtime
from service.schemas.openai_responses import ModelList, OpenAiModel
from vbon.errors import InvalidInputError, ModelNotFoundError


def parse_model(runtime: Runtime, model: str) -> tuple[str, str | None]:
    """The mode and the policy that ``MODE`` or ``MODE@POLICY`` names; no policy means the mode's own.

    Raises:
        ModelNotFoundError: the mode or the policy does not exist.
    """
    name, _, policy = model.partition("@")
    try:
        runtime.mode(name, policy=policy or None)
    except InvalidInputError as error:
        raise ModelNotFoundError(f"the model {model!r} does not exist: {error}") from error
    return name, policy or None


def find_model(runtime: Runtime, model: str) -> OpenAiModel:
    """The entry of one model.

    Raises:
        ModelNotFoundError: as :func:`parse_model`.
    """
    name, policy = parse_model(runtime, model)
    return _entry(runtime, model, runtime.mode(name, policy=policy))


def list_models(runtime: Runtime) -> ModelList:
    """The entries of all modes."""
    return ModelList(data=[_entry(runtime, mode.name, mode) for mode in runtime.modes.values()])


def _entry(runtime: Runtime, name: str, mode: Mode) -> OpenAiModel:
    return OpenAiModel(
        id=name,
        created=runtime.created,
        max_model_len=runtime.policies[mode.policy].info.max_model_len,
        description=_description(runtime, mode),
    )


def _description(runtime: Runtime, mode: Mode) -> str:
    """The mode's description, with what its checkpoint is if a training record tells it."""
    record = runtime.training_records.get(mode.policy)
    words = mode.strategy.description
    return words if record is None else f"{words}; {record.description}"
