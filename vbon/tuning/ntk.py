"""The neural tangent kernel of an infinitely wide ReLU network, in closed form.

Jacot et al. 2018 (arXiv 1806.07572); the recursion over layers with the arc-cosine kernels of Cho & Saul
2009:

    Sigma^0 = s_w^2 <x, x'> / d + s_b^2,   Theta^0 = Sigma^0
    Sigma^l = s_w^2 / 2 sqrt(Sigma(x, x) Sigma(x', x')) k1(rho) + s_b^2
    Theta^l = Sigma^l + s_w^2 / 2 k0(rho) Theta^(l-1)

with rho the correlation under Sigma^(l-1), k0 = (pi - arccos rho) / pi and
k1 = [sqrt(1 - rho^2) + rho (pi - arccos rho)] / pi.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vbon.tuning.network import Architecture, with_one


def ntk(x: Tensor, other: Tensor, architecture: Architecture) -> Tensor:
    """The kernel between rows, shape (n, n'); a 1 is appended to them as to the network's inputs."""
    weight, bias = architecture.weight_sd**2, architecture.bias_sd**2
    x, other = with_one(x), with_one(other)
    inputs = x.shape[-1]
    cross = weight * (x @ other.T) / inputs + bias
    left = weight * (x**2).sum(dim=1) / inputs + bias
    right = weight * (other**2).sum(dim=1) / inputs + bias
    tangent = cross
    for _ in range(architecture.depth):
        norm = torch.sqrt(left[:, None] * right[None])
        # Rounding may take the correlation of a row with itself above 1.
        rho = (cross / norm).clamp(-1.0, 1.0)
        angle = math.pi - torch.arccos(rho)
        cross = weight / 2 * norm * (torch.sqrt(1 - rho**2) + rho * angle) / math.pi + bias
        tangent = cross + weight / 2 * (angle / math.pi) * tangent
        left, right = weight / 2 * left + bias, weight / 2 * right + bias
    return tangent
