"""Makes a policy of SmolLM2-135M's shape with random weights: as fast and as large, without a download.

python -m training.gpu_check.stand_in DIR [--tiny]
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.outputs.model_card import write_card
from training.sandbox.corpus import ReviewGrammar
from training.sandbox.models import BOS, EOS, PAD, train_tokenizer
from vbon.storage.atomic import replacing_directory
from vbon.storage.checkpoints import write_checksums

logger = logging.getLogger(__name__)

SMOLLM2 = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
TINY = LlamaConfig(
    vocab_size=800,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=128,
    tie_word_embeddings=True,
)


def make_stand_in(directory: Path, config: LlamaConfig) -> None:
    """Write the policy and a tokenizer with a word for each of its ids."""
    tokenizer = _tokenizer(config.vocab_size)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(0)
    with replacing_directory(directory) as place:
        model = LlamaForCausalLM(config)
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        write_checksums(place, "causal-lm")
        write_card(
            place,
            title="Stand-in policy",
            summary="Random weights in the shape of a real policy: it shows speed and memory, nothing else.",
            facts={"parameters": model.num_parameters()},
        )
    logger.info("%s: %d random parameters", directory, model.num_parameters())


def _tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE; ids that its small corpus leaves unused decode to words."""
    texts = [review.text for review in ReviewGrammar(0).reviews(1000)]
    trained = train_tokenizer(texts, min(size // 2, 2048), 128)
    state = json.loads(trained.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for number in range(len(vocabulary), size):
        vocabulary[f"Ġword{number}"] = number
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    make_stand_in(Path(sys.argv[1]), TINY if "--tiny" in sys.argv[2:] else SMOLLM2)
