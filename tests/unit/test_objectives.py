"""Objectives and the policy-gradient estimator against enumeration of a tiny vocabulary.

The toy: three tokens (0 ends the text), at most three tokens a text, so 15 texts in all, each with
its own reward. The policy is a table of logits per prefix, so every expectation is a finite sum.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from bestofn.distribution import bon_pmf, bon_pmf_binomial  # noqa: E402
from bestofn.errors import InvalidInputError  # noqa: E402
from training.objectives import OBJECTIVES, ScoredBatch, VbonExact, VbonLowerBound  # noqa: E402
from training.objectives.vbon import exact_log_weight  # noqa: E402
from training.policy_gradient import (  # noqa: E402
    TokenTerms,
    leave_one_out,
    policy_gradient_loss,
    token_terms,
)

VOCABULARY, LENGTH, EOS = 3, 3, 0


def all_texts() -> list[tuple[int, ...]]:
    texts = []
    for length in range(1, LENGTH + 1):
        for text in itertools.product(range(VOCABULARY), repeat=length):
            ended = text[-1] == EOS or length == LENGTH
            if ended and EOS not in text[:-1]:
                texts.append(text)
    return texts


TEXTS = all_texts()
PREFIXES = [
    prefix
    for length in range(LENGTH)
    for prefix in itertools.product(range(1, VOCABULARY), repeat=length)
]
TOKENS = torch.zeros(len(TEXTS), LENGTH, dtype=torch.long)
MASK = torch.zeros(len(TEXTS), LENGTH, dtype=torch.bool)
STATE = torch.zeros(len(TEXTS), LENGTH, dtype=torch.long)
for row, text in enumerate(TEXTS):
    for t, token in enumerate(text):
        TOKENS[row, t], MASK[row, t] = token, True
        STATE[row, t] = PREFIXES.index(text[:t])


def table(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), VOCABULARY, generator=generator, dtype=torch.float64)


def log_probability(logits: torch.Tensor) -> torch.Tensor:
    """Of every text, shape (15,)."""
    steps = torch.log_softmax(logits, -1)[STATE].gather(-1, TOKENS[..., None])[..., 0]
    return (steps * MASK).sum(1)


REFERENCE = table(0)
LOG_P = log_probability(REFERENCE)
REWARD = torch.randn(len(TEXTS), generator=torch.Generator().manual_seed(9), dtype=torch.float64)
STRICT_CDF = torch.tensor([LOG_P.exp()[r > REWARD].sum() for r in REWARD], dtype=torch.float64)
SMALLEST = 1e-300  # log F of the worst text is -inf; its exact weight does not need it


def batch() -> ScoredBatch:
    return ScoredBatch(
        log_cdf_B=STRICT_CDF.clamp(min=SMALLEST).log(), reward_B=REWARD, ref_logprob_B=LOG_P
    )


def test_texts_are_all_texts() -> None:
    assert len(TEXTS) == 1 + 2 + 12
    assert float(LOG_P.exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_exact_weight_is_the_bon_pmf_over_p(n: int) -> None:
    p, r = LOG_P.exp().numpy(), REWARD.numpy()
    weight = exact_log_weight(STRICT_CDF.log(), LOG_P, n).exp().numpy()
    np.testing.assert_allclose(weight * p, bon_pmf(p, r, n), rtol=1e-9)
    np.testing.assert_allclose(weight * p, bon_pmf_binomial(p, r, n), rtol=1e-9)


def test_exact_weight_survives_n_where_binomials_overflow_a_float() -> None:
    weight = exact_log_weight(torch.tensor([-0.001]), torch.tensor([-40.0]), 4000)
    # F^(N-1) N dominates when p is e^-40: log 4000 - 3999 * 0.001
    assert float(weight) == pytest.approx(math.log(4000) - 3.999, abs=1e-3)


def exact_objective(logits: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """E_q[R] - beta KL(q || p), by summation over all texts."""
    log_q = log_probability(logits)
    return (log_q.exp() * (reward - beta * (log_q - LOG_P))).sum()


@pytest.mark.parametrize("n", [2, 4])
def test_exact_bound_is_minus_the_kl_to_bon(n: int) -> None:
    objective = VbonExact(n)
    logits = table(5)
    value = exact_objective(logits, objective.sequence_reward(batch()), objective.kl_coefficient)
    log_q = log_probability(logits)
    p_bon = torch.tensor(bon_pmf(LOG_P.exp().numpy(), REWARD.numpy(), n))
    kl = (log_q.exp() * (log_q - p_bon.log())).sum()
    assert float(value) * (n - 1) == pytest.approx(-float(kl), abs=1e-9)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_lower_bound_lies_below_the_exact_objective(n: int) -> None:
    lower = VbonLowerBound(n).sequence_reward(batch()) * (n - 1) + math.log(n)
    exact = VbonExact(n).sequence_reward(batch()) * (n - 1)
    assert bool((lower <= exact + 1e-9).all())
    assert bool((lower < exact - 1e-3).any())


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_n_of_one_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="at least 2, got 1"):
        OBJECTIVES[name](1)


def expected_gradient(logits: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """Mean gradient of the estimator over all ordered pairs of texts drawn from q (group of 2)."""
    q = log_probability(logits).exp()
    pairs = list(itertools.product(range(len(TEXTS)), repeat=2))
    rows = torch.tensor(pairs).flatten()
    weight = (q[:, None] * q[None, :]).flatten()
    table_logits = logits.clone().requires_grad_()
    terms = token_terms(table_logits[STATE[rows]], REFERENCE[STATE[rows]], TOKENS[rows], MASK[rows])
    total = torch.zeros((), dtype=torch.float32)
    for i in range(len(pairs)):
        pair = slice(2 * i, 2 * i + 2)
        one = TokenTerms(
            terms.logprob_BT[pair],
            terms.ref_logprob_BT[pair],
            terms.kl_BT[pair],
            terms.mask_BT[pair],
        )
        total = total + weight[i] * policy_gradient_loss(one, reward[rows[pair]], beta, 2)
    (gradient,) = torch.autograd.grad(total, table_logits)
    return gradient


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_estimator_is_unbiased(beta: float) -> None:
    """Exhaustive, not sampled: the tolerance is float32 rounding, so there is no false alarm."""
    logits = table(3)
    exact = logits.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(-exact_objective(exact, REWARD, beta), exact)
    found = expected_gradient(logits, REWARD, beta)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-4)


def test_gradient_ascent_on_the_exact_bound_reaches_the_bon_distribution() -> None:
    n = 4
    objective = VbonExact(n)
    reward = objective.sequence_reward(batch())
    logits = REFERENCE.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(3000):
        optimizer.zero_grad()
        (-exact_objective(logits, reward, objective.kl_coefficient)).backward()
        optimizer.step()
    reached = log_probability(logits).exp().detach().numpy()
    wanted = bon_pmf(LOG_P.exp().numpy(), REWARD.numpy(), n)
    np.testing.assert_allclose(reached, wanted, atol=1e-4)


def test_leave_one_out_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 30.0])
    expected = torch.tensor([4.0, 3.5, 1.5, 25.0, 20.0, 15.0])
    torch.testing.assert_close(leave_one_out(values, 3), expected)
    with pytest.raises(ValueError, match="at least 2"):
        leave_one_out(values, 1)


def test_padding_changes_nothing() -> None:
    logits, reference = torch.randn(4, 3, VOCABULARY), torch.randn(4, 3, VOCABULARY)
    tokens = torch.randint(0, VOCABULARY, (4, 3))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]], dtype=torch.bool)
    reward = torch.tensor([0.1, -0.5, 2.0, 0.3])
    whole = policy_gradient_loss(token_terms(logits, reference, tokens, mask), reward, 0.1, 2)
    trimmed = token_terms(logits[:, :2], reference[:, :2], tokens[:, :2], mask[:, :2])
    torch.testing.assert_close(whole, policy_gradient_loss(trimmed, reward, 0.1, 2))
