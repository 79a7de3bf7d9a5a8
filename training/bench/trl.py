"""TRL's side of ``bench``: its stock ``RLOOTrainer``, timed from outside.

Set otherwise than TRL's defaults, each in its favour or to make the two sides do the same:

- ``bf16`` and ``gradient_checkpointing`` off (both on by default; the first is the ``--dtype`` given),
- ``use_cache`` on in generation, whatever the policy's configuration says,
- evaluation, logging, reporting, saving and progress bars off,
- ``per_device_train_batch_size`` the whole batch: one generation and one backward pass a step,
- ``disable_dropout``, as the policy that samples and the one that learns are the same here,
- learning rate, beta, clipping, temperature, lengths, steps and seed as given; prompts in given order.

Everything else is stock: fused AdamW, linear decay, one iteration, ``transformers`` generation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from training.bench.steps import Step, now
from training.configs import BenchConfig
from training.train.inputs import Assets
from vbon.prompts import Prompt
from vbon.rewards import Scorable


class _Clock(TrainerCallback):
    """Collects what a step drew and where its time went."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._begun = 0.0
        self._clear()

    def _clear(self) -> None:
        self.samples = self.tokens = 0
        self.sample_s = self.score_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The first step counts from here."""
        self._begun = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step counts from the end of the one before: what lies between is part of it."""
        ended = now()
        seconds = ended - self._begun
        learn_s = seconds - self.sample_s - self.score_s
        self.steps.append(
            Step(seconds, self.samples, self.tokens, self.sample_s, self.score_s, learn_s)
        )
        self._begun = ended
        self._clear()


def trl_steps(config: BenchConfig, assets: Assets, seed: int) -> list[Step]:
    """Train ``config.steps`` steps from the reference; its steps in order."""
    clock = _Clock()
    batch = config.prompts_per_step * config.samples_per_prompt

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **_: Any,
    ) -> list[float | None]:
        begun = now()
        pairs = zip(prompts, completions, strict=True)
        scores = assets.reward.score([_scorable(prompt, text) for prompt, text in pairs])
        clock.samples += len(scores)
        clock.tokens += sum(len(ids) for ids in completion_ids)
        clock.score_s += now() - begun
        return scores

    policy = assets.fresh_policy()
    generate = policy.generate

    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        begun = now()
        output = generate(*args, **kwargs)
        clock.sample_s += now() - begun
        return output

    policy.generate = timed_generate
    with tempfile.TemporaryDirectory() as directory:
        trainer = RLOOTrainer(
            model=policy,
            reward_funcs=reward,
            args=RLOOConfig(
                output_dir=directory,
                max_steps=config.steps,
                per_device_train_batch_size=batch,
                num_generations=config.samples_per_prompt,
                max_completion_length=config.max_new_tokens,
                temperature=config.temperature,
                beta=config.beta,
                learning_rate=config.learning_rate,
                max_grad_norm=config.max_grad_norm,
                seed=seed,
                bf16=config.dtype == "bfloat16",
                gradient_checkpointing=False,
                generation_kwargs={"use_cache": True},
                disable_dropout=True,
                shuffle_dataset=False,
                trust_remote_code=config.trust_remote_code,
                dataloader_pin_memory=torch.cuda.is_available(),
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(_prompts(config, assets, seed)),
            processing_class=assets.tokenizer,
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.steps


def _prompts(config: BenchConfig, assets: Assets, seed: int) -> list[dict[str, Any]]:
    """The prompts of all steps: the cache's, each pass in another order."""
    rng = np.random.default_rng(seed)
    count = config.steps * config.prompts_per_step
    rows: list[int] = []
    while len(rows) < count:
        rows.extend(int(row) for row in rng.permutation(len(assets.cache)))
    prompts = (assets.cache.prompt(row) for row in rows[:count])
    return [{"prompt": list(p.messages) if p.messages else p.text} for p in prompts]


def _scorable(prompt: Any, completion: Any) -> Scorable:
    """A chat comes and goes as a list of turns, plain text as a string."""
    if isinstance(prompt, str):
        return Scorable(Prompt(text=prompt), completion)
    return Scorable(Prompt(messages=tuple(prompt)), completion[0]["content"])
