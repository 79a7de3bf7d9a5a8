"""Matrix products by oneDNN and by torch's default library: the same numbers and gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vbon import linear_layers  # noqa: E402
from vbon.linear_layers import (  # noqa: E402
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
        monkeypatch.setattr(linear_layers, "prefers_onednn", lambda: request.param == "oneDNN")
    return str(request.param)


@pytest.mark.usefixtures("library")
def test_products_are_those_of_matrices() -> None:
    left, right = torch.randn(6, 5), torch.randn(4, 5)
    exact = (left.double() @ right.double().T).float()
    for a, b in ((left, right), (left.T.contiguous().T, right), (left, right.T.contiguous().T)):
        torch.testing.assert_close(product(a, b), exact)
    deep = torch.randn(2, 3, 5)
    torch.testing.assert_close(product(deep, right), deep @ right.T)
    bias = torch.randn(4)
    torch.testing.assert_close(product(deep, right, bias), deep @ right.T + bias)
    assert product(deep[:0], right, bias).shape == (0, 3, 4)
    torch.testing.assert_close(
        product(deep.double(), right.double()), deep.double() @ right.double().T
    )


def test_a_model_on_another_device_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's library does not matter to a GPU; the device without memory stands for one."""
    monkeypatch.setattr(linear_layers, "prefers_onednn", lambda: True)
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


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (3, 5, 24), (2, 3, 4, 24), (0, 24)])
def test_inputs_of_each_shape_get_the_exact_result(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 10, bias=bias)
    exact = copy.deepcopy(layer).double()
    speed_up_linear_layers(torch.nn.Sequential(layer))
    given = torch.randn(shape)
    with torch.inference_mode():
        found = layer(given)
        strided = layer(torch.stack([given, given], dim=-1)[..., 0])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact(given.double()).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(strided, found, rtol=1e-5, atol=1e-6)


def test_layers_of_other_kinds_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(given)

    monkeypatch.setattr(linear_layers, "prefers_onednn", lambda: True)
    model = torch.nn.Sequential(Doubled(4, 4), torch.nn.Tanh())
    speed_up_linear_layers(model)
    assert [type(module) for module in model] == [Doubled, torch.nn.Tanh]


@pytest.mark.parametrize(
    ("vendor", "instructions", "slow"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("HygonGenuine", "AVX512", True),
        ("GenuineIntel", "AVX512", False),
        ("AuthenticAMD", "AVX2", False),
        (None, "AVX512", False),
    ],
)
def test_onednn_is_preferred_where_mkl_meets_a_strange_processor(
    monkeypatch: pytest.MonkeyPatch, vendor: str | None, instructions: str, slow: bool
) -> None:
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(linear_layers, "processor_vendor", lambda: vendor)
    monkeypatch.setattr(linear_layers.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert linear_layers.prefers_onednn.__wrapped__() == slow
    monkeypatch.setattr(linear_layers.platform, "machine", lambda: "aarch64")
    assert not linear_layers.prefers_onednn.__wrapped__()


def test_the_vendor_is_read_from_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n")
    assert linear_layers.processor_vendor(file) == "AuthenticAMD"
    file.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    assert linear_layers.processor_vendor(file) is None
    assert linear_layers.processor_vendor(tmp_path / "none") is None
