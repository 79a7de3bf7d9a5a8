"""Settings of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from vbon.config import OptionGroups, Settings


class DemoConfig(Settings):
    """Show live best-of-N beside a vBoN checkpoint on a toy, from nothing, in minutes.

    The demo makes a toy policy and two reward models, starts the service as soon as these exist (it then
    answers `ref` and `bon`), fine-tunes vBoN meanwhile, lets the checkpoint join the running service, sends
    the same prompts through all modes, and evaluates on held-out prompts. The service keeps running until
    Ctrl-C. Finished parts are kept, so a second start takes a minute.

    Examples:
      vbon demo
      vbon demo --once
      vbon demo --distil
      vbon demo --corpus liked.txt=1 --corpus disliked.txt=0 --out mine
    """

    option_groups: ClassVar[OptionGroups] = {
        "Demo": ("distil", "once", "out", "host", "port", "corpus", "encoding", "seed"),
    }

    distil: bool = Field(
        False,
        description="show another story: generated traffic on best-of-N, whose answers `vbon distil run` "
        "trains on; requests move to the checkpoint, the prompts change, and it trains again",
    )
    once: bool = Field(
        False,
        description="stop the service after the comparison; the status is 0 only if all modes answered",
    )
    out: Path = Field(Path("sandbox"), description="directory of the models and results")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    corpus: list[str] = Field(
        default=[],
        description="labelled text to make the models from, in the forms of `vbon sandbox`; default: "
        "synthetic movie reviews",
    )
    encoding: str | None = Field(
        None,
        description="encoding of --corpus, such as latin-1; default: that of its byte order mark, or UTF-8",
    )
    seed: int = Field(0, ge=0, description="seed of everything that is made")
