"""Every objective against enumeration of a tiny vocabulary (tests/unit/toy.py).

Gradients: 40 batches are drawn as the trainer draws them and the mean gradient of the objective's own
loss is compared with central finite differences of the objective summed over all texts. The largest
of 21 t-statistics (39 degrees of freedom) must stay below 5.5: for a right estimator that fails with a
probability of about 5e-5 a case. The seeds are fixed, so a passing case passes for ever.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from pydantic import ValidationError  # noqa: E402

from tests.unit.toy import (  # noqa: E402
    LOG_P,
    MASK,
    REFERENCE,
    REWARD,
    SMALLEST,
    STATE,
    STRICT,
    TEXTS,
    TOKENS,
    UP_TO,
    VOCABULARY,
    P,
    Toy,
    batch_for,
    bon,
    cdf,
    kl,
    log_probability,
    samples_of_texts,
    table,
    token_terms,
    win_rate,
)
from training.objectives import OBJECTIVES, objective_type  # noqa: E402
from training.objectives.bon_aware_rl import BonAwareRl, marginal_gain  # noqa: E402
from training.objectives.bon_aware_sft import BonAwareSft, win_gradient_weights  # noqa: E402
from training.objectives.bon_sft import BonSft  # noqa: E402
from training.objectives.bonbon import Bonbon  # noqa: E402
from training.objectives.bond import Bond  # noqa: E402
from training.objectives.dpo import Dpo  # noqa: E402
from training.objectives.j_bond import JBond  # noqa: E402
from training.objectives.kl_rl import KlRl  # noqa: E402
from training.objectives.policy_gradient import (  # noqa: E402
    leave_one_out,
    policy_gradient_loss,
    sampled_kl_loss,
)
from training.objectives.protocol import Objective, StepBatch  # noqa: E402
from training.objectives.qrpo import Qrpo  # noqa: E402
from training.objectives.vbon import Vbon, exact_log_weight  # noqa: E402
from training.objectives.wind import Wind, win_in_group  # noqa: E402
from training.train.config import train_config_type  # noqa: E402
from vbon.errors import InvalidInputError  # noqa: E402
from vbon.maths.distribution import bon_pmf, bon_pmf_binomial  # noqa: E402

Exact = Callable[[torch.Tensor], torch.Tensor]


def regularised(reward: torch.Tensor, beta: float) -> Exact:
    """-(E_q[R] - beta KL(q || p))."""

    def value(logits: torch.Tensor) -> torch.Tensor:
        log_q = log_probability(logits)
        return -(log_q.exp() * (reward - beta * (log_q - LOG_P))).sum()

    return value


def exact_vbon(n: float, bound: str) -> Exact:
    if bound == "exact":
        # minus KL(q || p_bon), summed; a text of no chance under p_bon has none in the toy
        def value(logits: torch.Tensor) -> torch.Tensor:
            q = log_probability(logits).exp()
            return kl(q, bon(P, n)) / (n - 1)

        return value
    log_cdf = STRICT.clamp(min=SMALLEST).log().float().double()
    if bound == "lower":
        return regularised(log_cdf, 1 / (n - 1))

    def l1(logits: torch.Tensor) -> torch.Tensor:
        """gamma E[log F] - alpha H(q) - beta KL, as the paper writes it, over -(N-1)."""
        gamma, alpha, beta = n * (n - 1) / 2, (n + 2) * (n - 1) / 2, n * (n + 1) / 2
        log_q = log_probability(logits)
        q = log_q.exp()
        entropy = -(q * log_q).sum()
        return -(gamma * (q * log_cdf).sum() - alpha * entropy - beta * kl(q, P)) / (n - 1)

    return l1


def log_weight(n: float, bound: str, floor: float | None) -> torch.Tensor:
    """log p_bon/p of every text by a bound, at least -floor."""
    exact = bon(P, n).log() - LOG_P
    weight = exact if bound == "exact" else math.log(n) + (n - 1) * STRICT.clamp(min=SMALLEST).log()
    return weight if floor is None else weight.clamp(min=-floor)


def exact_floored_vbon(n: float, floor: float) -> Exact:
    return regularised(log_weight(n, "lower", floor) / (n - 1), 1 / (n - 1))


def exact_cached_vbon(n: float, bound: str, weight: float, floor: float | None) -> Exact:
    """The on-policy part, and half of the squared residual under best-of-n, weighted; over N - 1."""
    target = log_weight(n, bound, floor)

    def value(logits: torch.Tensor) -> torch.Tensor:
        log_q = log_probability(logits)
        ratio = log_q - LOG_P
        own = (log_q.exp() * (ratio - target)).sum()
        regression = (bon(P, n) * (target - ratio) ** 2).sum() / 2
        return ((1 - weight) * own + weight * regression) / (n - 1)

    return value


def best_and_worst(n: int) -> torch.Tensor:
    """P[best of n is text a and worst is text b], shape (15, 15)."""
    order = REWARD.argsort()
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), P[order].cumsum(0)])

    def within(low: int, high: int) -> float:
        return float(cumulative[high + 1] - cumulative[low]) ** n if high >= low else 0.0

    joint = torch.zeros(len(TEXTS), len(TEXTS), dtype=torch.float64)
    for high, low in itertools.product(range(len(TEXTS)), repeat=2):
        if high >= low:
            joint[order[high], order[low]] = (
                within(low, high) - within(low + 1, high) - within(low, high - 1)
                + within(low + 1, high - 1)
            )  # fmt: skip
    return joint


def pairwise(n: int, loss: Callable[[torch.Tensor], torch.Tensor]) -> Exact:
    """Mean loss of the margin over pairs; those whose rewards are equal count nothing."""
    joint = best_and_worst(n)
    apart = joint * (1 - torch.eye(len(TEXTS)))

    def value(logits: torch.Tensor) -> torch.Tensor:
        ratio = log_probability(logits) - LOG_P
        margin = ratio[:, None] - ratio[None, :]
        return (apart * loss(margin)).sum()

    return value


def exact_bonbon(n: int, weight: float) -> Exact:
    target = (n - 1) * sum(1 / k for k in range(1, n))
    ipo = pairwise(n, lambda margin: (margin - target) ** 2)
    return lambda logits: (
        -weight * (bon(P, n) * log_probability(logits)).sum() + (1 - weight) * ipo(logits)
    )


def exact_bond(n: int, b: float) -> Exact:
    def value(logits: torch.Tensor) -> torch.Tensor:
        log_q = log_probability(logits)
        q = log_q.exp()
        forward = -(bon(P, n) * log_q).sum()
        backward = kl(q, P) - (n - 1) * (q * UP_TO.clamp(max=1).log()).sum()
        return (1 - b) * forward + b * backward

    return value


def exact_j_bond(anchor: torch.Tensor, b: float, g: float) -> Exact:
    a = log_probability(anchor).exp()

    def value(logits: torch.Tensor) -> torch.Tensor:
        log_q = log_probability(logits)
        q = log_q.exp()
        reward = -math.log(16) * (1 - cdf(a, True)) ** 2
        divergence = kl(q, a)
        forward = -(bon(a, 2) * log_q).sum()
        return (1 - b) * forward + b * (divergence - (q * reward).sum()) + g * divergence

    return value


def exact_wind(drawn_from: torch.Tensor, beta: float, eta: float, group: int) -> Exact:
    """(1 - 1/G) (Var h - 2 Cov(P, h)) under q_t: least where h - E h = P - 1/2."""
    q_t = log_probability(drawn_from).exp()
    win = (cdf(q_t, False) + cdf(q_t, True)) / 2

    def value(logits: torch.Tensor) -> torch.Tensor:
        log_q = log_probability(logits)
        h = ((1 + eta * beta) * log_q - q_t.log() - eta * beta * LOG_P) / eta
        mean = (q_t * h).sum()
        variance = (q_t * (h - mean) ** 2).sum()
        covariance = (q_t * (h - mean) * win).sum()
        return (1 - 1 / group) * (variance - 2 * covariance)

    return value


def exact_bon_aware_rl(n: int, beta: float) -> Exact:
    def value(logits: torch.Tensor) -> torch.Tensor:
        q = log_probability(logits).exp()
        return -(bon(q, n) * REWARD).sum() + beta * kl(q, P)

    return value


def exact_bon_aware_sft(n: int, expert: int) -> Exact:
    def value(logits: torch.Tensor) -> torch.Tensor:
        log_q = log_probability(logits)
        below = cdf(log_q.exp(), False)
        # The worst text has F = 0 whatever q is: it gives log F no gradient.
        log_below = torch.where(below > 0, below.clamp(min=1e-12).log(), 0.0)
        return -(bon(P, expert) * (log_q + (n - 1) * log_below)).sum()

    return value


def exact_qrpo(beta: float, transform: str) -> Exact:
    reward = UP_TO.clamp(max=1).log() if transform == "log" else UP_TO
    partition = 1 / (1 + 1 / beta) if transform == "log" else beta * (math.exp(1 / beta) - 1)

    def value(logits: torch.Tensor) -> torch.Tensor:
        residual = reward / beta - math.log(partition) - (log_probability(logits) - LOG_P)
        return (P * residual**2).sum()

    return value


ANCHOR = table(4)
LOG_CDF = STRICT.clamp(min=SMALLEST).log()

CASES: dict[str, tuple[Objective, Exact, Toy]] = {}


def case(name: str, objective: Objective, exact: Exact, groups: int = 600, group: int = 4) -> None:
    seed = sum(ord(letter) for letter in name)
    CASES[name] = (objective, exact, Toy(torch.Generator().manual_seed(seed), groups, group))


# The paper's vBoN: the policy's own samples alone, without a floor, the KL exact per token.
PLAIN: dict[str, Any] = {
    "num_samples": 3, "cached_weight": 0, "floor_nats": None, "kl_estimator": "exact"
}  # fmt: skip
for bound in ("lower", "exact", "l1"):
    case(f"vbon-{bound}", Vbon(**PLAIN | {"bound": bound}), exact_vbon(3, bound))
case("vbon-sampled-kl", Vbon(**PLAIN | {"kl_estimator": "sampled"}), exact_vbon(3, "lower"))
case("vbon-no-baseline", Vbon(**PLAIN | {"baseline": "none"}), exact_vbon(3, "lower"))
case("vbon-floor", Vbon(**PLAIN | {"floor_nats": 1.0}), exact_floored_vbon(3, 1.0))
case("vbon-cached", Vbon(num_samples=3), exact_cached_vbon(3, "lower", 0.5, 6.0))
case("vbon-aim", Vbon(num_samples=3, aim=3.7), exact_cached_vbon(3.7, "lower", 0.5, 6.0))
for bound in ("lower", "l1"):
    case(f"vbon-aim-{bound}", Vbon(**PLAIN | {"bound": bound, "aim": 4.5}), exact_vbon(4.5, bound))
case("vbon-aim-exact", Vbon(**PLAIN | {"bound": "exact", "aim": 4}), exact_vbon(4, "exact"))
case("vbon-cached-exact",
     Vbon(num_samples=3, bound="exact", cached_weight=0.3, floor_nats=None, kl_estimator="exact"),
     exact_cached_vbon(3, "exact", 0.3, None))  # fmt: skip
case("kl-rl", KlRl(beta=0.3), regularised(REWARD, 0.3))
for transform, transformed in (
    ("quantile", STRICT.clamp(min=SMALLEST)),
    ("log", LOG_CDF),
    ("exp", (3 * (STRICT.clamp(min=SMALLEST) - 1)).exp()),
):
    case(
        f"kl-rl-{transform}",
        KlRl(beta=0.3, transform=transform, tilt=3),
        regularised(transformed, 0.3),
    )
case("dpo", Dpo(num_samples=3, beta=0.5),
     pairwise(3, lambda m: -torch.nn.functional.logsigmoid(0.5 * m)))  # fmt: skip
case("bon-sft", BonSft(num_samples=3), lambda x: -(bon(P, 3) * log_probability(x)).sum())
case("bonbon", Bonbon(num_samples=3, sft_weight=0.4), exact_bonbon(3, 0.4))
case("bond", Bond(num_samples=3, backward_weight=0.3), exact_bond(3, 0.3))
case("j-bond", JBond(backward_weight=0.4, anchor_weight=0.2), exact_j_bond(ANCHOR, 0.4, 0.2))
case("wind", Wind(beta=0.4, step_size=0.8), exact_wind(table(6), 0.4, 0.8, 4))
case("bon-aware-rl", BonAwareRl(num_samples=3, beta=0.2), exact_bon_aware_rl(3, 0.2))
case("bon-aware-rl-tight", BonAwareRl(num_samples=4, beta=0.2), exact_bon_aware_rl(4, 0.2))
case("qrpo", Qrpo(beta=0.4), exact_qrpo(0.4, "identity"))
case("qrpo-log", Qrpo(beta=0.4, transform="log"), exact_qrpo(0.4, "log"))


def finite_differences(exact: Exact, logits: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    gradient = torch.zeros_like(logits)
    for place in itertools.product(*(range(size) for size in logits.shape)):
        shift = torch.zeros_like(logits)
        shift[place] = step
        gradient[place] = (exact(logits + shift) - exact(logits - shift)) / (2 * step)
    return gradient


def drawn_gradients(objective: Objective, toy: Toy, logits: torch.Tensor, n: int) -> torch.Tensor:
    """Gradients of the objective's loss on n batches, shape (n, 7, 3)."""
    gradients = []
    for _ in range(n):
        point = logits.clone().requires_grad_()
        source = table(6) if isinstance(objective, Wind) else None
        loss = objective.loss(batch_for(objective, point, toy, ANCHOR, source))
        gradients.append(torch.autograd.grad(loss, point)[0])
    return torch.stack(gradients)


@pytest.mark.parametrize("name", sorted(CASES))
def test_gradient_matches_finite_differences_of_the_exact_objective(name: str) -> None:
    objective, exact, toy = CASES[name]
    logits = table(3)
    wanted = finite_differences(exact, logits)
    found = drawn_gradients(objective, toy, logits, 40)
    error = found.std(0) / math.sqrt(40)
    # Directions without noise (the rounding of float32) are compared as they are.
    t = (found.mean(0) - wanted).abs() / (error + 1e-5)
    assert float(t.max()) < 5.5
    assert float(wanted.abs().max()) > 10 * float(error.median())  # the test can see the gradient


def test_bon_aware_sft_gradient_within_its_stated_bias() -> None:
    """1/F^ is biased by O(1/G): with G = 256 every coordinate is within 2% of the largest."""
    objective = BonAwareSft(num_samples=3, expert_samples=6)
    toy = Toy(torch.Generator().manual_seed(5), 400, 256)
    wanted = finite_differences(exact_bon_aware_sft(3, 6), table(3))
    found = drawn_gradients(objective, toy, table(3), 4).mean(0)
    assert float((found - wanted).abs().max()) < 0.02 * float(wanted.abs().max())


def test_every_objective_has_a_case() -> None:
    checked = {type(objective) for objective, _, _ in CASES.values()} | {BonAwareSft}
    missing = [name for name in OBJECTIVES.built_in if objective_type(name) not in checked]
    assert not missing, (
        f"no test case for {', '.join(missing)}: add one with case(name, objective, exact objective) in "
        "tests/unit/test_objectives.py"
    )
    assert checked <= {objective_type(name) for name in OBJECTIVES.built_in}


# --- Optima ---------------------------------------------------------------------------------------


def descend(exact: Exact) -> torch.Tensor:
    """Probabilities at the optimum that L-BFGS reaches from the reference."""
    logits = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = exact(logits)
        value.backward()
        return value

    optimizer.step(loss)
    return log_probability(logits).exp().detach()


def exact_of(objective: Vbon | KlRl) -> Exact:
    """The expected loss by the objective's own reward and coefficient, summed over all texts."""
    everything = samples_of_texts(REFERENCE, torch.arange(len(TEXTS)), 1, REFERENCE, own=True)
    reward = objective.sequence_reward(everything).double()
    return regularised(reward, objective.kl_coefficient)


def test_vbon_exact_reaches_the_bon_distribution() -> None:
    reached = descend(exact_of(Vbon(num_samples=4, bound="exact", floor_nats=None)))
    np.testing.assert_allclose(reached, bon_pmf(P.numpy(), REWARD.numpy(), 4), atol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9])
def test_vbon_with_cached_samples_has_the_same_optimum(weight: float) -> None:
    reached = descend(exact_cached_vbon(4, "exact", weight, None))
    np.testing.assert_allclose(reached, bon_pmf(P.numpy(), REWARD.numpy(), 4), atol=1e-4)


def logits_of(probability: torch.Tensor) -> torch.Tensor:
    """Logits of every prefix that give the texts these probabilities."""
    mass = torch.zeros_like(REFERENCE)
    for text, (states, tokens, real) in enumerate(zip(STATE, TOKENS, MASK, strict=True)):
        mass.index_put_((states[real], tokens[real]), probability[text], accumulate=True)
    return mass.log()


def largest_gradient(objective: Objective, logits: torch.Tensor) -> float:
    """The largest entry of any single batch's gradient, over 20 batches of two prompts."""
    toy = Toy(torch.Generator().manual_seed(4), 2, 4)
    return float(drawn_gradients(objective, toy, logits, 20).abs().max())


def test_every_gradient_of_vbon_vanishes_at_the_bon_distribution() -> None:
    """Not only their mean: nothing is left to walk at random there. The exact KL leaves noise."""
    optimum = logits_of(bon(P, 4))
    torch.testing.assert_close(log_probability(optimum).exp(), bon(P, 4))
    without_floor: dict[str, Any] = {"num_samples": 4, "bound": "exact", "floor_nats": None}
    assert largest_gradient(Vbon(**without_floor), optimum) < 2e-6
    exact_kl = Vbon(**without_floor, kl_estimator="exact", cached_weight=0)
    assert largest_gradient(exact_kl, optimum) > 0.05
    assert largest_gradient(BonSft(num_samples=4), optimum) > 0.2


@pytest.mark.parametrize("bound", ["lower", "exact"])
def test_the_floor_is_of_the_log_weight(bound: str) -> None:
    """The on-policy reward and the target of cached samples have the same floor, by both bounds."""
    everything = samples_of_texts(REFERENCE, torch.arange(len(TEXTS)), 1, REFERENCE, own=True)
    objective = Vbon(num_samples=4, bound=bound, floor_nats=0.5)
    wanted = log_weight(4, bound, 0.5).float()
    torch.testing.assert_close(objective.log_weight(everything), wanted)
    assert int((wanted == -0.5).sum()) in range(2, len(TEXTS) - 2)
    reward = objective.sequence_reward(everything) * 3
    torch.testing.assert_close(reward - reward.max(), wanted - wanted.max())


def test_the_bound_l1_has_no_optimum_to_regress_cached_samples_onto() -> None:
    with pytest.raises(
        ValidationError, match=r"cached_weight is 0.5, but the optimum .* l1 is not known"
    ):
        Vbon(bound="l1", cached_weight=0.5)
    assert Vbon(bound="l1").samples_needed.cached is None
    assert Vbon(bound="exact").samples_needed.cached is not None


@pytest.mark.parametrize("bound", ["lower", "exact", "l1"])
def test_an_aim_is_the_n_of_everything_but_the_name(bound: str) -> None:
    """A whole aim gives the very losses, samples and rates that this N gives."""
    logits, losses = table(5), []
    for objective in (Vbon(num_samples=5, bound=bound), Vbon(num_samples=4, aim=5, bound=bound)):
        toy = Toy(torch.Generator().manual_seed(6), 2, 4)
        losses.append(float(objective.loss(batch_for(objective, logits, toy))))
        assert objective.peak_learning_rate() == pytest.approx(2e-4 * math.log(5))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] != 0
    assert Vbon(num_samples=4, aim=5).label == "num_samples=4, aim=5.0"
    assert "aim" not in Vbon().model_dump()


def test_a_fractional_aim_is_the_power_of_f_in_the_target() -> None:
    """p_bon/p is 4.5 F^3.5, or e^-6 where that is more; F by enumeration."""
    everything = samples_of_texts(REFERENCE, torch.arange(len(TEXTS)), 1, REFERENCE, own=True)
    below = torch.stack([P[r > REWARD].sum() for r in REWARD])
    wanted = (4.5 * below**3.5).clamp(min=math.exp(-6)).float()
    objective = Vbon(num_samples=4, aim=4.5)
    torch.testing.assert_close(objective.log_weight(everything).exp(), wanted)
    torch.testing.assert_close(
        (3.5 * objective.sequence_reward(everything)).exp() * 4.5, wanted, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 4, "aim": 3.9}, "aim is 3.9, which is less than num_samples, 4"),
        ({"num_samples": 4, "aim": 4.5, "bound": "exact"}, "the bound exact is a sum of N terms"),
        ({"aim": math.inf}, "finite number"),
        ({"aim": math.nan}, "finite number"),
    ],
)
def test_an_aim_must_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Vbon(**settings)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_kl_rl_reaches_the_tilted_reference(beta: float) -> None:
    wanted = torch.softmax(LOG_P + REWARD / beta, 0)
    np.testing.assert_allclose(descend(exact_of(KlRl(beta=beta))), wanted, atol=1e-4)


@pytest.mark.parametrize("transform", ["quantile", "log", "exp"])
def test_kl_rl_reaches_the_reference_tilted_by_the_transform(transform: str) -> None:
    """The transforms' definitions, on the quantiles of all texts of the toy by enumeration."""
    below = torch.stack([P[r > REWARD].sum() for r in REWARD]).clamp(min=SMALLEST)
    reward = {"quantile": below, "log": below.log(), "exp": (4 * below).exp() / math.exp(4)}
    wanted = torch.softmax(LOG_P + reward[transform] / 0.5, 0)
    reached = descend(exact_of(KlRl(beta=0.5, transform=transform, tilt=4)))
    np.testing.assert_allclose(reached, wanted, atol=1e-4)


def test_the_log_transform_is_vbon() -> None:
    """Every single loss and gradient is that of the lower bound with N = 1 + 1 / beta."""
    for seed in range(3):
        found = []
        for objective in (KlRl(beta=0.5, transform="log"), Vbon(**PLAIN)):
            point = REFERENCE.clone().requires_grad_()
            toy = Toy(torch.Generator().manual_seed(seed), 3, 4)
            loss = objective.loss(batch_for(objective, point, toy, ANCHOR, None))
            found.append((loss.detach(), torch.autograd.grad(loss, point)[0]))
        torch.testing.assert_close(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1])


def test_without_a_transform_the_reward_is_raw() -> None:
    everything = samples_of_texts(REFERENCE, torch.arange(len(TEXTS)), 1, REFERENCE, own=True)
    assert KlRl().sequence_reward(everything) is everything.reward_B
    assert (KlRl().uses_cache, KlRl(transform="exp").uses_cache) == (False, True)
    assert KlRl().label == "beta=1.0"
    with pytest.raises(ValidationError):
        KlRl(transform="exp", tilt=0)


def wander(
    objective: Objective, toy: Toy, steps: int, rate: float, start: torch.Tensor = REFERENCE
) -> torch.Tensor:
    """Stochastic descent with fresh batches, the rate falling to nothing; probabilities reached."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective.loss(batch_for(objective, logits, toy)).backward()
        optimizer.step()
        schedule.step()
    return log_probability(logits).exp().detach()


def test_bon_sft_reaches_the_bon_distribution() -> None:
    toy = Toy(torch.Generator().manual_seed(1), 200, 4)
    reached = wander(BonSft(num_samples=4), toy, 600, 0.05)
    np.testing.assert_allclose(reached, bon(P, 4), atol=0.015)


@pytest.mark.parametrize(("transform", "beta"), [("identity", 0.3), ("log", 0.5)])
def test_qrpo_reaches_its_tilted_reference(transform: str, beta: float) -> None:
    """The quantile of the toy is not uniform, so Z is wrong; the minimum of the loss is found exactly."""
    toy = Toy(torch.Generator().manual_seed(2), 200, 4)
    reached = wander(Qrpo(beta=beta, transform=transform), toy, 600, 0.05)
    exact = descend(exact_qrpo(beta, transform))
    np.testing.assert_allclose(reached, exact, atol=0.015)


@pytest.mark.parametrize("transform", ["identity", "log"])
@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_qrpo_partition_function_by_integration(transform: str, beta: float) -> None:
    quantile = (np.arange(400_000) + 0.5) / 400_000
    reward = np.log(quantile) if transform == "log" else quantile
    peak = (reward / beta).max()
    log_z = peak + math.log(np.mean(np.exp(reward / beta - peak)))
    found = Qrpo(beta=beta, transform=transform).scaled_log_partition
    assert found == pytest.approx(beta * log_z, abs=1e-5)


def test_qrpo_log_at_one_over_n_minus_one_is_the_bon_tilt() -> None:
    n = 8
    objective = Qrpo(beta=1 / (n - 1), transform="log")
    # p F^(n-1) / Z with Z = 1/n
    assert math.exp(-objective.scaled_log_partition * (n - 1)) == pytest.approx(n)


def test_bonbon_target_is_the_papers() -> None:
    assert 1 / (2 * Bonbon(num_samples=8).target_margin) == pytest.approx(0.0275482, abs=1e-7)
    # and the mean margin of p_bon over pairs, where texts are many: uniform ranks
    rng = np.random.default_rng(0)
    u = np.sort(rng.random((400_000, 8)), axis=1)
    margin = 7 * (np.log(u[:, -1]) - np.log(u[:, 0]))
    assert margin.mean() == pytest.approx(Bonbon(num_samples=8).target_margin, rel=0.01)


def real_n_of(q: torch.Tensor) -> float:
    """The n whose best-of-n is as far from the reference as q."""
    low, high, wanted = 1.0, 1e4, float(kl(q, P))
    for _ in range(40):  # to 1e-11 of n
        middle = math.sqrt(low * high)
        ladder = UP_TO.clamp(max=1) ** middle - STRICT**middle  # bon(P, middle)
        low, high = (middle, high) if float(kl(ladder, P)) < wanted else (low, middle)
    return low


def test_j_bond_climbs_the_best_of_n_ladder() -> None:
    """J-BOND climbs from n = 1 past 2, 4 and 8, always close to best-of-n of the same KL.

    The bounded reward makes it an approximation: within .02 of that best-of-n's win rate and .08 in
    total variation; with the forward part alone the step is exact but for noise, and within .06.
    """
    for backward_weight, distance in ((0.5, 0.08), (0.0, 0.06)):
        objective = JBond(backward_weight=backward_weight, anchor_rate=0.1)
        toy = Toy(torch.Generator().manual_seed(3), 150, 4)
        logits, anchor = REFERENCE.clone().requires_grad_(), REFERENCE.clone()
        optimizer = torch.optim.SGD([logits], lr=0.5)
        rungs: set[int] = set()
        for _ in range(400):
            optimizer.zero_grad()
            objective.loss(batch_for(objective, logits, toy, anchor)).backward()
            optimizer.step()
            anchor = torch.lerp(anchor, logits.detach(), objective.anchor_rate)
            q = log_probability(logits).exp().detach()
            n = real_n_of(q)
            if n > 9:
                break
            ladder = bon(P, n)
            assert abs(float(win_rate(q, P) - win_rate(ladder, P))) < 0.02
            assert float((q - ladder).abs().sum()) / 2 < distance
            rungs |= {rung for rung in (2, 4, 8) if n > rung}
        assert rungs == {2, 4, 8}


def wind_fixed_point(beta: float) -> torch.Tensor:
    q = P.clone()
    for _ in range(2000):
        win = (cdf(q, False) + cdf(q, True)) / 2
        q = 0.5 * q + 0.5 * torch.softmax(LOG_P + win / beta, 0)
    return q


@pytest.mark.parametrize("regression", ["squared", "kl", "nce"])
def test_wind_reaches_its_fixed_point(regression: str) -> None:
    """q = p exp(P(. > q) / beta) / Z; the clamp of kl and nce and their noise are within .02."""
    beta = 0.5
    objective = Wind(beta=beta, regression=regression)
    toy = Toy(torch.Generator().manual_seed(7), 40, 64)
    logits = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 500)
    for _ in range(125):
        drawn_from = logits.detach().clone()
        for _ in range(objective.updates):
            optimizer.zero_grad()
            objective.loss(batch_for(objective, logits, toy, drawn_from=drawn_from)).backward()
            optimizer.step()
            schedule.step()
    reached = log_probability(logits).exp().detach()
    np.testing.assert_allclose(reached, wind_fixed_point(beta), atol=0.02)


def test_bon_aware_sft_leaves_best_of_n_to_do_the_rest() -> None:
    """Experts are best-of-6; best-of-3 of best-of-2 is best-of-6, so q should go to best-of-2.

    The i = 1 bound is not exact on a toy of likely texts, and 1/F^ is biased where F is small: within
    .045 of its own exact optimum, and nearer best-of-2 than the expert.
    """
    toy = Toy(torch.Generator().manual_seed(8), 100, 64)
    reached = wander(BonAwareSft(num_samples=3, expert_samples=6), toy, 400, 0.05)
    np.testing.assert_allclose(reached, descend(exact_bon_aware_sft(3, 6)), atol=0.045)
    near = float((reached - bon(P, 2)).abs().sum())
    far = float((reached - bon(P, 6)).abs().sum())
    assert near < far / 2


# --- Parts ----------------------------------------------------------------------------------------


def test_texts_are_all_texts() -> None:
    assert len(TEXTS) == 1 + 2 + 12
    assert float(P.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_exact_weight_is_the_bon_pmf_over_p(n: int) -> None:
    p, r = P.numpy(), REWARD.numpy()
    weight = exact_log_weight(STRICT.log(), LOG_P, n).exp().numpy()
    np.testing.assert_allclose(weight * p, bon_pmf(p, r, n), rtol=1e-9)
    np.testing.assert_allclose(weight * p, bon_pmf_binomial(p, r, n), rtol=1e-9)


def test_exact_weight_survives_n_where_binomials_overflow_a_float() -> None:
    weight = exact_log_weight(torch.tensor([-0.001]), torch.tensor([-40.0]), 4000)
    # F^(N-1) N dominates when p is e^-40: log 4000 - 3999 * 0.001
    assert float(weight) == pytest.approx(math.log(4000) - 3.999, abs=1e-3)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_bounds_are_ordered(n: int) -> None:
    """L1 <= lower <= exact, for every policy tried; each strictly somewhere."""
    for seed in range(5):
        logits = table(seed)
        q = log_probability(logits).exp()
        exact = -exact_vbon(n, "exact")(logits) * (n - 1)
        lower = -regularised(LOG_CDF, 1 / (n - 1))(logits) * (n - 1) + math.log(n)
        l1 = -exact_vbon(n, "l1")(logits) * (n - 1)
        assert float(l1) <= float(lower) + 1e-9
        assert float(lower) <= float(exact) + 1e-9
        assert float(exact) == pytest.approx(-float(kl(q, bon(P, n))), abs=1e-9)


@pytest.mark.parametrize("name", sorted(n for n in OBJECTIVES if "num_samples" in
                                        objective_type(n).model_fields))  # fmt: skip
def test_n_of_one_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="at least 2, got 1"):
        objective_type(name)(num_samples=1)
    with pytest.raises(ValidationError, match="at least 2, got 1"):
        train_config_type(name)(num_samples=1)


def test_an_unknown_objective_is_named_with_the_known() -> None:
    with pytest.raises(
        InvalidInputError, match="unknown objective 'vbo'; choose one of vbon, kl-rl"
    ):
        objective_type("vbo")


def test_experts_must_be_better_than_the_best_of_n() -> None:
    with pytest.raises(ValidationError, match="must be above num_samples 4"):
        BonAwareSft(num_samples=4, expert_samples=4)


def test_leave_one_out_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 30.0])
    expected = torch.tensor([4.0, 3.5, 1.5, 25.0, 20.0, 15.0])
    torch.testing.assert_close(leave_one_out(values, 3), expected)
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(values, 1)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("successes", range(7))
def test_binary_rewards_weigh_a_success_by_n_p_fail(n: int, successes: int) -> None:
    """N E_S[(r - max S)^+] for a success: N times the chance that the other N - 1 all fail."""
    group = 6
    reward = torch.tensor([1.0] * successes + [0.0] * (group - successes))
    gain = n * marginal_gain(reward, group, n)
    failing = math.comb(group - successes, n - 1) / math.comb(group - 1, n - 1)
    expected = torch.tensor([n * failing] * successes + [0.0] * (group - successes))
    torch.testing.assert_close(gain, expected)


def test_marginal_gain_by_enumeration() -> None:
    reward = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.5])
    for i in range(5):
        rest = [float(reward[j]) for j in range(5) if j != i]
        gains = [max(float(reward[i]) - max(s), 0.0) for s in itertools.combinations(rest, 2)]
        assert float(marginal_gain(reward, 5, 3)[i]) == pytest.approx(sum(gains) / len(gains))


def test_win_gradient_weights_by_hand() -> None:
    """G = 3 samples; the expert at 1.5 is above two of them, the one at -1 above none."""
    reward = torch.tensor([[0.0, 1.0, 2.0]])
    weights = win_gradient_weights(reward, torch.tensor([[1.5]]))
    # below: 1, 1, 0; times 3/2, minus 1
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5, -1.0]]))
    weights = win_gradient_weights(reward, torch.tensor([[-1.0]]))
    torch.testing.assert_close(weights, torch.tensor([[-1.0, -1.0, -1.0]]))


@pytest.mark.parametrize("expert", [0.5, 1.5, 2.5])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_win_gradient_is_true_but_for_draws_with_no_sample_below(group: int, expert: float) -> None:
    """All draws of G samples from four outcomes: the mean is the gradient of log F times 1 - (1 - F)^G."""
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    reward = torch.arange(4, dtype=torch.float64)
    score = (
        torch.eye(4, dtype=torch.float64) - q
    )  # of outcome y: the gradient of log q(y) by the logits
    below = (reward < expert).double()
    cdf = float(below @ q)
    true_gradient = (below * q) @ score / cdf
    mean = torch.zeros(4, dtype=torch.float64)
    for draw in itertools.product(range(4), repeat=group):
        index = torch.tensor(draw)
        weights = win_gradient_weights(reward[index][None], torch.tensor([[expert]]))[0]
        mean += q[index].prod() * (weights[:, None] * score[index]).mean(0)
    torch.testing.assert_close(mean, true_gradient * (1 - (1 - cdf) ** group))


def test_win_in_group_counts_itself_as_a_tie() -> None:
    found = win_in_group(torch.tensor([1.0, 3.0, 3.0, 0.0]), 4)
    torch.testing.assert_close(found, torch.tensor([1.5, 3.0, 3.0, 0.5]) / 4)


def test_tied_pairs_say_nothing_to_dpo_and_ipo() -> None:
    best, worst = int(REWARD.argmax()), int(REWARD.argmin())
    index = torch.tensor([best, worst, 7, 7])
    batch = samples_of_texts(table(3).requires_grad_(), index, 4, REFERENCE, own=False)
    first = samples_of_texts(table(3), index[:2], 2, REFERENCE, own=False)
    for objective in (Dpo(num_samples=2, beta=0.5), Bonbon(num_samples=2, sft_weight=0.0)):
        both = objective.loss(StepBatch(cached=batch))
        torch.testing.assert_close(both, objective.loss(StepBatch(cached=first)) / 2)


def test_padding_changes_nothing() -> None:
    logits, reference = torch.randn(4, 3, VOCABULARY), torch.randn(4, 3, VOCABULARY)
    tokens = torch.randint(0, VOCABULARY, (4, 3))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]], dtype=torch.bool)
    reward = torch.tensor([0.1, -0.5, 2.0, 0.3])

    def loss(width: int) -> torch.Tensor:
        terms = token_terms(
            logits[:, :width], reference[:, :width], tokens[:, :width], mask[:, :width]
        )
        return policy_gradient_loss(terms.logprob_BT, terms.kl_BT, reward, 0.1, 2)

    torch.testing.assert_close(loss(3), loss(2))


def exhaustive_gradient(
    logits: torch.Tensor, reward: torch.Tensor, beta: float, estimator: str
) -> torch.Tensor:
    """Mean gradient of the estimator over all ordered pairs of texts drawn from q (group of 2)."""
    q = log_probability(logits).exp()
    pairs = torch.tensor(list(itertools.product(range(len(TEXTS)), repeat=2)))
    point = logits.clone().requires_grad_()
    total = torch.zeros(())
    for pair in pairs:
        terms = token_terms(point[STATE[pair]], REFERENCE[STATE[pair]], TOKENS[pair], MASK[pair])
        if estimator == "exact":
            loss = policy_gradient_loss(terms.logprob_BT, terms.kl_BT, reward[pair], beta, 2)
        else:
            loss = sampled_kl_loss(terms.logprob_BT, LOG_P[pair], reward[pair], beta, 2)
        total = total + q[pair].prod() * loss
    return torch.autograd.grad(total, point)[0]


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_policy_gradient_is_unbiased_exhaustively(beta: float, estimator: str) -> None:
    """All texts are enumerated; the tolerance is float32 rounding, so false alarms cannot happen."""
    logits = table(3)
    wanted = finite_differences(regularised(REWARD, beta), logits)
    found = exhaustive_gradient(logits, REWARD, beta, estimator)
    torch.testing.assert_close(found, wanted, atol=5e-6, rtol=1e-4)
