"""Matrix products by oneDNN and by torch's default library: the same numbers and gradients."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.train

from training.rollouts import products  # noqa: E402
from training.rollouts.products import (  # noqa: E402
    FastLinear,
    product,
    speed_up_linear_layers,
    use_stock_linear_layers,
)


@pytest.fixture(params=["this processor", "oneDNN", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library of the products: the one of this processor, or one of the two."""
    if request.param != "this processor":
        if request.param == "oneDNN" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            pytest.skip("this build of torch has no oneDNN")
        monkeypatch.setattr(products, "_prefers_onednn", lambda: request.param == "oneDNN")
    return str(request.param)


@pytest.mark.usefixtures("library")
def test_products_are_those_of_matrices() -> None:
    left, right = torch.randn(6, 5), torch.randn(4, 5)
    exact = (left.double() @ right.double().T).float()
    for a, b in ((left, right), (left.T.contiguous().T, right), (left, right.T.contiguous().T)):
        torch.testing.assert_close(product(a, b), exact)
    deep = torch.randn(2, 3, 5)
    torch.testing.assert_close(product(deep, right), deep @ right.T)
    torch.testing.assert_close(
        product(deep.double(), right.double()), deep.double() @ right.double().T
    )


def test_a_model_on_another_device_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's library does not matter to a GPU; the device without memory stands for one."""
    monkeypatch.setattr(products, "_prefers_onednn", lambda: True)
    elsewhere = torch.nn.Sequential(torch.nn.Linear(5, 4, device="meta"))
    speed_up_linear_layers(elsewhere)
    assert type(elsewhere[0]) is torch.nn.Linear


@pytest.mark.parametrize("bias", [False, True])
def test_fast_layers_compute_what_linear_layers_do(library: str, bias: bool) -> None:
    torch.manual_seed(0)
    stock = torch.nn.Sequential(torch.nn.Linear(5, 4, bias=bias))
    fast = copy.deepcopy(stock)
    speed_up_linear_layers(fast)
    if library != "this processor":
        assert (type(fast[0]) is FastLinear) == (library == "oneDNN")
    results = []
    for model in (stock, copy.deepcopy(fast)):
        hidden = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = model(hidden)
        (output**2).sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(model(hidden), output)
        results.append([output, hidden.grad, *(weights.grad for weights in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    for dtype in (torch.float64, torch.bfloat16):
        torch.testing.assert_close(
            fast.to(dtype)(hidden.to(dtype)), stock.to(dtype)(hidden.to(dtype))
        )
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.float()(hidden).dtype == torch.bfloat16
    use_stock_linear_layers(fast)
    assert type(fast[0]) is torch.nn.Linear
