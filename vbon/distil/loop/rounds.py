"""Steps of a round after the waiting: each may be done again after a kill, and then gives the same."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vbon.distil.cache import CacheOptions, CacheReport, make_cache
from vbon.distil.decision import Decision, Spent
from vbon.distil.loop.config import DistilRunConfig
from vbon.distil.loop.gate import (
    CANDIDATE,
    LIVE,
    REFERENCE,
    ByPrompt,
    Limits,
    decide,
    read_by_prompt,
)
from vbon.distil.loop.prune import CHECKPOINT
from vbon.distil.loop.recipe import least_samples, training_settings
from vbon.distil.loop.service import ServedRollout, Service
from vbon.distil.loop.state import ROUNDS, LoopState, Round, Step
from vbon.distil.loop.stream import Stream
from vbon.errors import DataError
from vbon.maths.distribution import kl_upper_bound
from vbon.prompt_files import read_prompt_file, write_prompts
from vbon.storage.atomic import write_json
from vbon.storage.cache_metadata import metadata_path
from vbon.storage.json_files import read_json_file
from vbon.storage.training_record import read_training_record
from vbon.study.steps import takes_n, write_settings

CACHE, HELDOUT, COMPARED = "cache.jsonl", "cache.heldout.jsonl", "compared.jsonl"
DECISION = "decision.json"
ADAPTER = "adapter"  # in a checkpoint that was trained as a LoRA of the reference policy
_BON_MARGIN = 0.05  # without a service, whose default it is
_KL_BOUNDS = 2.0  # a checkpoint that memorises its cache spends more than this (docs/comparison.md)


class RoundSteps:
    """The steps of one round, and its files in ``rounds/ID/``.

    The files are the reward cache, the held-out prompts, ``settings/`` of the commands, ``checkpoint/``, the
    evaluation and ``decision.json``.
    """

    def __init__(
        self,
        config: DistilRunConfig,
        state: LoopState,
        current: Round,
        *,
        service: Service | None,
        command: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.state, self.round = config, state, current
        self.service, self.command, self.say = service, command, say
        self.directory = directory_of(config, current.id)

    def run(self, step: Step) -> bool:
        """Do a step; False if the round ends with it."""
        if step == "seal":
            return self._seal()
        if step == "cache":
            return self._cache()
        if step == "train":
            return self._train()
        if step == "compare":
            return self._compare()
        if step == "decide":
            return self._decide()
        return self._submit()

    def clean_up(self) -> None:
        """Remove the files with prompts of a finished round, whose answers have a retention of their own."""
        if self.config.keep_caches:
            return
        # Training keeps the cache's columns in a directory beside it.
        for file in self.directory.glob("c*.jsonl*"):
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            else:
                file.unlink(missing_ok=True)

    def _seal(self) -> bool:
        if self.service is not None:
            self.service.seal()
        return True

    def _cache(self) -> bool:
        """Make the cache, and refuse answers that nothing good can be learned from."""
        current, config = self.round, self.config
        assert current.n is not None  # known since the waiting
        report = make_cache(
            CacheOptions(
                config.dir,
                self.directory / CACHE,
                identity=current.identity,
                heldout=self.directory / HELDOUT,
                heldout_share=config.heldout_share,
                min_samples=least_samples(config.objective, current.n),
                missing_eos_reward=config.training.get("missing_eos_reward"),
                replace=True,
            )
        )
        for line in report.lines(CacheOptions(config.dir, self.directory / CACHE)):
            self.say(line)
        used = Stream(config.dir, config.heldout_share, sealed_only=True).read()
        if current.identity in used:
            current.newest_s = used[current.identity].newest_s
        current.prompts, current.heldout = report.prompts, report.heldout_prompts
        current.refused = self._objections(report)
        if current.refused:
            return False
        heldout = read_prompt_file(self.directory / HELDOUT).distinct()
        write_prompts(self.directory / COMPARED, heldout[-config.heldout_prompts :])
        current.initial = self._initial() if config.start == "last" else None
        return True

    def _objections(self, report: CacheReport) -> list[str]:
        """The reasons not to train on a cache."""
        found = [
            f"{text} (--accept {kind} trains all the same)"
            for kind, text in report.suspicions.items()
            if kind not in self.config.accept
        ]
        for kind in self.config.accept:
            if kind in report.suspicions:
                self.say(f"warning: {report.suspicions[kind]}")
        if not report.heldout_prompts:
            found.append("no prompt is held out, so nothing could be compared; collect more")
        return found

    def _initial(self) -> str | None:
        """The checkpoint to go on from: the live one, or else the newest that passed without a service."""
        rollout = self._rollout()
        if rollout is not None:
            return rollout.live
        passed = [one.id for one in self.state.trained if one.verdict == "promote"]
        return passed[-1] if passed else None

    def _train(self) -> bool:
        config, current, models = self.config, self.round, self._models()
        rollout = self._rollout()
        settings = {
            **models,
            "cache": str(self.directory / CACHE),
            "heldout": None,  # the comparison measures more
            "out": str(self.directory / CHECKPOINT),
            "seed": config.seed + current.number - 1,
            **training_settings(
                config.objective,
                config.training,
                goes_on=current.initial is not None,
                lora_rank=None if rollout is None else rollout.lora_rank,
            ),
        }
        if current.initial is not None:
            settings["initial"] = str(self._checkpoint(current.initial))
        flags = ["--num-samples", str(current.n)] if takes_n(config.objective) else []
        self._command("train", config.objective, settings, *flags, "--replace")
        return True

    def _compare(self) -> bool:
        config, current = self.config, self.round
        live = self._live()
        current.compared_with = live
        checkpoints = {CANDIDATE: str(self.directory / CHECKPOINT)}
        if live is not None:
            checkpoints[LIVE] = str(self._checkpoint(live))
        settings = {
            **self._models(),
            "checkpoints": checkpoints,
            "prompts": str(self.directory / COMPARED),
            "out": str(self.directory),
            "num_samples": current.n,
            "reference_samples": self._reference_samples,
            "policy_samples": config.policy_samples,
            "per_prompt": True,
            # Other samples than those of other rounds on the same prompts.
            "seed": config.seed + current.number,
            **config.evaluation,
        }
        missing_eos_reward = config.training.get("missing_eos_reward")
        if missing_eos_reward is not None:
            settings["missing_eos_reward"] = missing_eos_reward
        self._command("evaluate", "evaluate", settings)
        return True

    @property
    def _reference_samples(self) -> int:
        return self.config.reference_samples or 4 * (self.round.n or 1)

    def _decide(self) -> bool:
        by_prompt = read_by_prompt(self.directory)
        decision = decide(by_prompt, self._limits(), self._spent(by_prompt))
        write_json(self.directory / DECISION, decision.model_dump(mode="json"))
        self.round.verdict = decision.verdict
        self.say(f"{decision.verdict}:")
        for reason in decision.reasons:
            self.say(f"  - {reason}")
        return True

    def _limits(self) -> Limits:
        config, n = self.config, self.round.n
        assert n is not None
        rollout = self._rollout()
        # A checkpoint that the service would roll back is not worth submitting.
        theirs = _BON_MARGIN if rollout is None else rollout.margin
        return Limits(
            n=n,
            margin=config.margin,
            bon_margin=config.bon_margin or theirs,
            max_kl=config.max_kl or _KL_BOUNDS * kl_upper_bound(n),
            max_length_ratio=config.max_length_ratio,
            max_truncated=config.max_truncated,
            least_prompts=config.least_prompts,
        )

    def _spent(self, by_prompt: ByPrompt) -> Spent:
        """Seconds of training and comparison, and the tokens that both have drawn."""
        record = read_training_record(str(self.directory / CHECKPOINT))
        tokens = float(record.cost.tokens_drawn or 0) if record and record.cost else 0.0
        samples = {REFERENCE: self._reference_samples}
        samples |= dict.fromkeys((CANDIDATE, LIVE), self.config.policy_samples)
        for method, count in samples.items():
            tokens += count * math.fsum(by_prompt.get(method, {}).get("tokens", ()))
        seconds = self.round.seconds
        spent_s = seconds.get("train", 0.0) + seconds.get("compare", 0.0)
        return Spent(training_s=spent_s, tokens=round(tokens))

    def _submit(self) -> bool:
        current, file = self.round, self.directory / DECISION
        rollout = self._rollout()
        if rollout is None or self.service is None:
            self.say(f"{file}: kept here, since no service was named that serves checkpoints")
            return True
        found = rollout.checkpoint(current.id)  # there already if an earlier start was killed here
        if found is None:
            decision = Decision.model_validate(_read(file))
            path = f"{ROUNDS}/{current.id}/{self._submitted_path(rollout.lora_rank)}"
            found = self.service.submit(path, decision)
            self.say(f"sent {path} to the service")
        current.status = str(found)
        self.say(f"checkpoint {current.id} was submitted: {found}")
        return True

    def _submitted_path(self, served_rank: int | None) -> str:
        """The path below the round to submit: the adapter if the service can serve it, or whole weights."""
        adapter = self.directory / CHECKPOINT / ADAPTER
        if served_rank is None or not (adapter / "adapter_config.json").is_file():
            if served_rank is not None:
                self.say("whole weights are submitted, since the training made no adapter")
            return CHECKPOINT
        rank = adapter_rank(_read(adapter / "adapter_config.json"))
        if rank > served_rank:
            self.say(
                f"whole weights are submitted, since the adapter has rank {rank} and the service serves "
                f"{served_rank} at most (--distil.lora-rank)"
            )
            return CHECKPOINT
        return f"{CHECKPOINT}/{ADAPTER}"

    # -- what the steps share

    def _rollout(self) -> ServedRollout | None:
        return self.service.rollout() if self.service else None

    def _live(self) -> str | None:
        """The id of the live checkpoint; without a service, of the newest that passed."""
        rollout = self._rollout()
        if rollout is not None:
            return rollout.live
        if self.service is not None:
            return None  # it serves no checkpoints
        passed = [one.id for one in self.state.trained if one.verdict == "promote"]
        return passed[-1] if passed else None

    def _checkpoint(self, name: str) -> Path:
        """The directory of a checkpoint of this loop.

        Raises:
            DataError: it is not in this directory.
        """
        found = directory_of(self.config, name) / CHECKPOINT
        if not found.is_dir():
            raise DataError(
                f"the service serves checkpoint {name}, but {found} does not exist; give the directory that "
                "it was trained in, or roll back to best-of-N (vbon distil rollback)"
            )
        return found

    def _models(self) -> dict[str, Any]:
        """Models and sampling, as the answers were made and scored with."""
        config = self.config
        made = _read(metadata_path(self.directory / CACHE))["identity"]
        return {
            "policy": config.policy or made["policy"],
            "reward": config.reward or made["reward"],
            "gold": config.gold,
            "max_new_tokens": made["max_new_tokens"],
            "temperature": made["temperature"],
            "trust_remote_code": config.trust_remote_code,
        }

    def _command(self, name: str, program: str, settings: dict[str, Any], *flags: str) -> None:
        file = self.directory / "settings" / f"{name}.toml"
        write_settings(file, settings)
        words = ("training", program, "--config", str(file), *flags)
        self.command(*words, niceness=self.config.nice)


def adapter_rank(settings: dict[str, Any]) -> int:
    """The highest rank in an adapter's configuration: layers may have ranks of their own."""
    ranks = [settings.get("r", 0), *(settings.get("rank_pattern") or {}).values()]
    return max(int(rank) for rank in ranks)


def directory_of(config: DistilRunConfig, name: str) -> Path:
    """The directory of a round by its id."""
    return config.dir / ROUNDS / name


def _read(file: Path) -> dict[str, Any]:
    """A JSON object that an earlier step has written.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return dict(read_json_file(file))
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}; remove rounds/ to begin again"
        ) from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged ({error}); restore it") from error
