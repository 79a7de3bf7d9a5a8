"""A reward model that is a Python function, in a module or a file: ``python:package.module:function``."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from importlib.machinery import SourceFileLoader
from itertools import islice
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from vbon.errors import CheckpointError, RewardError
from vbon.rewards.call_form import NOT_GIVEN, CallForm, call_form
from vbon.rewards.isolation import TextError, TextIsolator
from vbon.rewards.protocol import RewardOptions, Scorable, checked_scores
from vbon.rewards.user_errors import describe


class CallableReward:
    """Calls a function that returns one number per completion; ``None`` or NaN means "no score".

    The function is ``f(prompts, completions)``, with chats as text (one ``role: content`` line per turn), or
    one written for TRL, ``f(completions, **kwargs)``, with chats as messages (:mod:`vbon.rewards.call_form`).
    It may be a coroutine function, and may return booleans, a NumPy array or a tensor.

    Raises:
        CheckpointError: the path has another form, or names a file that does not exist.
    """

    def __init__(self, import_path: str) -> None:
        module, _, attribute = import_path.rpartition(":")
        if not module or not attribute:
            raise CheckpointError(
                f"reward callable {import_path!r} must have the form package.module:function or "
                "./file.py:function"
            )
        if "/" in module and not module.endswith(".py"):
            raise CheckpointError(
                f"reward callable {import_path!r} names a file, whose name must end in .py"
            )
        self.name, self.revision = f"python:{import_path}", "callable"
        self._module, self._attribute = module, attribute
        self._file: Path | None = None
        if module.endswith(".py"):
            self._file = Path(module).expanduser().absolute()
            self._module = str(self._file)
            self.revision = _file_revision(self._file, self.name)
        self._function: Callable[..., Any] | None = None
        self._form = CallForm((), takes_chats=False)
        self._loop: asyncio.Runner | None = None
        self._isolate = TextIsolator(self.name, self._call)

    def load(self) -> None:
        """Import the function, and check that it can be called with prompts and completions.

        Raises:
            CheckpointError: it cannot be imported, or not be called that way; the message is one line.
        """
        if self._file is not None:  # a restart loads what is there now
            self.revision = _file_revision(self._file, self.name)
        function = self._imported()
        if not callable(function):
            raise CheckpointError(f"{self.name} is {type(function).__name__}, not callable")
        try:
            self._form = call_form(function)
        except ValueError as error:
            raise CheckpointError(f"{self.name} {error}") from error
        self._function = function

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """Call the function once for the whole batch, or for parts of it if it raises an exception."""
        if self._function is None:
            raise RewardError(f"reward callable {self.name} is not loaded")
        return self._isolate(items)

    def close(self) -> None:
        """Close the event loop of a coroutine function."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _call(self, items: Sequence[Scorable]) -> list[float | None]:
        scores: list[float | None] = [None] * len(items)
        for group in self._form.groups(items):
            found = self._call_once([items[i] for i in group])
            for index, score in zip(group, found, strict=True):
                scores[index] = score
        return scores

    def _call_once(self, items: Sequence[Scorable]) -> list[float | None]:
        assert self._function is not None  # checked by `score`
        try:
            values = self._form.call(self._function, items)
            if inspect.isawaitable(values):
                values = self._awaited(values)
            if hasattr(values, "tolist"):  # an array or tensor
                values = values.tolist()
            listed = _listed(values, len(items) + 1)
        except KeyError as error:
            name = error.args[0] if error.args else None
            if not (isinstance(name, str) and name in NOT_GIVEN):
                raise TextError(f"{self.name} raised {describe(error)}") from error
            raise RewardError(
                f"{self.name} reads {name} from its keyword arguments, and a reward function gets only "
                f"prompts and completions; {NOT_GIVEN[name]}"
            ) from error
        except KeyboardInterrupt:
            raise
        # User code may raise anything: `sys.exit`, cancelled tasks and time limits are not `Exception`.
        except BaseException as error:
            raise TextError(f"{self.name} raised {describe(error)}") from error
        if listed is None:
            raise RewardError(
                f"{self.name} returned {type(values).__name__}, not a list of numbers"
            )
        numbers = [float(value) if isinstance(value, bool) else value for value in listed]
        return checked_scores(numbers, len(items), self.name)

    def _awaited(self, values: Any) -> Any:
        """The result of a coroutine, in one event loop for all calls, to which its clients may be bound."""

        async def wait() -> Any:
            return await values

        if self._loop is None:
            self._loop = asyncio.Runner()
        return self._loop.run(wait())

    def _imported(self) -> Any:
        try:
            return import_named(self._module, self._attribute)
        except (Exception, SystemExit) as error:  # user code may raise anything
            said = " ".join(f"{type(error).__name__}: {error}".split())
            hint = ""
            if isinstance(error, ModuleNotFoundError) and error.name == self._module:
                hint = f"; for a file, write python:./{self._module}.py:{self._attribute}"
            raise CheckpointError(
                f"cannot import reward callable {self.name}: {said}{hint}"
            ) from error


def _listed(values: Any, most: int) -> list[Any] | None:
    """The values, or ``None`` if they have no order. A generator may have no end, so it gives ``most``."""
    if not _has_an_order(values):
        return None
    # A generator runs here.
    return [*values] if isinstance(values, Collection) else [*islice(values, most)]


def _has_an_order(values: Any) -> bool:
    """True if values can be in the order of the completions; a mapping would give its keys."""
    return isinstance(values, Iterable) and not isinstance(values, Mapping | AbstractSet | str)


def _file_revision(file: Path, name: str) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot import reward callable {name}: {error.strerror} ({file})"
        ) from error
    return f"sha256:{hashlib.sha256(content).hexdigest()[:16]}"


class _UncachedLoader(SourceFileLoader):
    """Compiles the source at each import.

    Python's cached code counts as that of a file with the same size that was changed in the same second.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The code of the source as it is now."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def import_named(module: str, attribute: str) -> Any:
    """The attribute of a module, which an import path or the path of a file ending in ``.py`` names.

    Whatever the module's code raises is raised.
    """
    if module.endswith(".py"):
        return getattr(_import_file(Path(module).expanduser().absolute()), attribute)
    return getattr(importlib.import_module(module), attribute)


def _import_file(file: Path) -> ModuleType:
    """Import a file; the modules beside it can be imported too, as in a script."""
    name = f"vbon_reward_{file.stem}"
    loader = _UncachedLoader(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def open_callable(import_path: str, options: RewardOptions) -> CallableReward:
    """Open the reward function of ``python:IMPORT_PATH``; it needs no options."""
    return CallableReward(import_path)
