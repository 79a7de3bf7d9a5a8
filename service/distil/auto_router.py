"""The router of mode ``auto``: the rollout's choice for each prompt, among what can answer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from service.distil import rollout_parts
from service.distil.keeper import RolloutKeeper
from service.distil.served import ServedCheckpoints
from service.distil.shadows import Compared, Shadows, is_its_failure
from service.runtime.modes import Mode
from service.runtime.prompt import PromptRequest, PromptResult
from service.runtime.routing import AnswerFailure, Route, Routing, Wish
from service.settings import AUTO, REFERENCE, DistilSettings
from service.strategies import Auto, Single
from vbon.distil.split import opening_of
from vbon.errors import RequestTimeoutError
from vbon.prompts import Prompt


class AutoRouter:
    """A :class:`~service.runtime.routing.Router` over the rollout."""

    def __init__(
        self,
        settings: DistilSettings,
        keeper: RolloutKeeper,
        served: ServedCheckpoints,
        shadows: Shadows,
    ) -> None:
        self._settings, self._keeper, self._served = settings, keeper, served
        self._shadows = shadows

    def route(self, wish: Wish) -> Route:
        """The arm of a prompt: that of its conversation, which changes with the rollout only."""
        conversation = _conversation(wish.prompt)
        chosen, alive = self._keeper.rollout, self._served.alive
        found = chosen.route(conversation, self._served.names)
        if found.checkpoint is not None and found.checkpoint not in alive:
            self._keeper.totals.fallbacks += 1
            found = chosen.route(conversation, alive)
        return self._as_route(found)

    def fall_back(self, route: Route, _: Wish) -> Route:
        """Best-of-N in the place of an arm whose engine died or failed while it answered."""
        assert isinstance(route.routing, Routing)  # a route of this router
        self._keeper.totals.fallbacks += 1
        found = self._as_route(rollout_parts.Route("bon", None, route.routing.share, None))
        return replace(found, fell_back=True)

    def answered(self, route: Route, request: PromptRequest, result: PromptResult) -> None:
        """Count an answer, and perhaps compare it with best-of-N afterwards."""
        keeper, routing = self._keeper, route.routing
        assert isinstance(routing, Routing)  # a route of this router
        # The result of a checkpoint does not tell the N that best-of-N would have had.
        keeper.totals.answered(routing.arm, result.outcome.generated_tokens, request.num_samples)
        keeper.touch()
        share, rolling = self._settings.shadow_share, keeper.rollout.rolling
        if routing.checkpoint is not None:
            asked = rollout_parts.Route(
                routing.arm, routing.checkpoint, routing.share, routing.step
            )
            probability = keeper.rollout.shadow_probability(asked, share)
            compared = self._compared(routing.checkpoint, request.prompt)
            self._shadows.offer(compared, routing.arm, request, result, probability)
        elif not route.fell_back and rolling is not None and rolling.id in self._served.alive:
            policy = self._served.names[rolling.id]
            compared = self._compared(rolling.id, request.prompt)
            probability = min(1.0, share / routing.share)
            self._shadows.offer_mirrored(compared, policy, request, result, probability)

    def _failed(
        self, found: rollout_parts.Route, request: PromptRequest, error: AnswerFailure
    ) -> None:
        """Count an answer that a checkpoint owes, against it unless it could not help it."""
        assert found.checkpoint is not None  # given to checkpoints' routes only
        self._keeper.totals.failures[found.arm] += 1
        self._keeper.touch()
        if is_its_failure(error):
            compared = self._compared(found.checkpoint, request.prompt)
            share = self._settings.shadow_share
            probability = self._keeper.rollout.shadow_probability(found, share)
            self._shadows.offer_failed(compared, found.arm, request, probability)
        elif isinstance(error, RequestTimeoutError) and error.own_limit and error.decoding:
            self._shadows.skipped["own_limit"] += 1

    def _compared(self, checkpoint: str, prompt: Prompt) -> Compared:
        found = self._keeper.rollout.checkpoint(checkpoint)
        test = found.status, found.step, self._shadows.begun[checkpoint]
        return Compared(checkpoint, test, _conversation(prompt))

    def _as_route(self, found: rollout_parts.Route) -> Route:
        routing = Routing(found.arm, found.share, found.step, found.checkpoint)
        if found.checkpoint is None:
            return Route(Mode(AUTO, Auto(), REFERENCE), routing, self)
        mode = Mode(AUTO, Single(), self._served.names[found.checkpoint])
        return Route(mode, routing, self, on_failure=partial(self._failed, found))


def _conversation(prompt: Prompt) -> str:
    return opening_of(prompt.text or "", prompt.messages or None)
