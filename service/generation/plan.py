"""The plan of a request: its mode, sampling and prompts, with defaults filled in and limits checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

from service.generation.references import check_limit
from service.runtime.modes import Mode
from service.runtime.prompt import PromptRequest, PromptResult
from service.runtime.routing import Budget, Route, Router, Wish
from service.runtime.runtime import Runtime
from service.schemas import GenerateRequest, SamplingFields
from service.settings import AUTO
from service.strategies import UNOBSERVED, Observer
from service.strategies.bon import Bon
from service.strategies.request_fields import settings_in
from vbon.engine import Sampling
from vbon.engine.continuation import LOOKING_BACK
from vbon.errors import EngineError, InvalidInputError, RequestTimeoutError, VbonError
from vbon.prompts import Prompt

# The header of its_hub with the number of generations.
GENERATIONS = "X-ITS-Budget"
# Sampling parameters that measured settings have too; the request's own values win.
_OWN = frozenset({"max_tokens", "temperature", "top_p", "top_k"})
# Parameters with which a token depends on the tokens of the answer before it.


@dataclass(frozen=True, slots=True)
class Plan:
    """A request whose mode, limits and defaults are settled.

    Attributes:
        answers: how many candidates are returned for each prompt.
        generations: the most candidates that each answer may have, of a header.
    """

    runtime: Runtime
    request: GenerateRequest
    request_id: str
    mode: Mode
    sampling: Sampling
    num_samples: int
    prompts: list[Prompt]
    answers: int = 1
    generations: int | None = None

    @property
    def most_candidates(self) -> int:
        """The most candidates that may be drawn for one prompt."""
        return self.mode.strategy.most_candidates(self.num_samples)

    @property
    def router(self) -> Router | None:
        """The router of mode ``auto``: the rollout's, unless the request has a budget; ``None`` elsewhere."""
        if self.mode.name != AUTO:
            return None
        rollout, priced = self.runtime.router, self.runtime.priced
        has_budget = self.request.budget is not None or self.generations is not None
        return priced if rollout is None or (has_budget and priced is not None) else rollout

    def route(self, index: int) -> Route | None:
        """The route of a prompt of mode ``auto``; ``None`` in other modes.

        Its policy is served now and may have left later, so nothing may be awaited before it is used.

        Raises:
            InvalidInputError, NotReadyError: as :meth:`Router.route`.
        """
        router = self.router
        return None if router is None else router.route(self._wish(index))

    def _wish(self, index: int) -> Wish:
        request = self.request
        limits = [one for one in (request.num_samples, self.generations) if one is not None]
        return Wish(
            self.prompts[index],
            self.sampling,
            frozenset(request.model_fields_set & _OWN),
            self.num_samples,
            min(limits, default=None),
            self.answers,
            _budget_of(request),
        )

    async def answer_prompt(
        self, index: int, observer: Observer = UNOBSERVED, route: Route | None = None
    ) -> PromptResult:
        """Answer the prompt at ``index``.

        Args:
            route: the route of mode ``auto``, if the caller has it already.

        Raises:
            VbonError: as :meth:`Runtime.answer`.
        """
        route = route or self.route(index)
        request = PromptRequest(
            self.mode if route is None else route.mode,
            self.prompts[index],
            self.sampling if route is None else route.sampling or self.sampling,
            self.num_samples if route is None else route.num_samples or self.num_samples,
            f"{self.request_id}-{index}",
            score=self.request.score,
            timeout_s=self.request.timeout_s,
            answers=self.answers,
            clip=self.request.max_tokens is None,
            observer=observer,
            collected_as=None if self.request.store is False else self.request_id,
            routing=None if route is None else route.routing,
        )
        if route is None:
            return await self.runtime.answer(request)
        return await self._answer_routed(request, route, index)

    async def _answer_routed(
        self, request: PromptRequest, route: Route, index: int
    ) -> PromptResult:
        """Answer in mode ``auto``: by another route if the engine of a sample fails before a token is sent.

        That route has what is left of the time limit, which is nothing if that was the failure.
        """
        runtime, router, begun_s = self.runtime, route.router, perf_counter()
        try:
            result = await runtime.answer(request)
        except (EngineError, RequestTimeoutError) as error:
            if route.on_failure is not None:
                route.on_failure(request, error)
            is_over = isinstance(error, RequestTimeoutError) or request.observer.has_tokens
            if route.mode.strategy.reranks or is_over:
                raise
            try:
                route = router.fall_back(route, self._wish(index))
            except (
                VbonError
            ):  # no other setting may answer, and the failure is what the client must know
                raise error from None
            request = replace(
                request,
                mode=route.mode,
                routing=route.routing,
                sampling=route.sampling or self.sampling,
                num_samples=route.num_samples or self.num_samples,
                spent_s=perf_counter() - begun_s,
            )
            result = await runtime.answer(request)
        router.answered(route, request, result)
        return result


def make_plan(
    runtime: Runtime,
    mode_name: str | None,
    request: GenerateRequest,
    request_id: str,
    policy: str | None = None,
    answers: int = 1,
    generations: int | None = None,
) -> Plan:
    """Settle the mode, sampling and prompts of a request.

    Args:
        answers: how many candidates to return for each prompt. A default N that is lower is raised to it.
        generations: the most candidates that each answer may have; N is lowered to it.

    Raises:
        InvalidInputError: the mode is unknown, a setting does not belong to it, or a limit is exceeded.
    """
    mode = runtime.mode(mode_name or runtime.settings.default_mode, settings_in(request), policy)
    if isinstance(request.n, list) and (not isinstance(mode.strategy, Bon) or mode.name == AUTO):
        raise InvalidInputError(
            f"mode {mode.name!r} takes a single n; only mode 'bon' takes a list, because the candidates "
            "for its largest n estimate the rewards of all the others",
            field="n",
        )
    chat = request.messages is not None
    request = _with_sampling_of(mode, request)
    asked = request.num_samples if request.num_samples is not None else mode.num_samples
    if asked is None and mode.name == AUTO:
        asked = runtime.settings.auto_n
    sampling, num_samples = resolve_sampling(request, asked, runtime, chat=chat)
    if request.max_tokens is None and "max_tokens" in mode.sampling:
        sampling = replace(sampling, max_tokens=mode.sampling["max_tokens"])
    # The engine computes log-probabilities only if the request returns them.
    sampling = replace(sampling, logprobs=request.logprobs or request.return_candidates)
    check_limit("prompts", len(request.prompts or ()), runtime.settings.limits.max_prompts)
    if generations is not None and not isinstance(request.n, list):
        num_samples = min(num_samples, generations)
    if request.num_samples is None:
        num_samples = max(num_samples, answers)
    plan = Plan(
        runtime,
        request,
        request_id,
        mode,
        sampling,
        num_samples,
        request.to_prompts(),
        answers,
        generations,
    )
    _check(plan)
    return plan


def _with_sampling_of(mode: Mode, request: GenerateRequest) -> GenerateRequest:
    """The request with the mode's own sampling, where it does not send any.

    Its ``max_tokens`` stays out, so that it is lowered to the room that a long prompt leaves.
    """
    sent = {name for name in request.model_fields_set if getattr(request, name) is not None}
    own = {name: value for name, value in mode.sampling.items() if name != "max_tokens"}
    missing = {name: value for name, value in own.items() if name not in sent}
    return request.model_copy(update=missing) if missing else request


def _check(plan: Plan) -> None:
    request, limits = plan.request, plan.runtime.settings.limits
    check_limit("n", plan.answers, limits.max_n)
    check_limit("max_n", plan.most_candidates, limits.max_n)
    if plan.mode.strategy.reranks and plan.num_samples < plan.answers:
        raise InvalidInputError(
            f"best_of is {plan.num_samples}, below n, the number of answers, which is {plan.answers}; raise "
            "best_of or lower n",
            field="best_of",
        )
    if request.store and plan.runtime.collect is None:
        raise InvalidInputError(
            "store is true, but this server stores no answers; leave it out", field="store"
        )
    if request.timeout_s is not None:
        check_limit("timeout_s", request.timeout_s, limits.timeout_s)
    if request.stream and request.prompts is not None:
        raise InvalidInputError(
            "stream takes one prompt; send `prompt` or `messages`, not `prompts`", field="prompts"
        )
    check_steering(plan.mode, plan.sampling)
    _check_budget(plan)


def _check_budget(plan: Plan) -> None:
    """Check that a budget is for a mode that plans it, and that the mode keeps to the number of candidates.

    Raises:
        InvalidInputError: it is not, or does not.
    """
    strategy, most = plan.mode.strategy, plan.generations
    drawn = plan.most_candidates if strategy.reranks else plan.answers
    if most is not None and max(drawn, plan.answers) > most:
        raise InvalidInputError(
            f"mode {plan.mode.name!r} draws up to {max(drawn, plan.answers)} candidates, over the {most} "
            f"of {GENERATIONS}; lower n, and max_n of modes that have it",
            field=GENERATIONS,
        )
    if plan.request.budget is None:
        return
    if plan.mode.name != AUTO:
        raise InvalidInputError(
            f"mode {plan.mode.name!r} has a fixed cost, so it takes no budget; ask for mode {AUTO!r}, or "
            "leave budget out",
            field="budget",
        )
    if plan.runtime.priced is None:
        raise InvalidInputError(
            "this server has no table of measured settings, so it cannot plan a budget; leave budget out, or "
            "give it a table (--auto.table FILE, or PUT /auto/table)",
            field="budget",
        )


def _budget_of(request: GenerateRequest) -> Budget | None:
    found = request.budget
    if found is None:
        return None
    if found.tokens is not None:
        return Budget("tokens", found.tokens)
    if found.money is not None:
        return Budget("money", found.money)
    assert found.reward is not None  # the schema wants exactly one
    return Budget("reward", found.reward)


def check_fixed(mode: Mode, field: str) -> None:
    """Check that a mode that is compared with others is one thing throughout.

    Raises:
        InvalidInputError: it is ``auto``, which chooses another mode for each prompt.
    """
    if mode.name == AUTO:
        raise InvalidInputError(
            f"mode {AUTO!r} answers each prompt with best-of-N, a checkpoint or another measured setting, so "
            "it cannot be compared; compare 'bon' and the checkpoint's policy",
            field=field,
        )


def check_steering(mode: Mode, sampling: Sampling) -> None:
    """Check that a mode can sample in this way.

    Raises:
        InvalidInputError: it continues partial answers, and a parameter looks back at their beginnings.
    """
    looking_back = [name for name in LOOKING_BACK if name in sampling.steering]
    if mode.strategy.continues and looking_back:
        raise InvalidInputError(
            f"mode {mode.name!r} takes no {' or '.join(looking_back)}, because it lets the engine "
            "continue partial answers, whose beginnings the engine then takes for prompts; leave it out, or "
            "use another mode",
            field=looking_back[0],
        )


def resolve_sampling(
    fields: SamplingFields, asked: int | None, runtime: Runtime, *, chat: bool = False
) -> tuple[Sampling, int]:
    """The sampling parameters of a request and its N, with the server's defaults filled in.

    Args:
        asked: the N that the request asks for; ``None`` means the server's default.
        chat: whether the prompt is a chat, whose answer may be longer by default.

    Raises:
        InvalidInputError: a limit is exceeded; names the field and the limit.
    """
    settings, default = runtime.settings, runtime.default_sampling
    num_samples = asked if asked is not None else settings.default_n
    max_tokens = default.chat_max_tokens if chat else default.max_tokens
    sampling = fields.to_sampling(max_tokens, default.temperature)
    check_limit("n", num_samples, settings.limits.max_n)
    check_limit("max_tokens", sampling.max_tokens, settings.limits.max_tokens)
    return sampling, num_samples
