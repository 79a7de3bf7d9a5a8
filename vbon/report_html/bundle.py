"""Puts modules of the web page into one script, for reports that are a single file.

The modules keep to plain forms: ``import { a, b as c } from "./file.js";`` on one line, and ``export``
before a function, a class or a constant. They import each other in no circle.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_IMPORT = re.compile(r'^import \{ ([^}]+) \} from "([^"]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function\*? |class |const )", re.MULTILINE)
_NAME = re.compile(r"^export (?:async )?(?:function\*?|class|const) (\w+)", re.MULTILINE)


@cache
def chart_files() -> dict[str, bytes]:
    """The modules and the style sheet that draw charts, for the web page and for reports."""
    return {path.name: path.read_bytes() for path in STATIC.iterdir()}


def bundle(entry: str, files: Mapping[str, bytes]) -> str:
    """One script that runs a module with all that it imports, each module once.

    Args:
        entry: the module's name in ``files``, such as ``report.js``.
        files: contents by name; names are paths with slashes, by which modules import each other.

    Raises:
        ValueError: a module imports or exports in a form that this function does not know, or modules
            import each other in a circle.
    """
    parts: dict[str, str] = {}
    _add(entry, files, parts, ())
    return "(() => {\n" + "\n".join(parts.values()) + "\n})();\n"


def _add(
    name: str, files: Mapping[str, bytes], parts: dict[str, str], importers: tuple[str, ...]
) -> None:
    if name in parts:
        return
    if name in importers:
        raise ValueError(
            f"{' imports '.join([*importers, name])}: modules in a circle cannot be bundled"
        )
    text = files[name].decode("utf-8")
    for _, target in _IMPORT.findall(text):
        _add(_resolved(name, target), files, parts, (*importers, name))
    exported = _NAME.findall(text)
    body = _EXPORT.sub("", _IMPORT.sub(lambda found: _import(name, *found.groups()), text))
    left = re.search(r"^(?:import|export)\b.*", body, re.MULTILINE)
    if left is not None:
        raise ValueError(f"{name}: {left.group()!r} cannot be bundled")
    result = f"return {{ {', '.join(exported)} }};"
    parts[name] = f"const {_variable(name)} = (() => {{\n{body}\n{result}\n}})();"


def _import(name: str, names: str, target: str) -> str:
    taken = ", ".join(one.strip().replace(" as ", ": ") for one in names.split(","))
    return f"const {{ {taken} }} = {_variable(_resolved(name, target))};"


def _resolved(name: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), target))


def _variable(name: str) -> str:
    return "module_" + re.sub(r"\W", "_", name)


def json_for_script(value: object) -> str:
    """JSON that may stand inside a ``<script>`` element, whatever its texts contain."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
