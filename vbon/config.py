"""Typed settings from flags, environment and a TOML file, in that order of precedence."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from vbon.errors import DataError
from vbon.help.page import show
from vbon.help.settings import closest_setting, help_page, unknown_flag
from vbon.record_files.encoding import decode_text

S = TypeVar("S", bound="Settings")
OptionGroups = dict[str, tuple[str, ...]]  # heading: names of its fields

USAGE_ERROR = 2


def _none_word(value: Any) -> Any:
    return None if value == "none" else value


# TOML has no null, and flags cannot express one: the word `none` switches an optional thing off.
NoneWord = BeforeValidator(_none_word)

PROMPT_FILE = (
    "lines of text, JSON or JSON lines with `prompt` or `messages`, CSV, TSV, Parquet, or a dataset "
    "directory; `-` is standard input"
)
# Both are left out of records where they are not given, so that outputs made before they existed still count.
PromptColumn = Annotated[
    str | None,
    NoneWord,
    Field(
        exclude_if=lambda column: column is None,
        description="key or column of the prompts; default: messages, or else prompt",
    ),
]
FileEncoding = Annotated[
    str | None,
    NoneWord,
    Field(
        exclude_if=lambda encoding: encoding is None,
        description="encoding of the prompt file; default: that of its byte order mark, or UTF-8",
    ),
]


# NAME=URL,URL: pydantic-settings would end the entry at the comma.
_URL_LIST = re.compile(r"^(--[^=\s]+=)?([^=,\"\s]+)=(https?://[^,=\"]*(?:,\s*https?://[^,=\"]*)+)$")


class Settings(BaseSettings):
    """Base class of every program's settings: frozen, and unknown keys are errors.

    Flags win over environment variables (where a prefix is set), variables over the TOML file, the file
    over defaults. Nested keys are written ``--a.b``, ``PREFIX_A__B`` and ``[a] b = ...``.

    Attributes:
        option_groups: headings of the help page, each with the names of its fields.
        positional: the field that the first argument sets if it is not a flag; ``None``: arguments are flags.
        other_variables: environment variables that share the prefix but are not settings.
    """

    option_groups: ClassVar[OptionGroups] = {}
    positional: ClassVar[str | None] = None
    other_variables: ClassVar[frozenset[str]] = frozenset()

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=True,
        nested_model_default_partial_update=True,
        protected_namespaces=(),
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment before the file's values, and leave it out where there is no prefix."""
        del settings_cls, dotenv_settings, file_secret_settings
        prefixed = cls.model_config.get("env_prefix")
        return (env_settings, init_settings) if prefixed else (init_settings,)


def load_settings(settings_type: type[S], arguments: Sequence[str], *, program: str) -> S:
    """Resolve settings for a command line; ``--config FILE`` (or ``PREFIX_CONFIG``) names a TOML file.

    ``--help`` prints the settings' help page and exits with status 0. A mistake exits with status 2 and
    one line that names the key, the value and what is allowed.
    """
    prefix = settings_type.model_config.get("env_prefix") or ""
    if {"--help", "-h"} & set(arguments):
        show(help_page(settings_type, program))
        raise SystemExit(0)
    try:
        rest, config = _take_config(_named(settings_type, arguments), prefix)
        _refuse_unknown_flags(settings_type, rest)
        _refuse_unknown_environment(settings_type, prefix)
        values = _read_toml(config) if config else {}
        return settings_type(
            **values,
            _cli_parse_args=rest,
            _cli_prog_name=program,
        )
    except ValidationError as error:
        for problem in error.errors():
            print(f"{program}: {_mistake(settings_type, problem)}", file=sys.stderr)
    except (SettingsError, ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
    print(f"try: {program} --help", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


def _mistake(settings_type: type[BaseSettings], problem: ErrorDetails) -> str:
    """One line on a value that was refused: the flag, the reason and what was given."""
    text = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":  # from a file or a variable: flags are checked before
        key = ".".join(str(part) for part in problem["loc"])
        return f"unknown setting {key}{closest_setting(settings_type, key)}"
    if not problem["loc"]:
        return text  # a rule between several settings names them itself
    flag = ".".join(str(part) for part in problem["loc"]).replace("_", "-")
    given = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
    return f"--{flag}: {text[:1].lower()}{text[1:]}{given}"


def _refuse_unknown_flags(settings_type: type[BaseSettings], arguments: Sequence[str]) -> None:
    """Refuse a misspelt flag here, since argparse would not say which flag was meant."""
    if (problem := unknown_flag(settings_type, arguments)) is not None:
        raise ValueError(problem)


def _named(settings_type: type[Settings], arguments: Sequence[str]) -> list[str]:
    """The arguments, with a flag before the first one if it is that of the positional setting."""
    name = settings_type.positional
    if name is None or not arguments or arguments[0].startswith("-"):
        return list(arguments)
    return [f"--{name.replace('_', '-')}={arguments[0]}", *arguments[1:]]


def _take_config(arguments: list[str], prefix: str) -> tuple[list[str], Path | None]:
    config = os.environ.get(f"{prefix}CONFIG") if prefix else None
    rest: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--config":
            config = next(pending, None)
            if config is None:
                raise ValueError("--config needs a file name")
        elif argument.startswith("--config="):
            config = argument.partition("=")[2]
        else:
            # pydantic-settings knows a field of one letter only as `-n`; other commands also take `--n`.
            letter = re.fullmatch(r"-(-[a-zA-Z])(=.*)?", argument)
            argument = argument[1:] if letter else argument
            rest.append(_URL_LIST.sub(r'\1\2="\3"', argument))
    return rest, Path(config) if config else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # Editors and shells of Windows write byte order marks and UTF-16.
        text = decode_text(path.read_bytes(), f"configuration {path}", option=None)
        return tomllib.loads(text)
    except OSError as error:
        raise ValueError(f"cannot read configuration {path}: {error.strerror}") from error
    except DataError as error:
        raise ValueError(str(error)) from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"configuration {path} is not valid TOML: {error}") from error


def _refuse_unknown_environment(settings_type: type[Settings], prefix: str) -> None:
    """Refuse a misspelt variable; ``extra="forbid"`` does not look at the environment."""
    if not prefix:
        return
    known = {prefix + name.upper() for name in settings_type.model_fields} | {f"{prefix}CONFIG"}
    known |= settings_type.other_variables
    for variable in os.environ:
        if variable.upper().startswith(prefix):
            head = variable.upper().split("__")[0]
            if head not in known:
                raise ValueError(
                    f"unknown environment variable {variable}; known are {', '.join(sorted(known))}"
                )
