"""Help pages of settings classes, and checks of the flags that a user typed."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from vbon.help.page import Entry, HelpPage

OTHER = "Options"
_HEADING = re.compile(r"^Examples?:$", re.MULTILINE)
_WORDS = {int: "N", float: "X", str: "TEXT"}


def help_page(settings_type: type[BaseModel], program: str) -> HelpPage:
    """The help page of a command whose options are the fields of a settings class."""
    summary, description, examples = sections(settings_type.__doc__ or "")
    options = list(_groups(settings_type))
    prefix = settings_type.model_config.get("env_prefix")
    general = [
        Entry("--config FILE", "Read settings from a TOML file; flags win over it."),
        Entry("--help", "Show this message and exit."),
    ]
    variables = f" Each setting is also an environment variable, {prefix}NAME." if prefix else ""
    positional = getattr(settings_type, "positional", None)
    argument = f" {positional.upper()}" if positional else ""
    return HelpPage(
        usage=f"{program}{argument} [OPTIONS]",
        summary=summary,
        description=description,
        groups=[*options, ("General", general)],
        examples=examples,
        epilog=variables.strip(),
    )


def flags(settings_type: type[BaseModel]) -> list[str]:
    """Every flag of a settings class, its negative forms included."""
    return [flag for name, field in _leaves(settings_type) for flag in _names(name, field)]


def unknown_flag(settings_type: type[BaseModel], arguments: Sequence[str]) -> str | None:
    """A message about the first flag that does not exist, with the closest one that does.

    Values are skipped only where they do not look like a flag, so a value such as ``--x`` is taken for
    a flag too, as the parser does.
    """
    known = [*flags(settings_type), "--help", "-h", "--config"]
    for argument in arguments:
        flag = argument.partition("=")[0]
        if not flag.startswith("--") or flag == "--" or flag in known:
            continue
        if flag.replace("_", "-") in known:  # num_samples is accepted for num-samples
            continue
        return f"no such option: {flag}{_hint(flag, known)}"
    return None


def closest_setting(settings_type: type[BaseModel], key: str) -> str:
    """The end of a message about an unknown key of a file: the closest key, or nothing."""
    return _hint(key, [name for name, _ in _leaves(settings_type)])


def _hint(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def sections(doc: str) -> tuple[str, str, list[str]]:
    """Summary, description and examples of a docstring."""
    lines = [line.strip() for line in doc.strip().splitlines()]
    text = "\n".join(lines).replace("``", "`")
    body, *rest = _HEADING.split(text, maxsplit=1)
    summary, _, description = body.strip().partition("\n\n")
    # Lines of one paragraph are joined, so that they wrap at the terminal's own width.
    paragraphs = [" ".join(part.split("\n")) for part in description.strip().split("\n\n")]
    examples = [line for line in rest[0].splitlines() if line] if rest else []
    return summary.replace("\n", " "), "\n\n".join(paragraphs), examples


def _groups(settings_type: type[BaseModel]) -> Iterator[tuple[str, list[Entry]]]:
    """Options by heading: the class's own ``option_groups``, the rest, then each nested model."""
    named: Mapping[str, Sequence[str]] = getattr(settings_type, "option_groups", {})
    fields = settings_type.model_fields
    nested = {name: field for name, field in fields.items() if _model(field) is not None}
    placed = {name for names in named.values() for name in names}
    rest = [name for name in fields if name not in placed and name not in nested]
    for title, names in [(OTHER, rest), *named.items()]:
        entries = [_entry(name, fields[name]) for name in names if name in fields]
        if entries:
            yield title, entries
    for name, field in nested.items():
        inner = _model(field)
        assert inner is not None
        entries = [_entry(f"{name}.{key}", value) for key, value in inner.model_fields.items()]
        yield sentence(field.description or name).rstrip("."), entries


def _leaves(settings_type: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in settings_type.model_fields.items():
        inner = _model(field)
        yield prefix + name, field  # a nested model is also taken whole, as JSON
        if inner is not None:
            yield from _leaves(inner, f"{prefix}{name}.")


def _model(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _names(name: str, field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return [f"--{str(choice).replace('_', '-')}" for choice in alias.choices]
    flag = f"--{name.replace('_', '-')}"
    return [flag, f"--no-{flag[2:]}"] if _plain(field.annotation) is bool else [flag]


def _entry(name: str, field: FieldInfo) -> Entry:
    kind, names = _plain(field.annotation), _names(name, field)
    if kind is bool:
        label = " / ".join(names)
    else:
        label = f"{names[0]} {_metavar(field.annotation)}"
    text = sentence(field.description or "")
    return Entry(label, text, "" if "default:" in text.lower() else _default(field))


def _plain(annotation: Any) -> Any:
    """An annotation without ``None`` and without metadata."""
    if hasattr(annotation, "__metadata__"):
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _plain(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _metavar(annotation: Any) -> str:
    kind = _plain(annotation)
    origin = get_origin(kind)
    if origin is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    if origin is list:
        return f"{_metavar(get_args(kind)[0])} ..."
    if origin is dict:
        return "JSON" if get_args(kind)[1] is Any else "NAME=VALUE ..."
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return "PATH"
    return _WORDS.get(kind, "VALUE")


def _default(field: FieldInfo) -> str:
    value = field.default
    if field.is_required() or field.default_factory is not None or value in (None, "", [], {}, ()):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(f"'{item}'" if " " in str(item) else str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def sentence(text: str) -> str:
    """A description with a capital letter and a full stop, and without reStructuredText quotes."""
    text = text.replace("``", "`").strip()
    first = re.match(r"[a-z]{2,}(-[a-z]+)*(?=[\s,;]|$)", text)
    if first:
        text = text[0].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
