"""The catalogue of faults: every module of this package with a promise."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

import tests.faults

NOT_FAULTS = {
    "__main__",
    "catalogue",
    "conftest",
    "service",
    "steady_load",
    "stage",
    "tally",
    "test_faults",
}


def faults() -> list[str]:
    """The names in order; faults that end the shared service come last, so that none starts it again."""
    modules = pkgutil.iter_modules(tests.faults.__path__)
    names = (module.name for module in modules if not module.ispkg)
    return sorted(
        (name for name in names if name not in NOT_FAULTS),
        key=lambda name: (bool(vars(load(name)).get("ENDS_THE_SERVICE", False)), name),
    )


def in_full_only(name: str) -> bool:
    """True if CI leaves the fault out, because it is a measurement or another fault shows the same."""
    return bool(vars(load(name)).get("IN_FULL_ONLY", False))


def load(name: str) -> ModuleType:
    """A fault's module.

    Raises:
        TypeError: it does not say what it promises.
    """
    module = import_module(f"tests.faults.{name}")
    if not isinstance(getattr(module, "PROMISE", None), str):
        raise TypeError(f"tests/faults/{name}.py has no PROMISE")
    return module
