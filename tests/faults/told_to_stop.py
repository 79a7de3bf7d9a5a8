"""SIGTERM under load, with requests that can finish in time and some that cannot."""

from __future__ import annotations

import asyncio
import signal

import httpx

from tests.faults.service import Service, lives
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = (
    "Told to stop, the service lets requests under way finish, ends those that cannot in time with an error, "
    "and leaves no process behind."
)


N = 16


async def inject(stage: Stage) -> Tally:
    """Stop it while short and endless requests are under way."""
    tally = Tally()
    service = await stage.second_service()
    await service.ask()
    ended_before = await _ended(service)
    children = service.children()
    # Some are running, most wait for a place: what waits longer than the limit is ended.
    count = stage.count(400, least=80)
    asks = [
        asyncio.create_task(service.ask("bon", n=N, max_tokens=64, ignore_eos=True))
        for _ in range(count)
    ]
    await _until_taken(service, ended_before + count)
    service.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.5)
    late = await service.ask("vbon")
    for response in await asyncio.gather(*asks):
        tally.add(response)
    begun = asyncio.get_running_loop().time()
    status = await asyncio.to_thread(service.process.wait, 100)
    tally.notes.append(
        f"ended {asyncio.get_running_loop().time() - begun:.1f} s after the last answer"
    )
    if not tally.answered or not tally.errors["shutting_down"]:
        tally.fail(f"not some of each: {tally.answered} answered, {dict(tally.errors)}")
    if status not in {0, -signal.SIGTERM, 128 + signal.SIGTERM}:
        tally.fail(f"exit status {status}")
    if not isinstance(late, httpx.ConnectError) and not _refused(late):
        tally.fail(f"a request after the signal: {late!r}")
    tally.left_over = {"processes": await _living(service, children)}
    return tally


async def _until_taken(service: Service, count: int) -> None:
    """Wait until the server has read so many best-of-N requests since it was started."""
    taken = 0.0
    async with asyncio.timeout(60):
        while taken < count:
            held = await service.held()
            inside = (held["sequences running"] + held["sequences waiting"]) / N
            taken = inside + await _ended(service)
            await asyncio.sleep(0.05)


async def _ended(service: Service) -> float:
    """The number of requests that the server has answered or ended with an error."""
    answered = await service.metric("vbon:request_success_total")
    return answered + await service.metric("vbon:request_errors_total")


def _refused(late: httpx.Response | Exception) -> bool:
    return isinstance(late, httpx.Response) and late.status_code == 503


async def _living(service: Service, children: list) -> float:
    for _ in range(600):
        living = [child for child in children if lives(child)]
        if not living:
            break
        await asyncio.sleep(0.1)
    return float(len(living))
