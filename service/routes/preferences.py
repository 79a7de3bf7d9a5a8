"""``/preferences``: people's choices between two unlabelled answers."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.context.caller import current_caller
from service.evaluation.answer_revision import is_current
from service.evaluation.preference_pairs import make_pair
from service.http.disconnect import run_while_connected
from service.routes.dependencies import SAME_ORIGIN_ONLY, PendingPairsDep, RuntimeDep, StoreDep
from service.routes.request_state import get_request_id
from service.schemas import AT_WORK, WITH_BODY, errors
from service.schemas.preferences import (
    PairRequest,
    PairShown,
    Revealed,
    Standing,
    Standings,
    Verdict,
    VerdictKept,
)
from service.store import (
    HumanWinRate,
    Preference,
    Shown,
    add_preference,
    human_win_rates,
)
from service.store.preferences import Winner

router = APIRouter(prefix="/preferences", tags=["preferences"])

_WINNERS: dict[str, Winner] = {"left": "a", "right": "b", "tie": "tie", "bad": "bad"}


@router.post("/pairs", responses=AT_WORK | errors(403), dependencies=SAME_ORIGIN_ONLY)
async def post_pair(
    body: PairRequest,
    request: Request,
    runtime: RuntimeDep,
    pairs: PendingPairsDep,
) -> PairShown:
    """Answer a prompt in two modes; return both answers in random order, without their modes."""
    pair = await run_while_connected(request, make_pair(runtime, body, get_request_id(request)))
    key = pairs.add(pair, current_caller.get().name)
    return PairShown(pair=key, prompt=pair.prompt, left=pair.left.text, right=pair.right.text)


@router.post("", responses=WITH_BODY | errors(403, 404, 503), dependencies=SAME_ORIGIN_ONLY)
async def post_verdict(body: Verdict, pairs: PendingPairsDep, store: StoreDep) -> VerdictKept:
    """Store which answer of a pair is better, and reveal the modes. Each pair takes one verdict."""
    winner = _WINNERS[body.winner]
    with pairs.judged(body.pair) as pair:
        verdict = Preference(pair.prompt, pair.left, pair.right, winner)
        kept = await store.use(lambda opened: add_preference(opened, verdict))
    return VerdictKept(
        id=kept, winner=body.winner, left=_revealed(pair.left), right=_revealed(pair.right)
    )


@router.get("", responses=errors(503))
async def get_standings(runtime: RuntimeDep, store: StoreDep) -> Standings:
    """Win rates by people's verdicts, and by the reward model on the same pairs of answers.

    Verdicts on answers of other models than those served now are counted apart.
    """
    lines = await store.use(human_win_rates)
    found = [_standing(line, current=is_current(runtime, line)) for line in lines]
    return Standings(standings=sorted(found, key=lambda line: not line.current))


def _revealed(shown: Shown) -> Revealed:
    return Revealed(mode=shown.mode, n=shown.n, reward=shown.reward)


def _standing(line: HumanWinRate, *, current: bool) -> Standing:
    return Standing(
        mode=line.mode,
        n=line.n,
        against=line.against,
        against_n=line.against_n,
        wins=line.wins,
        losses=line.losses,
        ties=line.ties,
        both_bad=line.both_bad,
        current=current,
        human_win_rate=line.win_rate,
        reward_win_rate=line.reward_win_rate,
    )
