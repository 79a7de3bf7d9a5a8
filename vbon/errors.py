"""Every error this project raises on purpose.

::

    VbonError
    ├── InvalidInputError        the request or configuration is wrong; names the field and the limit
    │   ├── PromptTooLongError
    │   ├── ReloadRefusedError   what a model's path holds now cannot be served
    │   └── ModelNotFoundError   no mode of that model name
    ├── ForbiddenError           a browser asks in the name of another site, or a key for what is another's
    ├── NotFoundError            what a path names is not here, or not any more
    ├── CheckpointError          a model directory is missing, truncated or of the wrong kind
    ├── DataError                a corpus, prompt file or reward cache cannot be used
    ├── DivergedError            a training run is no longer a number, or too far from the reference
    ├── ExportError              writing a result failed; what was there before is untouched
    ├── EngineError              generation failed for this request; the engine goes on
    │   ├── EngineDeadError      the engine process is gone; no request can be served by it
    │   └── CandidateCountError  the engine returned more or fewer candidates than asked for
    ├── RewardError              the reward model could not score
    │   └── RewardDeadError      its worker process is gone; it is being started again
    ├── OverloadedError          the admission queue is full; retry later
    ├── NotReadyError            models are still loading
    ├── ShuttingDownError        the service ends before this request could
    ├── BusyError                something of which there can be one at a time is under way
    └── RequestTimeoutError      the request ran past its time limit
"""

from __future__ import annotations


class VbonError(Exception):
    """Base of all errors raised on purpose; its text is fit for a user to read."""


class InvalidInputError(VbonError):
    """The caller's input is wrong.

    Attributes:
        field: the offending field's path, such as ``"prompt"`` or ``"n"``.
    """

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class PromptTooLongError(InvalidInputError):
    """Prompt and answer together do not fit the model's context."""

    def __init__(self, *, prompt_tokens: int, max_tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens and max_tokens is {max_tokens}: together "
            f"{prompt_tokens + max_tokens}, over the model's limit of {limit}; shorten the prompt "
            "or lower max_tokens",
            field="prompt",
        )


class ReloadRefusedError(InvalidInputError):
    """A model was not reloaded; what was served before still is."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="model")


class ModelNotFoundError(InvalidInputError):
    """The server has no mode of the model name that an OpenAI client asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="model")


class ForbiddenError(VbonError):
    """Another site's page asks for something that only our own may, or a key for what is another's."""


class NotFoundError(VbonError):
    """What was asked for by its id is not here, or not any more."""


class CheckpointError(VbonError):
    """A model directory cannot be loaded; says which, why, and what would help."""


class DataError(VbonError):
    """A data file cannot be used; says which line and why."""


class ExportError(VbonError):
    """A directory or file could not be written; the previous version is whole."""


class EngineError(VbonError):
    """Generation failed for one request."""


class EngineDeadError(EngineError):
    """The engine behind a policy has died."""


class CandidateCountError(EngineError):
    """The engine did not return exactly the number of candidates asked for."""

    def __init__(self, *, expected: int, received: int) -> None:
        super().__init__(f"the engine returned {received} candidates where {expected} were asked")


class RewardError(VbonError):
    """The reward model failed or returned something that is not a finite number."""


class RewardDeadError(RewardError):
    """The process of the reward model has died."""


class OverloadedError(VbonError):
    """No room for another request.

    Attributes:
        retry_after_s: seconds after which a retry is sensible.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(VbonError):
    """The service is up but its models are not."""


class ShuttingDownError(VbonError):
    """The service is ending; another instance, or this one once it is back, can answer."""


class BusyError(VbonError):
    """Something of which there can be one at a time is under way."""


class RequestTimeoutError(VbonError):
    """A request ran longer than the limit it was given."""


class DivergedError(VbonError):
    """A training run went where no policy should: not a number, or too far from the reference."""
