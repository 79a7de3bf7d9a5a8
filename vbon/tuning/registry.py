"""The samplers by name, built-in or of plug-ins of the entry-point group ``vbon.samplers``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vbon.errors import InvalidInputError
from vbon.registry import Registry, built_in_entries

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SamplerFactory = Callable[..., "BaseSampler"]

DEFAULT_SAMPLER = "gp"
_STARTUP = "n_startup_trials"
# The packages that samplers need, with the extra that installs each.
_PACKAGES = (("optuna", "tune"), ("torch", "train"))
_FURTHER = {"qlognei": (("botorch", "botorch"), ("optuna_integration", "botorch"))}


def _checked(found: object) -> SamplerFactory:
    """``found`` itself, if it can be called with a seed.

    Raises:
        TypeError: it cannot; the message completes "cannot be used:".
    """
    if not callable(found):
        raise TypeError(
            "it is not a subclass of optuna.samplers.BaseSampler or a function that returns one"
        )
    if "seed" not in inspect.signature(found).parameters:
        raise TypeError("it does not take the argument seed")
    return found


SAMPLERS: Registry[SamplerFactory] = Registry(
    "vbon.samplers",
    "sampler",
    built_in_entries(
        "vbon.tuning",
        {
            "sto-bnts": (
                "sto_bnts:StoBntsSampler",
                "Sample-then-optimise batch neural Thompson sampling: a trained network per trial.",
            ),
            "sto-bnts-linear": (
                "sto_bnts_linear:StoBntsLinearSampler",
                "The same with the network linearised, in closed form.",
            ),
            "hp-gp-ts": (
                "hp_gp_ts:HpGpTsSampler",
                "Gaussian-process Thompson sampling with a prior drawn for each trial.",
            ),
            "gp-ts": (
                "gp_ts:GpTsSampler",
                "Gaussian-process Thompson sampling with one fitted prior.",
            ),
            "hyper-bo": (
                "hyper_bo:HyperBoSampler",
                "Hyper-Bayesian optimisation, a reconstruction: a search for the model beside the search.",
            ),
            "qlognei": (
                "botorch_sampler:QLogNeiSampler",
                "BoTorch's constrained noisy expected improvement; needs the extra botorch.",
            ),
            "gp": (
                "optuna_samplers:gp",
                "Optuna's Gaussian process with log expected improvement.",
            ),
            "tpe": ("optuna_samplers:tpe", "Optuna's tree-structured Parzen estimator."),
            "random": ("optuna_samplers:random", "Optuna's independent uniform draws."),
        },
    ),
    _checked,
    field="sampler",
)


def make_sampler(
    name: str = DEFAULT_SAMPLER, seed: int | None = None, **options: Any
) -> BaseSampler:
    """A sampler for an Optuna study.

    Args:
        name: one of :data:`SAMPLERS`.
        seed: the same seed, trials and trial number give the same parameters; None draws one.
        options: arguments of the sampler's class, such as ``n_startup_trials``.

    Raises:
        InvalidInputError: the name is not registered, or its plug-in cannot be used.
        ModuleNotFoundError: Optuna, torch or a package that this sampler needs is not installed.
    """
    factory = _factory(name)
    try:
        return factory(seed=seed, **options)
    except TypeError as error:
        if not options:
            raise
        known = [key for key in inspect.signature(factory).parameters if key != "seed"]
        unknown = sorted(options.keys() - set(known))
        if not unknown:
            raise
        raise InvalidInputError(
            f"the sampler {name!r} has no option {unknown[0]!r}; it has {', '.join(known)}",
            field="sampler",
        ) from error


def startup_options(name: str, trials: int) -> dict[str, int]:
    """The options with which a sampler uses its model after so many trials; none if it takes no such number.

    Raises:
        InvalidInputError: the name is not registered, or its plug-in cannot be used.
        ModuleNotFoundError: a package that this sampler needs is not installed.
    """
    return {_STARTUP: trials} if _takes(_factory(name), _STARTUP) else {}


def _factory(name: str) -> SamplerFactory:
    """The class or function of a sampler, if the packages that it needs are installed."""
    SAMPLERS.entry(name)
    lacking = missing_package(name)
    if lacking is not None:
        package, extra = lacking
        raise ModuleNotFoundError(
            f"the sampler {name!r} needs {package}, which is not installed; install vbon with the extra "
            f"{extra}: pip install 'vbon[{extra}]'",
            name=package,
        )
    return SAMPLERS[name]


def _takes(factory: SamplerFactory, argument: str) -> bool:
    """Tell whether a class or function has an argument, also one that it passes on to what it calls."""
    layers: list[Any] = [factory]
    if isinstance(factory, type):
        layers = [vars(base)["__init__"] for base in factory.__mro__ if "__init__" in vars(base)]
    for layer in layers:
        found = inspect.signature(layer).parameters
        if argument in found:
            return True
        if all(one.kind is not one.VAR_KEYWORD for one in found.values()):
            return False
    if isinstance(factory, type):
        return False
    try:  # a function passes its further options on to something that only it knows
        factory(seed=0, **{argument: 1})
    except TypeError:
        return False
    return True


def missing_package(name: str) -> tuple[str, str] | None:
    """The first package that a sampler needs and that is not installed, with the extra that installs it."""
    for package, extra in (*_PACKAGES, *_FURTHER.get(name, ())):
        if not _is_installed(package):
            return package, extra
    return None


def _is_installed(package: str) -> bool:
    # A package that is imported may have put another module in its place, whose specification is missing.
    found = sys.modules[package] if package in sys.modules else find_spec(package)
    return found is not None
