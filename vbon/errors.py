"""The errors that this project raises on purpose.

::

    VbonError
    ├── InvalidInputError        the request or configuration is wrong; names the field and the limit
    │   ├── PromptTooLongError
    │   ├── ReloadRefusedError   the model's directory cannot be served as it is now
    │   └── ModelNotFoundError   the server has no mode of that name
    ├── ForbiddenError           the caller may not do this: a page of another site, or another key's run
    ├── NotFoundError            the requested id does not exist, or has been removed
    ├── CheckpointError          a model directory is missing, truncated or of the wrong kind
    ├── DataError                a corpus, prompt file or reward cache cannot be used
    ├── DivergedError            a training run became NaN or infinite, or went too far from the reference
    ├── StoreError               the store of load tests and preferences cannot be opened or used
    ├── ExportError              writing a result failed; the previous version is intact
    ├── EngineError              generation failed for this request; the engine still runs
    │   ├── EngineDeadError      the engine process has ended, so it cannot serve any request
    │   └── CandidateCountError  the engine returned more or fewer candidates than requested
    ├── RewardError              the reward model could not score
    │   └── RewardDeadError      the reward model's process has ended and is being restarted
    ├── OverloadedError          the admission queue is full; retry later
    ├── NotReadyError            models are still loading
    ├── ShuttingDownError        the service is shutting down before the request could finish
    ├── BusyError                another run of the same kind is in progress, and only one may be
    └── RequestTimeoutError      the request exceeded its time limit
"""

from __future__ import annotations

from typing import Any

# OpenAI's code of a prompt that is too long.
CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"


class VbonError(Exception):
    """Base of all errors raised on purpose; the message is written for users.

    Attributes:
        log_text: the message for the log, where the one for the caller may contain what the caller sent.
    """

    log_text: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The parts to rebuild the error from in another process, without calling its constructor."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[VbonError], args: tuple[Any, ...], state: dict[str, Any]) -> VbonError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInputError(VbonError):
    """The caller's input is invalid.

    Attributes:
        field: path of the invalid field, such as ``"prompt"`` or ``"n"``.
    """

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


class PromptTooLongError(InvalidInputError):
    """The prompt and the requested answer do not fit into the model's context together.

    The message begins as OpenAI's and vLLM's do, because clients look for these words to choose another
    model or to shorten the prompt.
    """

    def __init__(self, *, prompt_tokens: int, max_tokens: int, limit: int) -> None:
        message = (
            f"This model's maximum context length is {limit} tokens, but the prompt has {prompt_tokens} "
            f"tokens and max_tokens is {max_tokens}: together {prompt_tokens + max_tokens}, over the "
            f"model's limit of {limit}; shorten the prompt"
        )
        if prompt_tokens < limit:
            message += " or lower max_tokens"
        # Some clients show, and search, the message alone.
        super().__init__(f"{message} ({CONTEXT_LENGTH_EXCEEDED})", field="prompt")

    @classmethod
    def unread(cls, *, size: int, most: int, limit: int) -> PromptTooLongError:
        """The error for a text of so many bytes that it is not even tokenized."""
        error = cls.__new__(cls)
        InvalidInputError.__init__(
            error,
            f"This model's maximum context length is {limit} tokens, but the prompt has {size} bytes; a text "
            f"of more than {most} bytes (the longest token times the context) cannot fit; shorten it "
            f"({CONTEXT_LENGTH_EXCEEDED})",
            field="prompt",
        )
        return error


class ReloadRefusedError(InvalidInputError):
    """A model was not reloaded; the version loaded before is still served."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="model")


class ModelNotFoundError(InvalidInputError):
    """The server has no mode with the model name that an OpenAI client requested."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="model")


class ForbiddenError(VbonError):
    """The caller may not do this: the page is of another site, or the object belongs to another key."""


class NotFoundError(VbonError):
    """The requested id does not exist, or has been removed."""


class CheckpointError(VbonError):
    """A model directory cannot be loaded; the message names it, the reason and the remedy."""


class DataError(VbonError):
    """A data file cannot be used; the message names the line and the reason."""


class StoreError(VbonError):
    """The store of load tests and preferences cannot be opened or used; the message says why."""

    def __init__(self, message: str, *, log_text: str | None = None) -> None:
        super().__init__(message)
        self.log_text = log_text


class ExportError(VbonError):
    """A directory or file could not be written; the previous version is intact."""


class EngineError(VbonError):
    """Generation failed for one request."""


class EngineDeadError(EngineError):
    """The engine process of a policy has ended.

    Attributes:
        again: whether the request may be begun again once an engine is back; not if several have died of it.
    """

    again: bool = True


class CandidateCountError(EngineError):
    """The engine did not return exactly the number of candidates requested."""

    def __init__(self, *, expected: int, received: int) -> None:
        super().__init__(f"the engine returned {received} candidates; {expected} were requested")


class RewardError(VbonError):
    """The reward model failed or returned something that is not a finite number."""


class RewardDeadError(RewardError):
    """The process of the reward model has ended."""


class OverloadedError(VbonError):
    """The service has no room for another request.

    Attributes:
        retry_after_s: seconds to wait before a retry.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(VbonError):
    """The service runs, but its models are not loaded yet."""


class ShuttingDownError(VbonError):
    """The service is shutting down; retry at another instance, or at this one after its restart."""


class BusyError(VbonError):
    """Another run of the same kind is in progress, and only one may be."""


class RequestTimeoutError(VbonError):
    """A request exceeded its time limit.

    Attributes:
        decoding: whether an engine was decoding then, rather than the request waiting or being scored.
        own_limit: whether the request itself had set the limit, below that of the server.
    """

    decoding = False
    own_limit = False


class DivergedError(VbonError):
    """A training run became NaN or infinite, or its policy moved too far from the reference."""
