"""The rows of the bench: what a fleet adds to a request, beside the same service in one process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.bench.figures import Figure, in_turns, ratios, with_unit
from service.fleet.bench.cpu import spent
from service.fleet.bench.load import Answered, Job, job_in_child
from vbon.maths.statistics import median_range

# At most so many more milliseconds, and at least this share of the requests a second.
MOST_MORE_MS, LEAST_SHARE = 5.0, 0.97
# Of the CPU time of a front end, which bounds what it answers where each part has cores of its own.
MOST_CPU = 1.03
IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of load.

    Attributes:
        value: milliseconds, whose difference is told, or requests a second, whose ratio is told.
        in_flight: requests at a time.
    """

    name: str
    mode: str
    body: dict[str, Any]
    value: Callable[[Answered], float]
    in_flight: int = 1
    unit: str = "ms"


def rows(tokens: int, n: int) -> list[Row]:
    """The rows for answers of so many tokens, and best of n."""
    one = {"prompt": "the film was " + "long " * 20, "max_tokens": tokens, "ignore_eos": True}
    best = {**one, "n": n}
    streamed = {**one, "stream": True}
    return [
        Row("TTFT, one at a time", "ref", streamed, lambda found: found.first_ms),
        Row(
            f"TTFT, {IN_FLIGHT} in flight",
            "ref",
            streamed,
            lambda found: found.first_ms,
            IN_FLIGHT,
        ),
        Row("one sample, one at a time", "ref", one, lambda found: found.whole_ms),
        Row(
            f"one sample, {IN_FLIGHT} in flight",
            "ref",
            one,
            lambda found: found.per_second,
            IN_FLIGHT,
            "requests/s",
        ),
        Row(f"bon, n={n}, one at a time", "bon", best, lambda found: found.whole_ms),
        Row(
            f"bon, n={n}, {IN_FLIGHT} in flight",
            "bon",
            best,
            lambda found: found.per_second,
            IN_FLIGHT,
            "requests/s",
        ),
    ]


@dataclass(frozen=True, slots=True)
class Side:
    """One side.

    Attributes:
        cpu: the CPU time of each of its processes so far.
        front_end: of them, that of the front end, which in one process is all of it.
    """

    url: str
    cpu: Callable[[], dict[int, float]]
    front_end: Callable[[dict[int, float]], dict[int, float]] = dict


async def measured(row: Row, pairs: int, requests: int, fleet: Side, alone: Side) -> list[Figure]:
    """Measure a row at the two sides in turns: times or throughput, and CPU time if there is enough of it.

    Args:
        requests: of one measurement with one request at a time; ten times as many are sent with more.
    """
    count = requests if row.in_flight == 1 else 10 * requests
    cpu_ms: dict[tuple[str, bool], list[float]] = defaultdict(list)

    async def at(side: Side) -> float:
        job = Job(f"{side.url}/generate?mode={row.mode}", row.body, count, row.in_flight)
        before = side.cpu()
        found = await job_in_child(job)
        after = side.cpu()
        for alike, front in ((before, False), (side.front_end(before), True)):
            cpu_ms[side.url, front].append(1000 * spent(alike, after) / count)
        return row.value(found)

    ours, plain = await in_turns(pairs, lambda: at(fleet), lambda: at(alone))
    detail = f"{with_unit(ours, row.unit)} against {with_unit(plain, row.unit)} in one process"
    if row.unit == "ms":
        more = median_range([a - b for a, b in zip(ours, plain, strict=True)])
        found = [Figure(f"{row.name}: ms more", more, MOST_MORE_MS, False, detail)]
    else:
        share = ratios(ours, plain)
        found = [Figure(f"{row.name}: share", share, LEAST_SHARE, True, detail)]
    if row.in_flight > 1:
        for front, words, most in ((True, "of the front end", MOST_CPU), (False, "in all", None)):
            # The first of each is the warm-up's.
            sides = [cpu_ms[side.url, front][1:] for side in (fleet, alone)]
            detail = f"{with_unit(sides[0], 'ms')} against {with_unit(sides[1], 'ms')}"
            name = f"{row.name}: CPU a request {words}"
            found.append(Figure(name, ratios(*sides), most, False, detail))
    return found
