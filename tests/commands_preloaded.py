"""The imports of the commands of a test, done once."""

from __future__ import annotations

import os

# Threads of the maths libraries would not survive the fork, and a machine under test is busy anyway.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import peft  # noqa: F401
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401
from transformers.models.modernbert import modeling_modernbert  # noqa: F401

import training.cache.sample
import training.evaluation.evaluate
import training.evaluation.plot
import training.sandbox.build
import training.sweep.run  # noqa: F401
