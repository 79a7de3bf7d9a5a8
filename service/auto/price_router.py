"""The router by price: answers each prompt of mode ``auto`` with the best measured setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace

from service.auto.choice import Choice, Option, Prices, option_of
from service.auto.compared import MOST_KINDS, Compared, Recent
from service.auto.table_in_use import TableInUse
from service.auto.usable import Usable, UsableRow
from service.runtime.modes import Mode
from service.runtime.prompt import PromptRequest, PromptResult
from service.runtime.routing import Expected, PriceRouting, Route, Wish
from service.runtime.runtime import Runtime
from service.settings import AUTO, REFERENCE
from service.strategies import AutoByPrice, Single, Strategy
from service.strategies.rerank import Reranker
from vbon.engine import Sampling
from vbon.errors import InvalidInputError, NotReadyError
from vbon.measured.table import MeasuredSetting

# Sampling parameters that rows have; a request that sets one of its own is answered with that.
_MEASURED = ("max_tokens", "temperature", "top_p", "top_k")
_RESHAPING = frozenset(_MEASURED[1:])
# Others that change answers, with the values that change nothing.
_OTHERS = {"stop": (), "stop_token_ids": (), "min_tokens": 0, "ignore_eos": False}
# Parameters with which a token depends on the tokens of the answer before it.
_LOOKING_BACK = frozenset({"response_format", "frequency_penalty", "presence_penalty"})


class PriceRouter:
    """A :class:`~service.runtime.routing.Router` over the table in use.

    Attributes:
        answers: answers by the mode and the policy of their setting.
        tokens: their generated tokens, in the same way; ``expected_tokens`` those that were expected.
        budgets: answers with a budget, by its kind and whether it is expected to be met.
        unmeasured: prompts for which no measured setting could be used, by ``stale`` and ``request``.
        fallbacks: prompts whose engine died or failed while it answered them.
    """

    def __init__(self, runtime: Runtime, table: TableInUse, prices: Prices) -> None:
        self._runtime, self._table, self._prices = runtime, table, prices
        self.answers: Counter[tuple[str, str]] = Counter()
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.expected_tokens: Counter[tuple[str, str]] = Counter()
        self.budgets: Counter[tuple[str, str]] = Counter()
        self.unmeasured: Counter[str] = Counter({"stale": 0, "request": 0})
        self.fallbacks = 0
        self._usable: Usable | None = None
        self._recent: Recent[Compared] = Recent(MOST_KINDS)

    def route(self, wish: Wish) -> Route:
        """The best measured setting for a prompt; best-of-N if none can be used and there is no budget."""
        return self._route(wish)

    def _route(self, wish: Wish, failed: str | None = None) -> Route:
        """The route of a prompt, by another policy than one that has failed, if there is any.

        It is asked for in the event loop, so what it compares is kept while nothing that decides it changes.
        """
        usable = self._table.usable()
        if not usable.rows:
            return self._unmeasured(wish, "stale", " ".join(usable.reasons[:3]))
        if usable is not self._usable:
            self._usable = usable
            self._recent.clear()
        found = self._recent.get(
            self._kind(wish, failed), lambda: self._compared(usable, wish, failed)
        )
        if not found.rows:
            return self._unmeasured(wish, "request", self._why_none_fits(wish))
        return self._as_route(*found.chosen(self._prices, wish.budget), wish)

    def _kind(self, wish: Wish, failed: str | None) -> Hashable:
        """Everything that decides which settings fit a request and what they cost, but for the table."""
        reward, engines = self._runtime.reward, self._runtime.policies.items()
        sampling = wish.sampling
        return (
            replace(sampling, seed=None, logit_bias=None, response_format=None),
            repr((sampling.logit_bias, sampling.response_format)),  # mappings have no hash
            wish.chosen,
            wish.most_candidates,
            wish.answers,
            bool(wish.prompt.tools),
            failed,
            reward is not None and reward.alive,
            tuple((name, one.alive, one.finds_calls, one.info) for name, one in engines),
        )

    def _compared(self, usable: Usable, wish: Wish, failed: str | None) -> Compared:
        """The settings that can answer a request, of another policy than one that has failed, if any are."""
        samplings = _Samplings(wish)
        fitting = [one for one in usable.rows if self._fits(one, wish, samplings.of(one.row))]
        # If all engines are dead, the request gets the error of the best setting's own.
        fitting = [one for one in fitting if self._is_alive(one)] or fitting
        fitting = [one for one in fitting if one.row.policy != failed] or fitting
        rows = _sampled_alike(fitting, wish, samplings)
        return Compared(rows, [self._option(one, wish) for one in rows])

    def fall_back(self, route: Route, wish: Wish) -> Route:
        """The best setting of the other policies whose engines are alive."""
        self.fallbacks += 1
        return replace(self._route(wish, route.mode.policy), fell_back=True)

    def answered(self, route: Route, request: PromptRequest, result: PromptResult) -> None:
        """Count an answer and its tokens beside those that were expected."""
        routing = route.routing
        assert isinstance(routing, PriceRouting)  # a route of this router
        if routing.budget is not None:
            self.budgets[routing.budget.kind, "yes" if routing.met else "no"] += 1
        label = (routing.mode, routing.policy)
        self.answers[label] += 1
        self.tokens[label] += result.outcome.generated_tokens
        if routing.expected is not None:
            samples = 1 if request.mode.strategy.reranks else request.answers
            self.expected_tokens[label] += round(routing.expected.generated_tokens.mean * samples)

    def _fits(self, usable: UsableRow, wish: Wish, sampling: Sampling) -> bool:
        """Tell whether a setting can make the answers that a request asks for, with a sampling."""
        row, strategy, most = usable.row, usable.strategy, wish.most_candidates
        drawn = strategy.most_candidates(row.n) if strategy.reranks else wish.answers
        if most is not None and drawn > most:
            return False
        if strategy.reranks and min(row.n, drawn) < wish.answers:
            return False
        if strategy.continues and _LOOKING_BACK & set(sampling.steering):
            return False
        policies = self._runtime.policies
        reference, engine = policies.get(REFERENCE), policies[row.policy]
        told = reference is not None and reference.finds_calls
        if wish.prompt.tools and told and not engine.finds_calls:
            return False
        try:
            strategy.with_answers(wish.answers)
            if isinstance(strategy, Reranker):
                strategy.check(sampling, engine)
        except InvalidInputError:
            return False
        return True

    def _is_alive(self, usable: UsableRow) -> bool:
        engine, reward = self._runtime.policies[usable.row.policy], self._runtime.reward
        if not engine.alive:
            return False
        return not usable.strategy.needs_reward or (reward is not None and reward.alive)

    def _option(self, usable: UsableRow, wish: Wish) -> Option:
        row, strategy = usable.row, usable.strategy
        return option_of(
            row,
            self._prices,
            concurrency=self._table.concurrency,
            most_candidates=strategy.most_candidates(row.n) if strategy.reranks else 1,
            max_tokens=wish.sampling.max_tokens if "max_tokens" in wish.chosen else None,
            samples=1 if strategy.reranks else wish.answers,
        )

    def _as_route(self, usable: UsableRow, choice: Choice, wish: Wish) -> Route:
        row, sampling = usable.row, _sampling(usable.row, wish)
        routing = PriceRouting(
            mode=row.mode,
            policy=row.policy,
            n=row.n,
            settings=row.settings,
            why=choice.why,
            expected=Expected(
                reward=row.reward,
                gold=row.gold,
                win_rate=row.win_rate,
                generated_tokens=row.generated_tokens,
                latency_mean_s=row.latency_mean_s,
                latency_p95_s=row.latency_p95_s,
                money=choice.option.money,
            ),
            budget=wish.budget,
            met=choice.met,
            differs=_differences(row, sampling),
            max_tokens=sampling.max_tokens,
        )
        mode = Mode(AUTO, usable.strategy, row.policy)
        return Route(mode, routing, self, sampling, row.n)

    def _unmeasured(self, wish: Wish, kind: str, reason: str) -> Route:
        """Best-of-N of the reference policy, or one sample of it without a reward model.

        Raises:
            InvalidInputError, NotReadyError: the request has a budget, which nothing measured can plan.
        """
        self.unmeasured[kind] += 1
        if wish.budget is not None and kind == "stale":
            raise NotReadyError(
                f"the budget cannot be planned, because the measured settings of this server are stale: "
                f"{reason} An admin can send new ones with PUT /auto/table; leave budget out meanwhile"
            )
        if wish.budget is not None:
            raise InvalidInputError(
                f"the budget cannot be planned: {reason} Change these, or leave budget out",
                field="budget",
            )
        strategy: Strategy = AutoByPrice() if self._runtime.reward is not None else Single()
        num_samples = min(wish.num_samples, wish.most_candidates or wish.num_samples)
        num_samples = max(num_samples, wish.answers)
        routing = PriceRouting(
            mode="bon" if strategy.reranks else REFERENCE,
            policy=REFERENCE,
            n=num_samples if strategy.reranks else 1,
            settings={},
            why=f"No measured setting can be used, so this is the server's default. {reason}",
            expected=None,
        )
        return Route(Mode(AUTO, strategy, REFERENCE), routing, self, None, num_samples)

    def _why_none_fits(self, wish: Wish) -> str:
        asked = []
        if wish.most_candidates is not None:
            asked.append(f"at most {wish.most_candidates} candidates")
        if wish.answers > 1:
            asked.append(f"{wish.answers} answers")
        asked += [name for name in wish.sampling.steering if name not in _RESHAPING]
        return (
            f"No usable setting fits what the request asks for ({', '.join(asked) or 'its tools'})."
        )


def _sampling(row: MeasuredSetting, wish: Wish) -> Sampling:
    """The sampling of a prompt: what the request sets itself, and otherwise what was measured."""
    measured = {name: getattr(row, name) for name in _MEASURED if name not in wish.chosen}
    if "top_k" in measured:
        measured["top_k"] = max(measured["top_k"], 0)
    return replace(wish.sampling, **measured)


class _Samplings:
    """The samplings of one prompt by settings; most of a table share a few, each of which is made once."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._made: dict[tuple[float, ...], tuple[Sampling, bool]] = {}

    def of(self, row: MeasuredSetting) -> Sampling:
        """The sampling of the prompt by a setting."""
        return self._get(row)[0]

    def is_measured(self, row: MeasuredSetting) -> bool:
        """True if the distribution of a token is that of the measurement, as far as the request goes."""
        return self._get(row)[1]

    def _get(self, row: MeasuredSetting) -> tuple[Sampling, bool]:
        key = (row.max_tokens, row.temperature, row.top_p, row.top_k)
        if key not in self._made:
            sampling = _sampling(row, self._wish)
            self._made[key] = sampling, not _RESHAPING & set(_differences(row, sampling))
        return self._made[key]


def _sampled_alike(
    rows: Sequence[UsableRow], wish: Wish, samplings: _Samplings
) -> Sequence[UsableRow]:
    """The settings that were measured with the request's own sampling, if any were.

    Otherwise it is all of them; at temperature 0, where all candidates are the same, those of one candidate,
    if there are any.
    """
    alike = [one for one in rows if samplings.is_measured(one.row)]
    if alike:
        return alike
    if wish.sampling.temperature == 0 and "temperature" in wish.chosen:
        return [one for one in rows if not one.strategy.reranks] or rows
    return rows


def _differences(row: MeasuredSetting, sampling: Sampling) -> tuple[str, ...]:
    """The names of the parameters with which an answer is sampled in another way than was measured."""
    # Built from the row's own values, so that what Sampling itself replaces is no difference.
    measured = replace(
        sampling, **{name: getattr(row, name) for name in _MEASURED} | {"top_k": max(row.top_k, 0)}
    )
    changed = [name for name in _MEASURED if getattr(measured, name) != getattr(sampling, name)]
    changed += [name for name in sampling.steering if name not in _MEASURED]
    changed += [name for name, neutral in _OTHERS.items() if getattr(sampling, name) != neutral]
    return tuple(changed)
