"""Linear layers that oneDNN computes: the same results, and only where they are meant."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
if not torch.backends.mkldnn.is_available():
    pytest.skip("torch is built without oneDNN", allow_module_level=True)

from vbon.rewards import cpu_linear  # noqa: E402


@pytest.fixture
def slow_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "mkl_is_slow", lambda: True)


@pytest.mark.usefixtures("slow_mkl")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (3, 5, 24), (2, 3, 4, 24), (0, 24)])
def test_a_layer_computes_what_it_did(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 10, bias=bias)
    exact = copy.deepcopy(layer).double()
    assert cpu_linear.use_onednn(layer) == 1
    given = torch.randn(shape)
    with torch.inference_mode():
        found = layer(given)
        strided = layer(torch.stack([given, given], dim=-1)[..., 0])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact(given.double()).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(strided, found, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("slow_mkl")
def test_gradients_and_other_types_are_torchs_own() -> None:
    layer = torch.nn.Linear(4, 3)
    plain = copy.deepcopy(layer)
    cpu_linear.use_onednn(layer)
    given = torch.randn(2, 4)
    layer(given).sum().backward()
    plain(given).sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    layer.to(torch.bfloat16)
    with torch.inference_mode():
        given = given.bfloat16()
        assert torch.equal(layer(given), plain.to(torch.bfloat16)(given))


@pytest.mark.usefixtures("slow_mkl")
def test_layers_of_other_kinds_are_left_alone() -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(given)

    model = torch.nn.Sequential(Doubled(4, 4), torch.nn.Linear(4, 4).bfloat16(), torch.nn.Tanh())
    kinds = [type(module) for module in model]
    assert cpu_linear.use_onednn(model) == 0
    assert [type(module) for module in model] == kinds


def test_nothing_changes_where_mkl_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_linear, "mkl_is_slow", lambda: False)
    layer = torch.nn.Linear(4, 4)
    assert cpu_linear.use_onednn(layer) == 0
    assert type(layer) is torch.nn.Linear


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
def test_mkl_is_slow_without_its_own_processor(
    monkeypatch: pytest.MonkeyPatch, vendor: str | None, instructions: str, slow: bool
) -> None:
    monkeypatch.setattr(cpu_linear, "processor_vendor", lambda: vendor)
    monkeypatch.setattr(cpu_linear.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert cpu_linear.mkl_is_slow.__wrapped__() == slow
    monkeypatch.setattr(cpu_linear.platform, "machine", lambda: "aarch64")
    assert not cpu_linear.mkl_is_slow.__wrapped__()


def test_the_vendor_is_read_from_the_kernel(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\n")
    assert cpu_linear.processor_vendor(file) == "AuthenticAMD"
    file.write_text("processor\t: 0\nCPU implementer\t: 0x41\n")
    assert cpu_linear.processor_vendor(file) is None
    assert cpu_linear.processor_vendor(tmp_path / "none") is None
