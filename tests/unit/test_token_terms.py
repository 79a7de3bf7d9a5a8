"""Log-probabilities and KL per token, in chunks with a gradient derived by hand, against the plain form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.train

from peft import LoraConfig, get_peft_model  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from transformers import (  # noqa: E402
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from training.rollouts import token_terms as terms_module  # noqa: E402
from training.rollouts.predictor import Predictor, logprobs_of, output_layer, terms_of  # noqa: E402
from training.rollouts.rollout import Rollout  # noqa: E402
from training.rollouts.shared_prompts import can_share_prompts  # noqa: E402
from training.rollouts.token_terms import Predictions, token_logprobs, token_terms  # noqa: E402

TOKENS, FEATURES, VOCABULARY, TEMPERATURE = 7, 3, 5, 0.7
SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens in a chunk, so that seven make four of them."""
    monkeypatch.setattr(terms_module, "CPU_BYTES", 0)
    monkeypatch.setattr(terms_module, "FEWEST_TOKENS", 2)


def inputs_of(seed: int, *, bias: bool, dtype: torch.dtype) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(TOKENS, FEATURES), (VOCABULARY, FEATURES)] + [(VOCABULARY,)] * bias
    found = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [*found, None][:3]


def plain_terms(policy: list[Any], reference: list[Any], tokens: torch.Tensor) -> Any:
    """The terms as formulas, with all distributions at once and torch's own gradient."""
    log_q, log_p = (
        torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias) / TEMPERATURE, dim=-1)
        for hidden, weight, bias in (policy, reference)
    )
    picked = tokens[:, None]
    kl = (log_q.exp() * (log_q - log_p)).sum(1)
    return log_q.gather(1, picked)[:, 0], log_p.gather(1, picked)[:, 0], kl


def chunked_terms(policy: list[Any], reference: list[Any], tokens: torch.Tensor) -> Any:
    ours, theirs = (
        Predictions(*layer, temperature=TEMPERATURE, dtype=layer[0].dtype)
        for layer in (policy, reference)
    )
    return token_terms(ours, theirs, tokens)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("bias", [False, True])
def test_gradient_is_that_of_finite_differences(bias: bool) -> None:
    policy = [
        None if one is None else one.requires_grad_()
        for one in inputs_of(0, bias=bias, dtype=torch.float64)
    ]
    reference = inputs_of(1, bias=bias, dtype=torch.float64)
    tokens = torch.arange(TOKENS) % VOCABULARY

    def both(*layer: Any) -> Any:
        logprob, _, kl = chunked_terms([*layer, None][:3], reference, tokens)
        return logprob, kl

    def one(*layer: Any) -> Any:
        hidden, weight, *rest = layer
        ours = Predictions(hidden, weight, *rest, temperature=TEMPERATURE, dtype=torch.float64)
        return token_logprobs(ours, tokens)

    leaves = [leaf for leaf in policy if leaf is not None]
    assert torch.autograd.gradcheck(both, leaves)
    assert torch.autograd.gradcheck(one, leaves)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_terms_and_gradients_equal_the_plain_form(
    bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    reference = inputs_of(1, bias=bias, dtype=dtype)
    tokens = torch.arange(TOKENS) % VOCABULARY
    weights = torch.randn(2, TOKENS, generator=torch.Generator().manual_seed(2), dtype=dtype)
    results = []
    for terms in (plain_terms, chunked_terms):
        policy = inputs_of(0, bias=bias, dtype=dtype)
        leaves = [one.requires_grad_() for one in policy if one is not None]
        logprob, ref_logprob, kl = terms(policy, reference, tokens)
        (weights[0] * logprob + weights[1] * kl).sum().backward()
        results.append([logprob, ref_logprob, kl, *(leaf.grad for leaf in leaves)])
    for plain, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, atol=tolerance, rtol=tolerance)


def test_frozen_output_layer_gets_no_gradient() -> None:
    """As under a LoRA: only the hidden states have one."""
    hidden, weight, _ = inputs_of(0, bias=False, dtype=torch.float32)
    theirs = Predictions(*inputs_of(1, bias=False, dtype=torch.float32))
    logprob, ref_logprob, kl = token_terms(
        Predictions(hidden.requires_grad_(), weight), theirs, torch.zeros(TOKENS, dtype=torch.long)
    )
    (logprob + kl).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert not ref_logprob.requires_grad


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


@pytest.mark.parametrize(("count", "chunk"), [(600, 128), (2400, 128), (2400, 64)])
def test_memory_grows_with_the_chunk_and_not_with_the_tokens(
    monkeypatch: pytest.MonkeyPatch, count: int, chunk: int
) -> None:
    """No tensor of the forward or backward pass is larger than a chunk's distributions."""
    vocabulary = 500
    monkeypatch.setattr(terms_module, "CPU_BYTES", 0)
    monkeypatch.setattr(terms_module, "FEWEST_TOKENS", chunk)
    hidden, weight = torch.randn(count, 4, requires_grad=True), torch.randn(vocabulary, 4)
    theirs = Predictions(torch.randn(count, 4), torch.randn(vocabulary, 4))
    with LargestTensor() as largest:
        logprob, _, kl = token_terms(
            Predictions(hidden, weight.requires_grad_()), theirs, torch.zeros(count).long()
        )
        (logprob + kl).sum().backward()
    assert largest.elements == chunk * vocabulary
    with LargestTensor() as largest:
        log_q = torch.log_softmax(hidden @ weight.T, -1)
    assert largest.elements == log_q.numel() == count * vocabulary


def test_chunks_hold_a_bounded_number_of_bytes() -> None:
    def sizes(vocabulary: int) -> list[int]:
        predictions = Predictions(torch.zeros(3000, 1), torch.zeros(vocabulary, 1))
        return [part.stop - part.start for part in predictions.chunks()]

    assert sizes(1024) == [1024] * 3
    assert sizes(128_000) == [128] * 24


def models() -> dict[str, Callable[[], Any]]:
    def with_lora() -> Any:
        config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), config)

    return {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
        "llama with a LoRA": with_lora,
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
        ),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**SIZES, final_logit_softcapping=0.5, query_pre_attn_scalar=8)
        ),
        "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
    }


PROCESSED = {"gemma2", "granite"}  # they cap or scale their logits after the output layer
SLIDING = {"gemma2"}  # half of its layers have a sliding window


def rollout_of_random_tokens(*, shared: bool = False) -> Rollout:
    """Six responses to prompts of their own, or to three prompts of one, two and three responses."""
    generator = torch.Generator().manual_seed(3)
    sequence = torch.randint(0, 50, (6, 9), generator=generator)
    attention = torch.ones(6, 9, dtype=torch.long)
    attention[:2, :2] = 0  # padding before two prompts
    if shared:
        sequence[:2, :2] = 0
        sequence[1, :3] = sequence[0, :3]
        sequence[4:, :3] = sequence[3, :3]
    mask = torch.arange(6)[None] < torch.tensor([6, 3, 1, 5, 2, 6])[:, None]
    attention[:, 3:] = mask.long()
    return Rollout(sequence, attention, sequence[:, 3:], mask)


def plain_model_terms(model: Any, reference: Any, rollout: Rollout) -> tuple[Any, Any]:
    """``log q`` and the KL from the model's own logits."""
    logs = []
    for one in (model, reference):
        logits = one(
            input_ids=rollout.sequence_BL,
            attention_mask=rollout.attention_BL,
            position_ids=(rollout.attention_BL.cumsum(1) - 1).clamp(min=0),
        ).logits[:, 2:-1]
        logs.append(torch.log_softmax(logits.float() / TEMPERATURE, -1))
    log_q, log_p = logs
    kl = (log_q.exp() * (log_q - log_p.detach())).sum(-1)
    logprob = log_q.gather(-1, rollout.response_BT[..., None])[..., 0]
    return logprob * rollout.mask_BT, kl * rollout.mask_BT


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", models())
def test_terms_of_models_equal_those_from_their_logits(name: str, shared: bool, half: bool) -> None:
    torch.manual_seed(0)
    model, reference = models()[name]().eval(), models()[name]().eval()
    rollout = rollout_of_random_tokens(shared=shared)
    assert (output_layer(model) is None) == (name in PROCESSED)
    assert can_share_prompts(model) == (name not in SLIDING)
    found = terms_of(
        Predictor(model, TEMPERATURE, autocast=half),
        Predictor(reference, TEMPERATURE, autocast=half),
        rollout,
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logprob, kl = plain_model_terms(model, reference, rollout)
    tolerance = {"atol": 0.03, "rtol": 0.03} if half else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found.logprob_BT, logprob, **tolerance)
    torch.testing.assert_close(found.kl_BT, kl, **tolerance)
    alone = logprobs_of(Predictor(model, TEMPERATURE, autocast=half), rollout)
    torch.testing.assert_close(alone, found.logprob_BT)
    if half:
        return
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    gradients = [
        torch.autograd.grad(a.sum() + 2 * b.sum(), trained, retain_graph=True)
        for a, b in ((found.logprob_BT, found.kl_BT), (logprob, kl))
    ]
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)


def test_model_without_a_plain_output_layer_keeps_its_own_logits() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))

    class Doubled(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden)

    plain = output_layer(model)
    assert plain is model.lm_head
    assert "forward" not in vars(plain)
    model.lm_head.__class__ = Doubled
    assert output_layer(model) is None


def test_output_layer_is_put_back_after_an_error() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert output_layer(model) is not None
    rollout = rollout_of_random_tokens()
    with pytest.raises(IndexError):
        logprobs_of(
            Predictor(model),
            Rollout(
                rollout.sequence_BL + 1000,
                rollout.attention_BL,
                rollout.response_BT,
                rollout.mask_BT,
            ),
        )
    assert "forward" not in vars(model.lm_head)
    assert model(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits.shape == (1, 1, 50)
