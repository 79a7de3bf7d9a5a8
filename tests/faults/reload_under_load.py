"""New weights, then broken ones, at a served path; reloaded while requests never stop."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.steady_load import steady_load
from tests.faults.tally import Tally

PROMISE = "A reload fails no request; a checkpoint that cannot be served is refused and the old one goes on."


async def inject(stage: Stage) -> Tally:
    """Reload good weights, broken ones, and the reward model."""
    tally = Tally()
    service = await stage.second_service()
    first = await _reloaded(service, "vbon", 200, stage, tally)
    shutil.copyfile(stage.sandbox / "policy" / WEIGHTS, stage.served / WEIGHTS)
    _forget_checksums(stage.served)
    second = await _reloaded(service, "vbon", 200, stage, tally)
    if first["now"] == second["now"] or second["before"] != first["now"]:
        tally.fail(f"new weights were not served: {first}, {second}")
    _break(stage.served / WEIGHTS)
    await _reloaded(service, "vbon", 422, stage, tally)
    await _reloaded(service, "reward", 200, stage, tally)
    await _must_serve(service, second["now"], tally)
    if tally.errors:
        tally.fail(f"requests failed: {dict(tally.errors)}")
    return tally


WEIGHTS = "model.safetensors"


async def _reloaded(
    service: Service, model: str, status: int, stage: Stage, tally: Tally
) -> dict[str, str]:
    # Every mode is asked all the time; more at once only takes longer on a small machine.
    async with steady_load(service, tally, width=stage.count(8, least=2)):
        answer = await service.client.post("/admin/reload", json={"model": model}, timeout=300)
    if answer.status_code != status:
        tally.fail(f"reload of {model}: {answer.status_code} {answer.text[:300]}")
        return {"before": "", "now": ""}
    found: dict[str, str] = answer.json()
    if status == 200:
        tally.notes.append(f"{model} {float(found['load_s']):.0f} s")
    return found


async def _must_serve(service: Service, revision: str, tally: Tally) -> None:
    response = await service.ask("vbon")
    tally.add(response)
    if isinstance(response, httpx.Response) and revision not in response.text:
        tally.fail(f"not {revision}: {response.text[:300]}")


def _break(weights: Path) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])


def _forget_checksums(folder: Path) -> None:
    """These weights are not what the card tells of, and are meant to be served all the same."""
    for card in ("checksums.json",):
        (folder / card).unlink(missing_ok=True)
