"""The documentation site builds, every page is in its menu, and every link of it leads somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.strategies import STRATEGIES
from training.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r'(?:href|src)="([^"#?]+)')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical", reason="no zensical: pip install -e '.[docs]'")
    root = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("reference"))
    shutil.copy(ROOT / "zensical.toml", root)
    command = [sys.executable, str(ROOT / "scripts" / "docs_site.py"), str(root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return root / "build" / "site"


def menu(entries: list[dict[str, object]]) -> Iterator[str]:
    for entry in entries:
        for target in entry.values():
            if isinstance(target, list):
                yield from menu(target)
            else:
                yield str(target)


def test_every_page_is_in_the_menu() -> None:
    named = set(menu(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").glob("*.md")}
    assert {name for name in named if not name.startswith("reference/")} == pages


def test_every_link_leads_somewhere_and_nothing_comes_from_elsewhere(site: Path) -> None:
    dead = []
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # served for any address, so its links begin at the root
            continue
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+', text), page
        for target in LINK.findall(text):
            if re.match(r"[a-z]+:", target):
                continue
            if not (page.parent / target).exists():
                dead.append(f"{page.relative_to(site)}: {target}")
    assert not dead, "\n".join(dead[:20])


def test_the_reference_has_every_mode_objective_command_and_route(site: Path) -> None:
    def reference(name: str) -> str:
        return (site / "reference" / f"{name}.html").read_text(encoding="utf-8")

    modes, objectives = reference("modes"), reference("objectives")
    for name in STRATEGIES.built_in:
        assert f"<code>{name}</code>" in modes
    for name in OBJECTIVES.built_in:
        assert f"<code>{name}</code>" in objectives
    commands, routes = reference("commands"), reference("http")
    for path in ("vbon train vbon", "vbon loadtest run", "vbon keys add"):
        assert f"<code>{path}</code>" in commands
    for route in ("POST /generate", "GET /decision", "POST /v1/chat/completions"):
        assert f"<code>{route}</code>" in routes
    assert "vbon:e2e_request_latency_seconds" in reference("metrics")
