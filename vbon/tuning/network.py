"""A multilayer perceptron with the derivatives that neural Thompson sampling needs.

Legend: n rows, d inputs, m units. The parameterisation is the standard one: W ~ N(0, weight_sd^2 / fan_in),
b ~ N(0, bias_sd^2). A constant 1 is appended to the inputs, without which the network of the papers' small
bias_sd has hardly any variance at the origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# The weights (fan_out, fan_in) and biases (fan_out,) of each layer.
Parameters = list[tuple[Tensor, Tensor]]
_CPU: Any = {"dtype": torch.float64, "device": "cpu"}  # whatever torch's default device is


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape and the initial distribution of the network.

    Attributes:
        depth: the number of hidden layers.
    """

    width: int = 256
    depth: int = 2
    weight_sd: float = 1.5
    bias_sd: float = 0.05

    def initial(self, inputs: int, generator: torch.Generator) -> Parameters:
        """Parameters drawn from the initial distribution, for inputs of ``inputs`` columns."""
        sizes = [inputs + 1, *[self.width] * self.depth, 1]
        found = []
        for fan_in, fan_out in pairwise(sizes):
            weight = torch.randn(fan_out, fan_in, generator=generator, **_CPU)
            bias = torch.randn(fan_out, generator=generator, **_CPU)
            found.append((weight * (self.weight_sd / math.sqrt(fan_in)), bias * self.bias_sd))
        return found

    def variances(self, parameters: Parameters) -> list[tuple[float, float]]:
        """The initial variances of each layer's weights and biases."""
        return [(self.weight_sd**2 / w.shape[1], self.bias_sd**2) for w, _ in parameters]


PAPERS = Architecture()  # that of the published code


def generator_of(seed: int) -> torch.Generator:
    """A random generator on the CPU."""
    return torch.Generator(device="cpu").manual_seed(seed)


def without_last_layer(parameters: Parameters) -> Parameters:
    """The parameters with the last layer's set to 0."""
    weight, bias = parameters[-1]
    return [*parameters[:-1], (torch.zeros_like(weight), torch.zeros_like(bias))]


def combined(first: Parameters, second: Parameters, scale: float = 1.0) -> Parameters:
    """``first + scale * second``."""
    return [
        (w + scale * v, b + scale * c)
        for (w, b), (v, c) in zip(first, second, strict=True)
    ]  # fmt: skip


def with_one(x: Tensor) -> Tensor:
    """Rows with a 1 appended."""
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def forward(parameters: Parameters, x: Tensor) -> Tensor:
    """The outputs, shape (n,)."""
    hidden = with_one(x)
    for weight, bias in parameters[:-1]:
        hidden = torch.relu(torch.addmm(bias, hidden, weight.T))
    weight, bias = parameters[-1]
    return (hidden @ weight.T + bias)[:, 0]


def forward_and_tangent(
    parameters: Parameters, direction: Parameters, x: Tensor
) -> tuple[Tensor, Tensor]:
    """The outputs, and their derivatives along a direction of parameters, shape (n,) each."""
    hidden, change = with_one(x), None
    last = len(parameters) - 1
    for k, ((weight, bias), (dw, db)) in enumerate(zip(parameters, direction, strict=True)):
        slope = torch.addmm(db, hidden, dw.T)
        if change is not None:
            slope = slope + change @ weight.T
        hidden = torch.addmm(bias, hidden, weight.T)
        change = slope
        if k < last:
            on = hidden > 0
            hidden, change = hidden * on, change * on
    assert change is not None
    return hidden[:, 0], change[:, 0]


@dataclass(frozen=True, slots=True)
class Linearised:
    """The network's derivative by its parameters at some rows, kept layer by layer.

    The derivative by W_k is the outer product of ``back[k]`` and ``inputs[k]``, that by b_k is ``back[k]``.
    """

    values: Tensor
    inputs: Sequence[Tensor]
    back: Sequence[Tensor]

    def transposed(self, weights: Tensor) -> Parameters:
        """The sum over rows of ``weights`` times the derivative: J^T weights."""
        return [
            ((b * weights[:, None]).T @ h, b.T @ weights)
            for h, b in zip(self.inputs, self.back, strict=True)
        ]  # fmt: skip

    def kernel(self, other: Linearised, variances: Sequence[tuple[float, float]]) -> Tensor:
        """J Lambda J'^T, the neural tangent kernel of these parameters, shape (n, n')."""
        total = self.values.new_zeros(len(self.values), len(other.values))
        layers = zip(self.inputs, self.back, other.inputs, other.back, variances, strict=True)
        for h, b, g, c, (weight, bias) in layers:
            total = total + (b @ c.T) * (weight * (h @ g.T) + bias)
        return total


def linearised(parameters: Parameters, x: Tensor) -> Linearised:
    """The network and its derivative by the parameters at some rows."""
    inputs, masks = [with_one(x)], []
    for weight, bias in parameters[:-1]:
        a = torch.addmm(bias, inputs[-1], weight.T)
        masks.append((a > 0).to(a.dtype))
        inputs.append(a * masks[-1])
    weight, bias = parameters[-1]
    values = (inputs[-1] @ weight.T + bias)[:, 0]
    back = [x.new_ones(len(x), 1)]
    for (weight, _), mask in zip(reversed(parameters[1:]), reversed(masks), strict=True):
        back.append((back[-1] @ weight) * mask)
    return Linearised(values, inputs, back[::-1])


def scaled(parameters: Parameters, variances: Sequence[tuple[float, float]]) -> Parameters:
    """Lambda times the parameters."""
    return [(w * v, b * c) for (w, b), (v, c) in zip(parameters, variances, strict=True)]


def squared_norm(parameters: Parameters, variances: Sequence[tuple[float, float]]) -> Tensor:
    """The squared length in units of the initial standard deviations: theta^T Lambda^-1 theta."""
    terms = [
        (w**2).sum() / v + (b**2).sum() / c
        for (w, b), (v, c) in zip(parameters, variances, strict=True)
    ]
    return torch.stack(terms).sum()
