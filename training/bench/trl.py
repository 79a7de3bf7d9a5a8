"""TRL's side of ``bench``: its stock ``RLOOTrainer``, timed from outside.

These settings differ from TRL's defaults, each in TRL's favour or to make both sides do the same work:

- ``bf16`` and ``gradient_checkpointing`` are off (both default to on); ``bf16`` follows ``--dtype``.
- ``use_cache`` is on during generation, whatever the policy's configuration says.
- Evaluation, logging, reporting, saving and progress bars are off.
- ``per_device_train_batch_size`` is the whole batch: one generation and one backward pass per step.
- ``disable_dropout`` is on, because this project samples from exactly the policy it trains.
- Learning rate, beta, clipping, temperature, lengths, steps and seed are the given ones, and prompts
  keep the given order.

Everything else is stock: fused AdamW, linear decay, one iteration, ``transformers`` generation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from training.bench.steps import Step, synchronized_time
from training.configs import BenchConfig
from training.train.inputs import TrainingInputs
from vbon.linear_layers import use_stock_linear_layers
from vbon.prompts import Prompt
from vbon.rewards import Scorable


class _StepTimer(TrainerCallback):
    """Collects the samples, tokens and timings of each step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._begun = 0.0
        self._clear()

    def _clear(self) -> None:
        self.samples = self.tokens = 0
        self.sample_s = self.score_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start timing the first step."""
        self._begun = synchronized_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the step's timing; work between two steps belongs to the later one."""
        ended = synchronized_time()
        seconds = ended - self._begun
        learn_s = seconds - self.sample_s - self.score_s
        self.steps.append(
            Step(seconds, self.samples, self.tokens, self.sample_s, self.score_s, learn_s)
        )
        self._begun = ended
        self._clear()


def trl_steps(config: BenchConfig, inputs: TrainingInputs, seed: int) -> list[Step]:
    """Train for ``config.steps`` steps from the reference policy; returns the steps in order."""
    timer = _StepTimer()
    policy = inputs.fresh_policy()
    use_stock_linear_layers(policy)
    _time_generation(policy, timer)
    with tempfile.TemporaryDirectory() as directory:
        trainer = RLOOTrainer(
            model=policy,
            reward_funcs=_timed_reward(inputs, timer),
            args=_trl_config(config, seed, directory),
            train_dataset=Dataset.from_list(_prompts(config, inputs, seed)),
            processing_class=inputs.tokenizer,
            callbacks=[timer],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return timer.steps


def _time_generation(policy: Any, timer: _StepTimer) -> None:
    """Wrap ``policy.generate`` so that its seconds are added to the timer."""
    generate = policy.generate

    def timed_generate(*args: Any, **kwargs: Any) -> Any:
        begun = synchronized_time()
        output = generate(*args, **kwargs)
        timer.sample_s += synchronized_time() - begun
        return output

    policy.generate = timed_generate


def _timed_reward(inputs: TrainingInputs, timer: _StepTimer) -> Callable[..., list[float | None]]:
    """The reward function for TRL, which adds its seconds, samples and tokens to the timer."""

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **_: Any,
    ) -> list[float | None]:
        begun = synchronized_time()
        pairs = zip(prompts, completions, strict=True)
        scores = inputs.reward.score([_scorable(prompt, text) for prompt, text in pairs])
        timer.samples += len(scores)
        timer.tokens += sum(len(ids) for ids in completion_ids)
        timer.score_s += synchronized_time() - begun
        return scores

    return reward


def _trl_config(config: BenchConfig, seed: int, output_dir: str) -> RLOOConfig:
    return RLOOConfig(
        output_dir=output_dir,
        max_steps=config.steps,
        per_device_train_batch_size=config.prompts_per_step * config.samples_per_prompt,
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
    )


def _prompts(config: BenchConfig, inputs: TrainingInputs, seed: int) -> list[dict[str, Any]]:
    """The prompts of all steps: repeated passes over the cache, each in a new random order."""
    rng = np.random.default_rng(seed)
    count = config.steps * config.prompts_per_step
    rows: list[int] = []
    while len(rows) < count:
        rows.extend(int(row) for row in rng.permutation(len(inputs.cache)))
    prompts = (inputs.cache.prompt(row) for row in rows[:count])
    return [{"prompt": list(p.messages) if p.messages else p.text} for p in prompts]


def _scorable(prompt: Any, completion: Any) -> Scorable:
    """TRL's prompt and completion as a ``Scorable``: a string each, or lists of chat messages."""
    if isinstance(prompt, str):
        return Scorable(Prompt(text=prompt), completion)
    return Scorable(Prompt(messages=tuple(prompt)), completion[0]["content"])
