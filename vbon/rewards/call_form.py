"""Forms in which Python reward functions are called: as TRL calls them, or with prompts and completions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vbon.prompts import Message
from vbon.rewards.protocol import Scorable

_GIVEN = ("prompts", "completions")
# What TRL also passes, with the reason why there is nothing to pass here.
NOT_GIVEN = {
    "completion_ids": "a reward is that of a text, which comes without token ids: tokenize the completions "
    "in the function",
    "prompt_ids": "a reward is that of a text: tokenize the prompts in the function",
    "trainer_state": "a text must have the same reward at every step, since it is compared with cached "
    "rewards",
    "environments": "there are no environments; answers are single texts",
    "log_extra": "training has no table of completions to add to",
    "log_metric": "training records no metrics of reward functions",
}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class CallForm:
    """The arguments of a reward function.

    Attributes:
        names: the keyword arguments it gets; empty for prompts and completions by position.
        takes_chats: whether it gets a chat as TRL gives it, as lists of messages; otherwise as text.
    """

    names: tuple[str, ...]
    takes_chats: bool

    def call(self, function: Callable[..., Any], items: Sequence[Scorable]) -> Any:
        """Call the function for items that are all chats or all texts."""
        prompts: list[Any] = [item.prompt.key for item in items]
        completions: list[Any] = [item.completion for item in items]
        if self.takes_chats and items and items[0].prompt.messages:
            prompts = [[dict(message) for message in item.prompt.messages] for item in items]
            completions = [
                [Message(role="assistant", content=completion)] for completion in completions
            ]
        if not self.names:
            return function(prompts, completions)
        given = {"prompts": prompts, "completions": completions}
        return function(**{name: given[name] for name in self.names})

    def groups(self, items: Sequence[Scorable]) -> list[list[int]]:
        """The positions of the items of each call; the function gets chats and texts in separate calls."""
        if not self.takes_chats:
            return [list(range(len(items)))]
        chats = [i for i, item in enumerate(items) if item.prompt.messages]
        texts = [i for i, item in enumerate(items) if not item.prompt.messages]
        return [group for group in (texts, chats) if group]


def call_form(function: Callable[..., Any]) -> CallForm:
    """The form in which to call a reward function, from its signature.

    TRL passes everything by keyword, so its functions end in ``**kwargs``; only those get chats as messages.

    Raises:
        ValueError: the function cannot be called with prompts and completions.
    """
    if inspect.isclass(function):
        raise ValueError("is a class; name a function, or an object of the class")
    if inspect.isasyncgenfunction(function):
        raise ValueError("is an asynchronous generator; return a list of numbers")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions written in C may have no signature
        return CallForm((), takes_chats=False)
    kinds = [parameter.kind for parameter in parameters.values()]
    open_ended = inspect.Parameter.VAR_KEYWORD in kinds
    required = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    ]
    if _takes_keywords(parameters, required, open_ended=open_ended):
        missing = [name for name in required if name not in _GIVEN]
        if missing:
            reasons = "".join(
                f" ({name}: {NOT_GIVEN[name]})" for name in missing if name in NOT_GIVEN
            )
            raise ValueError(
                f"needs {', '.join(missing)}, and a reward function gets only prompts and completions; "
                f"give such parameters a default value{reasons}"
            )
        return CallForm(
            tuple(name for name in _GIVEN if open_ended or name in parameters), open_ended
        )
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise ValueError(
            f"cannot be called with (prompts, completions): {error}; write "
            "`def f(prompts, completions)`, or `def f(completions, **kwargs)` as for TRL"
        ) from error
    return CallForm((), takes_chats=False)


def _takes_keywords(parameters: Any, required: list[str], *, open_ended: bool) -> bool:
    """True if the function names its completions, or takes any keyword and fewer than two positions."""
    named = parameters.get("completions")
    if named is not None:
        return named.kind is not inspect.Parameter.POSITIONAL_ONLY
    return open_ended and sum(parameters[name].kind in _POSITIONAL for name in required) < 2
