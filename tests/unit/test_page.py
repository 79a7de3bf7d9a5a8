"""The page's files as they are sent; tests/browser tests what they do in a browser."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from service.auth.keys import new_key, write_keys
from service.page import PAGE_POLICY, STATIC, page_files
from tests.unit.fakes import make_runtime, serving
from vbon import __file__ as package_file
from vbon.report_html.bundle import STATIC as SHARED
from vbon.report_html.bundle import bundle, chart_files, json_for_script

SOURCES = sorted(path for path in [*STATIC.rglob("*"), *SHARED.iterdir()] if path.is_file())
ROOT = Path(package_file).parents[1]
SWAGGER = "swagger-ui-bundle.js"
# Names of XML namespaces; nothing is loaded from these addresses.
NAMESPACES = {"http://www.w3.org/2000/svg"}


def test_the_page_is_made_of_files_that_an_installed_package_has() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"service.page" = ["static/**/*"]' in text
    assert '"vbon.report_html" = ["static/*", "templates/*"]' in text
    names = set(page_files())
    assert {"index.html", "app.css", "app.js", "views/play.js", "charts.js", SWAGGER} <= names


async def test_every_file_is_served_with_its_type_and_packed_where_that_helps() -> None:
    types = {
        ".js": "text/javascript; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".svg": "image/svg+xml",
    }
    async with serving(make_runtime()) as (_, client):
        for name, path in page_files().items():
            if path.suffix == ".html":
                continue
            response = await client.get(f"/page/{name}")
            assert response.status_code == 200, name
            assert response.content == path.read_bytes(), name
            assert response.headers["content-type"] == types[path.suffix]
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["vary"] == "accept-encoding"
            packed = response.headers.get("content-encoding") == "gzip"
            assert packed == (len(response.content) > 1024), name
        plain = await client.get("/page/app.css", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == (STATIC / "app.css").read_bytes()


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_bring_their_own_policy_and_nothing_else_runs_there(path: str) -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers.get_list("content-security-policy") == [PAGE_POLICY]
    rules = dict(rule.strip().split(" ", 1) for rule in PAGE_POLICY.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["frame-ancestors"] == "'none'"
    assert rules["script-src"] == rules["connect-src"] == "'self'"
    assert not re.search(r"unsafe|\*|https?:", PAGE_POLICY)


async def test_a_browser_that_has_a_file_is_not_sent_it_again() -> None:
    async with serving(make_runtime()) as (_, client):
        for path, caching in (
            ("/", "no-cache"),
            ("/page/app.js", "no-cache"),
            (f"/page/{SWAGGER}", "public, max-age=86400"),
        ):
            first = await client.get(path)
            tag = first.headers["etag"]
            again = await client.get(path, headers={"if-none-match": f'"other", {tag}'})
            other = await client.get(path, headers={"if-none-match": 'W/"other"'})
            head = await client.head(path)
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert other.status_code == 200
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == first.headers["content-length"]
            assert {first.headers["cache-control"], again.headers["cache-control"]} == {caching}


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/index.html",
        "/page/docs.html",
        "/page/../__init__.py",
        "/page/..%2f__init__.py",
        "/page/%2e%2e/__init__.py",
        "/page/views/../../__init__.py",
        "/page//etc/passwd",
        "/page/%00",
        "/page/views",
        "/page/static/app.js",
        "/page/app.js%00.css",
        "/page/..\\__init__.py",
    ],
)
async def test_nothing_else_is_served_whatever_the_path_says(path: str) -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found"
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


async def test_nothing_is_written_there() -> None:
    async with serving(make_runtime()) as (_, client):
        for path in ("/", "/page/app.js"):
            assert (await client.post(path, json={})).status_code == 405


async def test_the_page_comes_without_a_key_where_all_it_asks_for_needs_one(
    tmp_path: Path,
) -> None:
    write_keys(tmp_path / "keys.jsonl", [new_key("ann")[0]])
    auth = {"keys_file": str(tmp_path / "keys.jsonl")}
    async with serving(make_runtime(auth=auth)) as (_, client):
        for path in (
            "/",
            "/docs",
            *(f"/page/{name}" for name in page_files() if ".html" not in name),
        ):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/modes", "/preferences", "/openapi.json", "/page", "/pages/app.js"):
            assert (await client.get(path)).status_code == 401, path


async def test_the_page_knows_whether_verdicts_are_kept(tmp_path: Path) -> None:
    for store, kept in (("none", False), (str(tmp_path / "s.db"), True)):
        async with serving(make_runtime(store=store)) as (_, client):
            assert (await client.get("/modes")).json()["records"] is kept


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_file_names_another_host(path: Path) -> None:
    found = set(re.findall(r"(?:[a-z]+:)?//[\w.-]+[^\s\"'`)]*", path.read_text(encoding="utf-8")))
    assert not {url for url in found if not re.match(r"//\s", url)} - NAMESPACES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_file_makes_markup_or_code_of_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    made = r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|setHTML\w*|"
    made += r"createContextualFragment|eval|new Function)\b"
    assert not re.findall(made, text)
    if path.suffix == ".html":
        assert not re.findall(r"\son\w+=|\sstyle=|javascript:|<style|<script(?![^>]*\ssrc=)", text)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_a_file_loads_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # Behind a proxy that serves the page below a path, only relative addresses lead to its files.
    assert not re.findall(r"[\"'(]/page/", text)
    base = SHARED if SHARED in path.parents else STATIC
    folder = Path("/") if path.suffix == ".html" else Path("/page", path.relative_to(base)).parent
    pattern = r"(?:src|href)=\"(page/[^\"]+)|from \"([^\"]+)\"|new URL\(\"([\w./-]+\.\w+)\""
    names = [next(filter(None, found)) for found in re.findall(pattern, text)]
    assert (
        names
        or path.suffix in {".css", ".svg"}
        or path.name
        in {"api.js", "comparison.js", "dom.js", "docs.js", "styles.js", "theme.js", "verdict.js"}
    )
    for name in names:
        found = os.path.normpath(folder / name)
        assert found.startswith("/page/")
        assert found.removeprefix("/page/") in page_files(), name


@pytest.mark.parametrize("name", [SWAGGER, "swagger-ui.css"])
def test_libraries_are_served_from_their_packages(name: str) -> None:
    path = page_files()[name]
    assert path.is_file()
    assert STATIC not in path.parents
    assert not any(STATIC.rglob(name))
    assert "docs.js" in page_files()


def test_no_file_of_the_page_has_the_name_of_one_that_reports_share() -> None:
    assert not {path.name for path in STATIC.iterdir()} & chart_files().keys()


def test_a_bundle_has_each_module_once_before_what_imports_it() -> None:
    files = {
        "a.js": 'import { b, c as d } from "./b.js";\nimport { e } from "./x/e.js";\nd(b, e);\n',
        "b.js": 'import { e } from "./x/e.js";\nexport const b = e;\nexport function c() {}\n',
        "x/e.js": "export class E {}\nexport const e = 1;\n",
        "star.js": 'import * as b from "./b.js";\n',
        "one.js": 'import { f } from "./other.js";\n',
        "other.js": 'import { g } from "./one.js";\nexport const f = g;\n',
    }
    contents = {name: text.encode() for name, text in files.items()}
    found = bundle("a.js", contents)
    order = [found.index(f"const module_{name}_js = ") for name in ("x_e", "b", "a")]
    assert order == sorted(order)
    assert found.count("class E {}") == 1
    assert "const { b, c: d } = module_b_js;" in found
    assert "return { E, e };" in found
    assert "export" not in found
    with pytest.raises(ValueError, match=r"star\.js: .import \* as b"):
        bundle("star.js", contents)
    with pytest.raises(ValueError, match=r"one\.js imports other\.js imports one\.js"):
        bundle("one.js", contents)


def test_json_in_a_script_ends_no_element() -> None:
    text = json_for_script({"a": "</script><!--&"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"a": "</script><!--&"}
