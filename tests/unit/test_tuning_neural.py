"""Neural Thompson sampling against closed forms: the tangent kernel, its process, and exact draws of it.

Each statistical test states the probability that correct code fails it with another seed. The nightly profile
of the property tests (``--hypothesis-profile=new-examples``) takes larger networks and more draws.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import settings

torch = pytest.importorskip("torch")
pytest.importorskip("optuna")

from scipy.stats import chi2  # noqa: E402

from vbon.tuning.network import (  # noqa: E402
    Architecture,
    forward,
    forward_and_tangent,
    generator_of,
    linearised,
    scaled,
    squared_norm,
    without_last_layer,
)
from vbon.tuning.ntk import ntk  # noqa: E402
from vbon.tuning.sto_bnts import network_draw, problem_of  # noqa: E402
from vbon.tuning.sto_bnts_linear import closed_form, linear_draw  # noqa: E402

pytestmark = pytest.mark.train

SMALL = Architecture(width=8)


def nightly() -> bool:
    return settings.get_current_profile_name() == "new-examples"


def rows(count: int, inputs: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, inputs)))


def test_a_tangent_is_torch_s_derivative_along_a_direction() -> None:
    parameters = SMALL.initial(2, generator_of(0))
    direction = SMALL.initial(2, generator_of(1))
    flat = tuple(part for layer in parameters for part in layer)
    along = tuple(part for layer in direction for part in layer)
    x = rows(5)

    def network(*parts: torch.Tensor) -> torch.Tensor:
        return forward(list(zip(parts[::2], parts[1::2], strict=True)), x)

    value, slope = torch.autograd.functional.jvp(network, flat, along)
    ours = forward_and_tangent(parameters, direction, x)
    torch.testing.assert_close(ours, (value, slope))
    # J^T w by torch's reverse mode, and J J^T from its columns.
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    _, pulled = torch.autograd.functional.vjp(network, flat, weights)
    at_rows = linearised(parameters, x)
    torch.testing.assert_close(at_rows.values, value)
    found = [part for layer in at_rows.transposed(weights) for part in layer]
    torch.testing.assert_close(found, list(pulled))
    variances = SMALL.variances(parameters)
    expected = torch.stack(
        [forward_and_tangent(parameters, scaled(at_rows.transposed(unit), variances), x)[1]
         for unit in torch.eye(5, dtype=torch.float64)]
    )  # fmt: skip
    torch.testing.assert_close(at_rows.kernel(at_rows, variances), expected)


def test_the_kernel_of_one_layer_by_hand() -> None:
    """Depth 1 at x = x' = 1, with the constant input: Sigma^0 = s + b, k1 = k0 = 1 at correlation 1."""
    shape = Architecture(depth=1, weight_sd=1.5, bias_sd=0.5)
    weight, bias = 2.25, 0.25
    sigma = weight * 2 / 2 + bias
    expected = (weight / 2 * sigma + bias) + weight / 2 * sigma
    x = torch.ones(1, 1, dtype=torch.float64)
    assert float(ntk(x, x, shape)) == pytest.approx(expected, rel=1e-12)
    # Orthogonal inputs: k0 = 1/2, k1 = 1/pi. With a bias of 0 the rows (1, 1) and (-1, 1) are orthogonal.
    flat = Architecture(depth=1, weight_sd=1.5, bias_sd=0.0)
    assert float(ntk(x, -x, flat)) == pytest.approx(weight / 2 * weight / math.pi, rel=1e-12)


def test_the_kernel_is_nearly_homogeneous_with_the_papers_small_bias() -> None:
    """By hand: Theta^2(x, x) is 3 (2.25 / 2)^2 2.25 mean(x^2), which is 8.54 mean(x^2), without a bias.

    So the variance would vanish at the origin; the appended 1 leaves 8.54 / (d + 1) there.
    """
    shape, x = Architecture(bias_sd=0.0), rows(4, 3)
    mean_square = ((x**2).sum(dim=1) + 1) / 4
    torch.testing.assert_close(
        ntk(x, x, shape).diagonal(), 3 * (2.25 / 2) ** 2 * 2.25 * mean_square, rtol=1e-6, atol=0
    )
    origin = torch.zeros(1, 3, dtype=torch.float64)
    assert float(ntk(origin, origin, Architecture())[0, 0]) == pytest.approx(8.54 / 4, rel=0.02)


def test_functions_at_the_start_have_the_tangent_kernel_as_covariance() -> None:
    """The first oracle: f(x; theta0) + <grad f(x; theta0), theta'> without the last layer of theta'.

    21 entries within 5 standard errors, 5.7e-7 each for normal values: false alarm 1.2e-5, and below 1e-3
    with the heavier tails of a network. 3 / width is the order of what a finite width changes.
    """
    width, draws = (1024, 4000) if nightly() else (96, 400)
    shape, x = Architecture(width=width), rows(6, 3)
    found = []
    for seed in range(draws):
        generator = generator_of(seed)
        start = shape.initial(3, generator)
        extra = without_last_layer(shape.initial(3, generator))
        found.append(sum(forward_and_tangent(start, extra, x)))
    values = torch.stack(found).numpy()
    expected = ntk(x, x, shape).numpy()
    covariance = values.T @ values / draws
    own = np.diag(expected)
    error = np.sqrt((own[:, None] * own[None] + expected**2) / draws)
    assert (np.abs(covariance - expected) <= 5 * error + 3 / width * expected.max()).all()
    # The second term matters: without it the variance is that of Sigma^L alone, about a third.
    plain = np.array(
        [float(forward(shape.initial(3, generator_of(seed)), x[:1])[0]) for seed in range(200)]
    )
    assert plain.var() < 0.7 * expected[0, 0]


def test_gradient_descent_finds_the_closed_form() -> None:
    """The second oracle, to 1e-3: descent on the linear model's loss, in units of initial deviations."""
    x, y, noise = rows(5), torch.sin(7 * rows(5)[:, 0]), 0.5
    features, start = SMALL.initial(2, generator_of(3)), SMALL.initial(2, generator_of(4))
    fitted = closed_form(features, start, x, y, noise, SMALL)
    variances = SMALL.variances(features)
    at_data = linearised(features, x)
    largest = float(torch.linalg.eigvalsh(at_data.kernel(at_data, variances))[-1]) / noise**2 + 1
    theta = [(w.clone(), b.clone()) for w, b in start]
    for _ in range(1500):
        _, value = forward_and_tangent(features, theta, x)
        pull = scaled(at_data.transposed((y - value) / noise**2), variances)
        theta = [
            (w + (pw - (w - w0)) / largest, b + (pb - (b - b0)) / largest)
            for (w, b), (pw, pb), (w0, b0) in zip(theta, pull, start, strict=True)
        ]
    difference = [(w - v, b - c) for (w, b), (v, c) in zip(theta, fitted, strict=True)]
    assert float(squared_norm(difference, variances).sqrt()) < 1e-3
    at = rows(20, seed=5)
    trained, exact = (forward_and_tangent(features, t, at)[1] for t in (theta, fitted))
    assert float((trained - exact).abs().max()) < 1e-3


class LinearCase:
    """A fixed linear model, its exact posterior at five points, and draws of it."""

    def __init__(self, draws: int) -> None:
        self.noise = 1.0
        x = rows(6, seed=1)
        y = torch.tensor([0.5, -1.0, 0.3, 1.2, -0.4, 0.9], dtype=torch.float64)
        at = rows(5, seed=2)
        features = SMALL.initial(2, generator_of(9))
        variances = SMALL.variances(features)
        data, points = linearised(features, x), linearised(features, at)
        self.cross = points.kernel(data, variances)
        self.gram = data.kernel(data, variances) + self.noise**2 * torch.eye(6, dtype=y.dtype)
        self.mean = (self.cross @ torch.linalg.solve(self.gram, y)).numpy()
        own = points.kernel(points, variances)
        self.covariance = (own - self.cross @ torch.linalg.solve(self.gram, self.cross.T)).numpy()
        self.draws = torch.stack(
            [linear_draw(x, y, self.noise, SMALL, seed, features)(at) for seed in range(draws)]
        ).numpy()
        # Without the noise of y~, by the same closed form.
        self.noiseless = torch.stack(
            [
                forward_and_tangent(
                    features,
                    closed_form(features, SMALL.initial(2, generator_of(seed)), x, y, self.noise, SMALL),
                    at,
                )[1]
                for seed in range(draws // 2)
            ]
        ).numpy()  # fmt: skip


@pytest.fixture(scope="module")
def linear() -> LinearCase:
    return LinearCase(20_000 if nightly() else 800)


def test_linear_draws_are_the_exact_posterior(linear: LinearCase) -> None:
    """The third oracle: 5 means and 15 covariances within 5 standard errors; false alarm 1.2e-5."""
    count = len(linear.draws)
    own = np.diag(linear.covariance)
    assert (np.abs(linear.draws.mean(axis=0) - linear.mean) <= 5 * np.sqrt(own / count)).all()
    found = np.cov(linear.draws.T)
    error = np.sqrt((own[:, None] * own[None] + linear.covariance**2) / count)
    assert (np.abs(found - linear.covariance) <= 5 * error).all()


def test_without_noisy_targets_draws_vary_too_little(linear: LinearCase) -> None:
    """The variance misses sigma^2 k^T (K + sigma^2 I)^-2 k, and that is much; false alarm 3e-6."""
    halved = torch.linalg.solve(linear.gram, linear.cross.T)
    missing = (linear.noise**2 * (halved**2).sum(dim=0)).numpy()
    own = np.diag(linear.covariance)
    expected = own - missing
    assert (missing > 0.3 * own).any()
    found = linear.noiseless.var(axis=0)
    error = expected * np.sqrt(2 / len(linear.noiseless))
    assert (np.abs(found - expected) <= 5 * error).all()
    worst = int((missing / own).argmax())
    assert found[worst] < own[worst] * (1 - 4 * np.sqrt(2 / len(linear.noiseless)))


def test_argmax_frequencies_are_those_of_exact_thompson_sampling(linear: LinearCase) -> None:
    """The fifth oracle: chi-squared over five points; false alarm 1e-5."""
    rng = np.random.default_rng(0)
    exact = rng.multivariate_normal(linear.mean, linear.covariance, size=400_000).argmax(axis=1)
    expected = np.bincount(exact, minlength=5) / 400_000 * len(linear.draws)
    kept = expected > 5
    assert kept.sum() >= 3
    seen = np.bincount(linear.draws.argmax(axis=1), minlength=5)
    statistic = float(((seen - expected)[kept] ** 2 / expected[kept]).sum())
    assert statistic < chi2.isf(1e-5, int(kept.sum()) - 1)


def test_trained_networks_are_close_to_the_posterior_of_the_tangent_kernel() -> None:
    """The fourth and seventh oracles: means, variances, and the spread that the fixed term brings.

    Means within 3.5 standard errors plus 1/sqrt(width) of the prior's deviation; the variance ratio within 4
    of its own plus .15. False alarm 2e-3 for the draws; what the width changes is measured, not derived.
    """
    width, draws = (256, 100) if nightly() else (64, 24)
    shape, noise = Architecture(width=width), 0.5
    x = torch.tensor([[0.1, 0.2], [0.8, 0.3], [0.5, 0.9]], dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    at = torch.tensor([[0.3, 0.5], [0.9, 0.9]], dtype=torch.float64)
    kernel = ntk(torch.cat([x, at]), torch.cat([x, at]), shape)
    gram = kernel[:3, :3] + noise**2 * torch.eye(3, dtype=torch.float64)
    gain = torch.linalg.solve(gram, kernel[:3, 3:])
    mean = (gain.T @ y).numpy()
    variance = (kernel[3:, 3:] - kernel[3:, :3] @ gain).diagonal().numpy()
    found, plain = [], []
    for seed in range(draws):
        found.append(network_draw(x, y, noise, shape, seed, steps=25)(at).numpy())
        problem, extra = problem_of(x, y, noise, shape, seed)
        # The same slot without its fixed term: the targets get it back.
        _, fixed = forward_and_tangent(problem.start, extra, x)
        bare = type(problem)(problem.start, x, problem.targets + fixed, noise, shape)
        plain.append(forward(bare.solve(25), at).numpy())
    values = np.array(found)
    limit = 3.5 * np.sqrt(variance / draws) + kernel.diagonal()[3:].sqrt().numpy() / width**0.5
    assert (np.abs(values.mean(axis=0) - mean) <= limit).all()
    ratio = values.var(axis=0, ddof=1) / variance
    spread = 4 * np.sqrt(2 / draws) + 0.15
    assert (ratio > max(1 - spread, 0.1)).all(), ratio
    assert (ratio < 1 + spread).all(), ratio
    # Far from the data, the fixed term is most of the spread.
    assert (np.var(plain, axis=0, ddof=1) < 0.8 * values.var(axis=0, ddof=1)).all()


def test_training_ends_at_a_minimum_and_lowers_the_loss() -> None:
    problem, _ = problem_of(rows(4), torch.tensor([1.0, -1, 0, 0.5]).double(), 0.5, SMALL, 0)
    moved = torch.zeros_like(problem.begin)
    loss, gradient = problem.loss_and_gradient(moved)
    checked = moved.clone().requires_grad_()
    error = problem.targets - forward(problem.parameters(checked), problem.x)
    by_hand = (error**2).sum() / (2 * problem.noise**2) + (checked**2).sum() / 2
    torch.testing.assert_close(loss, by_hand.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(by_hand, checked)[0])
    solved = problem.solve(200)
    flat = torch.cat([part.ravel() for layer in solved for part in layer])
    moved = (flat - problem.begin) / problem.deviations
    lowest, rest = problem.loss_and_gradient(moved)
    assert float(lowest) < 0.2 * float(loss)
    assert float(rest.norm()) < 0.05 * float(gradient.norm())
