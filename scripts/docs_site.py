"""Builds the documentation site: reference pages from the code, then everything by Zensical.

    PYTHONPATH=. python scripts/docs_site.py ROOT [--serve]

ROOT holds `zensical.toml` and `docs/`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from reference_pages import write_pages

SITE = "build/site"
# The theme loads this script from another host where a page is opened as a file; ours lies beside the pages.
SHIM, OWN_SHIM = "https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js"


def build(root: Path) -> Path:
    """Build the site into ``build/site`` of the directory and return its first page.

    Raises:
        subprocess.CalledProcessError: the build failed, or warned of something such as a dead link.
    """
    write_pages(root / "docs" / "reference")
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], cwd=root, check=True)
    site = root / SITE
    for page in site.rglob("*.html"):
        own = os.path.relpath(site / OWN_SHIM, page.parent)
        page.write_text(page.read_text(encoding="utf-8").replace(SHIM, own), encoding="utf-8")
    return site / "index.html"


def main() -> None:
    """Build the site, or serve it and build it again at each change."""
    root = Path(sys.argv[1])
    if "--serve" in sys.argv[2:]:
        write_pages(root / "docs" / "reference")
        os.chdir(root)
        os.execv(sys.executable, [sys.executable, "-m", "zensical", "serve"])
    print(build(root))


if __name__ == "__main__":
    main()
