"""First lines of docstrings, and texts, that a reader would have to decode."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path for package in ("service", "training", "vbon") for path in (ROOT / package).rglob("*.py")
)
# A first line says what its object is or does: it opens with a noun or a verb.
OPENINGS = re.compile(
    r"(What|Which|Who|Whom|Whose|Whoever|Whatever|How|That|Where|When|Whether|Why|If|Of|In|On|To|From|"
    r"Under|Beyond|With|Without|For|By|At|After|Before|Between|Around|Beside|Besides|Against|Until|Since|"
    r"Through|Into|Over|Above|Below|Behind|Within|Upon|As|So|It|Its|They|Their|There|Those|Told|Asked|"
    r"Given|Nothing|Nobody|Not|Also|And|Or|But)\b"
)
# "it is no output of a run": "it is not the output of a run". "There is no ..." reads well.
IS_NO = re.compile(r"(?<!there )(?<!There )\b(is|are|was|were) no (?!longer\b|more\b)")

Node = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def riddles(source: str) -> Iterator[str]:
    """Places and texts of a module that break one of the two rules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Node):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            if OPENINGS.match(first):
                yield f"{getattr(node, 'lineno', 1)}: {first}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = IS_NO.search(node.value)
            if found:
                yield f"{node.lineno}: ... {node.value[found.start() :][:60]!r}"


def test_docstrings_and_messages_are_read_once() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{riddle}"
        for path in MODULES
        for riddle in riddles(path.read_text(encoding="utf-8"))
    ]
    assert not found, "say plainly what it is or does:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""What it does."""', 1),
        ('def f():\n    """Of its process."""', 1),
        ('class A:\n    """The worker\'s process id, or None if it is not running."""', 0),
        ('"""Inputs of a run."""', 0),  # a word that begins like a preposition
        ('raise E("it is no output of a training run")', 1),
        ('raise E("not the output of a training run; there is no card")', 0),
        ('x = f"{name} is no file"', 1),
        ('x = "it is no longer used"', 0),
    ],
)
def test_the_rules(source: str, count: int) -> None:
    assert len(list(riddles(source))) == count
