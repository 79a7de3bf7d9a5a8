"""The texts of samples, the tokens that end them, and the policy that draws them in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.train

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast  # noqa: E402

from training.rollouts.predictor import Predictor, terms_of  # noqa: E402
from training.rollouts.rollout import rollout_of, sample_responses  # noqa: E402
from training.train.config import train_config_type  # noqa: E402
from training.train.dropout import remove_dropout  # noqa: E402
from training.train.inputs import TrainingInputs  # noqa: E402
from vbon.errors import CheckpointError, DataError  # noqa: E402
from vbon.storage.cache_metadata import metadata_path  # noqa: E402
from vbon.storage.stop_tokens import find_extra_stop_ids, stop_identity  # noqa: E402

VOCAB = ["<eos>", "▁the", "▁film", "▁was", "▁good", "▁bad", "ish", "▁"]


def llama_tokenizer() -> Any:
    """A tokenizer whose decoder strips one leading space, as Llama 2's and Mistral 0.1's do."""
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCAB)}, unk_token="▁"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>")


def test_samples_are_decoded_after_their_prompts() -> None:
    """The prompts are padded to one width, and two prompts have two samples each."""
    tokenizer = llama_tokenizer()
    longer, shorter = tokenizer("the film was")["input_ids"], tokenizer("good")["input_ids"]
    assert (longer, shorter) == ([1, 2, 3], [4])
    rollout = rollout_of(
        [longer, longer, shorter, shorter], [[4, 0], [6], [6, 0], [3, 5, 0]], tokenizer,
        torch.device("cpu"),
    )  # fmt: skip
    assert rollout.texts(tokenizer) == [" good", "ish", "ish", " was bad"]


def test_a_stop_token_ends_a_sample_and_has_no_text() -> None:
    """'▁bad' (5) ends a response besides EOS (0); elsewhere in a text, it is a word like the others."""
    tokenizer = llama_tokenizer()
    prompt = [1, 2, 3]
    rollout = rollout_of(
        [prompt] * 4, [[4, 5], [4, 0], [4, 6], [5]], tokenizer, torch.device("cpu")
    )
    assert rollout.texts(tokenizer, (5,)) == [" good", " good", " goodish", ""]
    assert rollout.finish_reasons(tokenizer, (5,)) == ["stop", "stop", "length", "stop"]
    assert rollout.texts(tokenizer) == [" good bad", " good", " goodish", " bad"]
    assert rollout.finish_reasons(tokenizer) == ["length", "stop", "length", "length"]


def test_samples_end_at_each_stop_token() -> None:
    """Without stop tokens the same samples go on: up to the first stop they have the same tokens."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    policy, tokenizer = GPT2LMHeadModel(config).eval(), llama_tokenizer()

    def sampled(extra: tuple[int, ...]) -> list[list[int]]:
        found = sample_responses(
            policy, tokenizer, [[1, 2]], num_samples=50, max_new_tokens=12, seeds=[3],
            extra_stop_ids=extra,
        )  # fmt: skip
        rows = zip(found.response_BT, found.mask_BT, strict=True)
        return [ids[mask].tolist() for ids, mask in rows]

    expected = []
    for ids in sampled(()):
        ends = [place + 1 for place, token in enumerate(ids) if token in (0, 5, 7)]
        expected.append(ids[: min(ends, default=12)])
    assert sampled((5, 7)) == expected
    assert {ids[-1] for ids in expected} >= {0, 5, 7}


@pytest.mark.parametrize(
    ("config", "generation", "extra", "identity"),
    [
        (0, 0, (), {}),
        (0, None, (), {}),
        (None, None, (), {}),
        (0, [0, 5], (5,), {"eos_token_ids": [0, 5]}),
        ([5, 0], None, (5,), {"eos_token_ids": [0, 5]}),
        ([5, 0], [0, 5], (5,), {"eos_token_ids": [0, 5]}),
        (0, 5, (5,), {"eos_token_ids": [5]}),
        ([0, 5], 0, (), {"eos_token_ids": [0]}),
    ],
)
def test_stop_tokens_come_from_the_models_files(
    tmp_path: Path, config: object, generation: object, extra: object, identity: object
) -> None:
    """As in vLLM, the generation config counts where it names any, and the tokenizer's EOS always ends."""
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": config}))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert find_extra_stop_ids(str(tmp_path), llama_tokenizer()) == extra
    assert stop_identity(str(tmp_path)) == identity


def test_stop_tokens_that_are_not_ids_are_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(CheckpointError, match="</s>"):
        find_extra_stop_ids(str(tmp_path), llama_tokenizer())


@pytest.mark.parametrize(
    ("recorded", "now", "fits"),
    [
        ({"backend": "transformers"}, {}, True),
        ({"backend": "transformers"}, {"eos_token_ids": [0, 5]}, False),
        ({"backend": "transformers", "eos_token_ids": [0, 5]}, {"eos_token_ids": [0, 5]}, True),
        ({"backend": "vllm", "eos_token_ids": [0, 5]}, {}, False),
        ({"backend": "vllm"}, {"eos_token_ids": [0, 5]}, True),
    ],
)
def test_a_cache_with_other_stop_tokens_is_refused(
    tmp_path: Path, recorded: dict[str, Any], now: dict[str, Any], fits: bool
) -> None:
    """A cache of vLLM without a record of them was drawn with all of the model's."""
    revisions = {"policy_revision": "p", "reward_revision": "r"}
    cache = tmp_path / "cache.jsonl"
    cache.write_text("{}")
    identity = {**revisions, "max_new_tokens": 40, "temperature": 1.0, **recorded}
    metadata_path(cache).write_text(json.dumps({"identity": identity}))
    inputs = TrainingInputs(train_config_type("vbon")(cache=cache), 1, 1, 1)
    inputs.__dict__["fingerprints"] = revisions | now
    if fits:
        inputs._check_cache_settings()
    else:
        with pytest.raises(DataError, match="eos_token_ids"):
            inputs._check_cache_settings()


def test_a_policy_in_training_mode_has_no_dropout() -> None:
    """Equal weights have a KL of 0 in training mode; with GPT-2's dropout it is far from 0."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.5
    policy, reference = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    reference.load_state_dict(policy.state_dict())
    reference.eval()
    remove_dropout(policy)
    policy.train()
    rollout = rollout_of([[1, 2]], [[3, 4, 5, 0]], llama_tokenizer(), torch.device("cpu"))
    terms = terms_of(Predictor(policy), Predictor(reference), rollout)
    assert float(terms.kl_BT.detach().abs().sum()) == pytest.approx(0, abs=1e-6)
    assert policy.config.resid_pdrop == 0.5


def test_rates_that_are_numbers_count_as_dropout() -> None:
    """Llama's attention keeps its rate as a number; mixtures of experts have a router jitter."""
    layer = torch.nn.Linear(1, 1)
    layer.attention_dropout, layer.layerdrop, layer.router_jitter_noise = 0.1, 0.2, 0.3
    layer.scale = 0.4
    remove_dropout(layer)
    assert (layer.attention_dropout, layer.layerdrop, layer.router_jitter_noise) == (0, 0, 0)
    assert layer.scale == 0.4
