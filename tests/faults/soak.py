"""Everything at once for some time; ``scripts/soak`` does it for an hour and fits lines to what it sees."""

from __future__ import annotations

from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.soak.__main__ import soak
from tests.soak.report import growths

PROMISE = "Under mixed load memory, file descriptors, threads, tasks and latency stay flat."
LEAST_S_FOR_A_LINE = 300.0


async def inject(stage: Stage) -> Tally:
    """A quarter of an hour in full; too short a run is asked only whether anything is left over."""
    service = await stage.service()
    for mode in ("ref", "vbon", "bon"):
        await service.ask(mode)
    before = await service.held()
    seconds = max(15.0, 900 * stage.size)
    watch, load = await soak(service.url, service.process, seconds, every_s=max(0.5, seconds / 300))
    tally = Tally(asked=load.kinds.total(), answered=load.kinds.total() - len(load.wrong))
    tally.lost = load.wrong
    tally.left_over = await service.left_over(before)
    found = growths(watch, load)
    growing = [name for name, one in found.items() if one.verdict == "grows"]
    if seconds >= LEAST_S_FOR_A_LINE:
        tally.left_over |= {f"more of {name}": found[name].total for name in growing}
    main_memory = next((one for name, one in found.items() if "RSS" in name), None)
    if main_memory is not None:
        tally.notes.append(
            f"front end {main_memory.mean:.0f} MB, rise {main_memory.total:+.1f} "
            f"[{main_memory.low:+.1f}, {main_memory.high:+.1f}] in {seconds:.0f} s"
        )
    tally.notes.append(
        f"sent {dict(load.kinds)}; refused {dict(load.refused)}; grow: {growing or 'none'}"
    )
    return tally
