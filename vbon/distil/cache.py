"""Makes a reward cache of collected answers, as training and evaluation read it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from vbon.distil.answer import CollectedAnswer, Identity, parse_line, to_line
from vbon.distil.shard import SEALED, SealedShard
from vbon.distil.split import is_held_out, template
from vbon.distil.summary import shard_paths
from vbon.errors import DataError, ExportError
from vbon.prompt_files import write_prompts
from vbon.prompts import Message, Prompt
from vbon.rewards.truncation import with_missing_eos_reward
from vbon.storage.atomic import write_errors, write_json
from vbon.storage.cache_metadata import metadata_path
from vbon.storage.checksums import sha256_of
from vbon.storage.json_files import read_json_file
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance

logger = logging.getLogger(__name__)

BACKEND = "service"  # in the metadata's identity, where `vbon sample` names its engine
# Shares from which on a stream looks poisoned.
MOST_OF_ONE_KEY = MOST_OF_ONE_PROMPT = MOST_OF_ONE_TEMPLATE = MOST_FLAT = 0.5
MOST_OF_ONE_RESPONSE = 0.2
FEWEST_FOR_TEMPLATE = 10  # prompts; of fewer, half may look alike by chance
MOST_TEXTS = 200_000  # responses that the last one is estimated from, evenly spread
# Signs of a poisoned stream: one key, one prompt, prompts that differ in digits and punctuation only, one
# response, and rewards that are all equal.
Suspicion = Literal["key", "prompt", "template", "response", "reward"]


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Choices of ``vbon distil cache``.

    Attributes:
        identity: the first digits of the identity's digest; ``None``: the one with the newest answer.
        heldout: file of held-out prompts; ``None``: beside the cache.
        heldout_share: share of the prompts that never train.
        min_samples: prompts with fewer samples are left out.
        max_samples: most samples of one prompt, the first.
        missing_eos_reward: reward of samples that the token limit cut off; ``None``: their own.
        replace: whether to replace a file that this command has not made.
    """

    directory: Path
    output: Path
    identity: str | None = None
    heldout: Path | None = None
    heldout_share: float = 0.1
    min_samples: int = 2
    max_samples: int = 1024
    missing_eos_reward: float | None = None
    replace: bool = False

    @property
    def heldout_path(self) -> Path:
        """The file of held-out prompts."""
        return self.heldout or self.output.with_name(f"{self.output.stem}.heldout.jsonl")


@dataclass
class CacheReport:
    """Counts of a cache that was made, and of what was left out of it.

    Attributes:
        answers: lines of the shards that were read.
        prompts, samples, truncated: what the cache has.
        flat_prompts: prompts of the cache whose rewards are all equal, which teach nothing.
        heldout_prompts: prompts in the other file.
        stopped_answers: answers of modes that stop early.
        stopped_samples: samples of these answers that are not independent, and were left out.
        repeated_samples: samples drawn again with the same seed.
        small_prompts: prompts with fewer than ``min_samples`` samples.
        surplus_samples: samples beyond ``max_samples`` of a prompt.
        damaged_shards: shards that were left out.
        suspicions: signs that the traffic is not what one wants to learn from, in sentences.
    """

    answers: int = 0
    prompts: int = 0
    samples: int = 0
    truncated: int = 0
    flat_prompts: int = 0
    heldout_prompts: int = 0
    stopped_answers: int = 0
    stopped_samples: int = 0
    repeated_samples: int = 0
    small_prompts: int = 0
    surplus_samples: int = 0
    damaged_shards: int = 0
    fewest_samples: int = 0
    most_samples: int = 0
    suspicions: dict[Suspicion, str] = field(default_factory=dict)

    def lines(self, options: CacheOptions) -> list[str]:
        """The report for people: what was written, and what was left out and why."""
        cut_off = self.truncated / self.samples if self.samples else 0.0
        each = f"{self.fewest_samples} to {self.most_samples}"
        said = [
            f"{options.output}: {self.prompts:,} prompts with {each} samples, {self.samples:,} in all, "
            f"{cut_off:.0%} cut off by the token limit; from {self.answers:,} answers"
        ]
        if self.heldout_prompts:
            said.append(f"{options.heldout_path}: {self.heldout_prompts:,} held-out prompts")
        for count, what in (
            (self.flat_prompts, "prompts whose rewards are all equal are in it, but teach nothing"),
            (self.small_prompts, f"prompts with fewer than {options.min_samples} samples left out"),
            (self.stopped_samples, "samples left out that rewards had selected (early stopping)"),
            (self.repeated_samples, "samples left out that were the same seed's again"),
            (self.surplus_samples, f"samples left out beyond {options.max_samples} of a prompt"),
            (self.damaged_shards, "damaged shards left out"),
        ):
            if count:
                said.append(f"{count:,} {what}")
        return said


def make_cache(options: CacheOptions) -> CacheReport:
    """Write a cache of all sealed answers of one identity, its metadata and the held-out prompts.

    Raises:
        DataError: there are no such answers, or the output is another's.
        ExportError: a file cannot be written; a cache that was there is intact.
    """
    output = options.output
    if output.is_dir():
        raise ExportError(f"{output} is a directory; give the path of a file as --output")
    shards = _chosen_shards(options)
    with sole_writer(output, remedy="wait for it to end, or choose another --output"):
        _check_output(options)
        with write_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=output.parent) as spool:
                stream = _Stream(options, spool, sum(shard.seal.candidates for shard in shards))
                stream.read(shards)
                return _write(options, shards[0].identity, stream)


def _chosen_shards(options: CacheOptions) -> list[SealedShard]:
    """The sealed shards of one identity, the oldest first.

    Raises:
        DataError: there are none.
    """
    found: dict[str, list[SealedShard]] = {}
    paths = shard_paths(options.directory)
    for path in paths:
        if path.suffix != SEALED:
            continue
        try:
            shard = SealedShard.read(path)
        except DataError as error:
            if path.exists():
                logger.warning("%s; it is left out", error)
            continue
        found.setdefault(shard.identity.digest, []).append(shard)
    if not found:
        waiting = ""
        if len(paths):
            waiting = (
                "; its answers are in open shards, which the service seals when it stops, after "
                "--distil.seal-after-s, or at POST /distil/seal"
            )
        raise DataError(f"{options.directory} has no sealed shards{waiting}")
    if options.identity is None:
        digest = max(found, key=lambda one: max(shard.seal.last_s for shard in found[one]))
    else:
        matching = [one for one in found if options.identity and one.startswith(options.identity)]
        if len(matching) != 1:
            raise DataError(
                f"--identity {options.identity} names {len(matching)} of the identities in "
                f"{options.directory}; these are {', '.join(sorted(found))}"
            )
        (digest,) = matching
    return sorted(found[digest], key=SealedShard.age)


def _check_output(options: CacheOptions) -> None:
    """Check that the files to write are new, or were made by this command.

    Raises:
        DataError: one was not; it may have cost hours.
    """
    output, heldout = options.output, options.heldout_path
    if heldout == output:
        raise DataError(f"--heldout and --output are both {output}; choose another name for one")
    if options.replace:
        return
    made = False
    if metadata_path(output).exists():
        try:
            made = read_json_file(metadata_path(output))["identity"]["backend"] == BACKEND
        except (OSError, ValueError, KeyError, TypeError):
            made = False
    for path in (output, heldout):
        if path.exists() and not made:
            raise DataError(
                f"{path} exists and was not made by this command; choose another name, or replace it with "
                "--replace"
            )


@dataclass
class _Lines:
    """Places of a prompt's lines in the spool, and its number of samples so far."""

    places: list[tuple[int, int]] = field(default_factory=list)
    samples: int = 0


class _Stream:
    """The answers of the shards, copied without what is left out, and grouped by prompt.

    They are copied to a file, because a running service may rewrite or remove the shards meanwhile.
    """

    def __init__(self, options: CacheOptions, spool: IO[bytes], candidates: int) -> None:
        self.options, self.report = options, CacheReport()
        self.prompts: dict[bytes, _Lines] = {}
        self.heldout: dict[bytes, Prompt] = {}
        self._spool, self._size = spool, 0
        self._keys: Counter[str] = Counter()
        self._templates: Counter[bytes] = Counter()
        self._asked: Counter[bytes] = Counter()
        self._texts: Counter[str] = Counter()
        self._candidates, self._stride = 0, 1 + candidates // MOST_TEXTS
        self._seen: set[tuple[bytes, int, int]] = set()

    def read(self, shards: list[SealedShard]) -> None:
        """Read shards; a damaged one is left out as a whole."""
        for shard in shards:
            try:
                for answer in shard.checked_answers():
                    self._add(answer)
            except FileNotFoundError:
                continue  # removed meanwhile, for its age or for room
            except DataError as error:
                logger.warning("%s; it is left out", error)
                self.report.damaged_shards += 1

    def _add(self, answer: CollectedAnswer) -> None:
        report = self.report
        prompt = _digest(answer.prompt_identity)
        report.answers += 1
        self._keys[answer.key] += 1
        self._asked[prompt] += 1
        if self._asked[prompt] == 1:
            self._templates[_digest(template(answer))] += 1
        for text in answer.responses:
            self._candidates += 1
            if self._candidates % self._stride == 0:
                self._texts[text] += 1
        if is_held_out(answer, self.options.heldout_share):
            self.heldout[prompt] = prompt_of(answer)
            return
        kept = self._kept(answer, prompt)
        lines = self.prompts.setdefault(prompt, _Lines())
        room = self.options.max_samples - lines.samples
        report.surplus_samples += max(0, len(kept) - room)
        kept = kept[:room]
        if kept:
            line = to_line(chosen(answer, kept))
            lines.places.append((self._size, len(line)))
            lines.samples += len(kept)
            self._spool.write(line)
            self._size += len(line)

    def _kept(self, answer: CollectedAnswer, prompt: bytes) -> list[int]:
        """The places of the candidates that are independent samples, and new ones."""
        report = self.report
        kept = [i for i, index in enumerate(answer.indices) if index < answer.independent]
        if left_out := len(answer.indices) - len(kept):
            report.stopped_answers += 1
            report.stopped_samples += left_out
        if answer.seed is None:
            return kept
        new = []
        for i in kept:
            sample = (prompt, answer.seed, answer.indices[i])
            if sample not in self._seen:
                self._seen.add(sample)
                new.append(i)
        report.repeated_samples += len(kept) - len(new)
        return new

    def groups(self) -> Iterator[list[CollectedAnswer]]:
        """The answers of each prompt, in the order of its first answer."""
        for lines in self.prompts.values():
            if lines.places:
                yield [self._at(*place) for place in lines.places]

    def _at(self, at: int, length: int) -> CollectedAnswer:
        self._spool.seek(at)
        return parse_line(self._spool.read(length), "a copied answer")

    def suspicions(self) -> dict[Suspicion, str]:
        """Signs of a poisoned stream, with figures."""
        report, found = self.report, dict[Suspicion, str]()
        [(key, of_key)], [(_, of_prompt)] = self._keys.most_common(1), self._asked.most_common(1)
        if key and len(self._keys) > 1 and of_key / report.answers > MOST_OF_ONE_KEY:
            found["key"] = (
                f"one API key sent {of_key / report.answers:.0%} of the {report.answers} answers, so the "
                "cache is about what this key asks; --distil.max-key-share limits it, --distil.exclude-keys "
                "leaves it out"
            )
        if report.answers > 1 and of_prompt / report.answers > MOST_OF_ONE_PROMPT:
            found["prompt"] = (
                f"one prompt makes up {of_prompt / report.answers:.0%} of the {report.answers} answers; if "
                "it is a health check, send it with store: false"
            )
        [(_, of_template)], prompts = self._templates.most_common(1), self._templates.total()
        if prompts >= FEWEST_FOR_TEMPLATE and of_template / prompts > MOST_OF_ONE_TEMPLATE:
            found["template"] = (
                f"{of_template / prompts:.0%} of {prompts} prompts are the same text but for digits and "
                "punctuation, so they are hardly what users ask"
            )
        [(text, of_text)], looked_at = self._texts.most_common(1), self._texts.total()
        if looked_at > 1 and of_text / looked_at > MOST_OF_ONE_RESPONSE:
            found["response"] = (
                f"one response makes up {of_text / looked_at:.0%} of {looked_at} candidates (it has "
                f"{len(text)} characters), so the policy hardly varies, or a client has it repeated"
            )
        if report.prompts and report.flat_prompts / report.prompts > MOST_FLAT:
            found["reward"] = (
                f"the rewards of {report.flat_prompts} of {report.prompts} prompts are all equal, so nothing "
                "can be learned from them; check the reward model"
            )
        return found


def chosen(answer: CollectedAnswer, places: list[int]) -> CollectedAnswer:
    """The answer with only some of its candidates."""

    def pick(column: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(column[i] for i in places)

    ids = answer.response_ids
    return replace(
        answer,
        responses=pick(answer.responses),
        response_ids=None if ids is None else pick(ids),
        rewards=pick(answer.rewards),
        finish_reasons=pick(answer.finish_reasons),
        indices=pick(answer.indices),
    )


def prompt_of(answer: CollectedAnswer) -> Prompt:
    """The prompt of an answer."""
    if answer.messages is None:
        return Prompt(text=answer.prompt)
    return Prompt(messages=tuple(Message(**message) for message in answer.messages))  # type: ignore[typeddict-item]


def _write(options: CacheOptions, identity: Identity, stream: _Stream) -> CacheReport:
    output, report = options.output, stream.report
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("wb") as file:
            for answers in stream.groups():
                file.writelines(_cache_lines(answers, options, report))
            file.flush()
            os.fsync(file.fileno())
        if not report.prompts:
            raise DataError(_nothing(options, stream))
        report.heldout_prompts = len(stream.heldout)
        report.suspicions = stream.suspicions()
        if stream.heldout:
            write_prompts(options.heldout_path, list(stream.heldout.values()))
        else:  # without any, no file is left under that name
            options.heldout_path.unlink(missing_ok=True)
        # Written before the rename, so that a cache never lacks the metadata of its content.
        metadata = _metadata(options, identity, report)
        write_json(metadata_path(output), metadata | {"sha256": sha256_of(partial)})
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return report


def _nothing(options: CacheOptions, stream: _Stream) -> str:
    report = stream.report
    return (
        f"none of the {report.answers} answers in {options.directory} can be trained on: "
        f"{len(stream.heldout)} prompts are held out, {report.small_prompts} have fewer than "
        f"{options.min_samples} samples, {report.stopped_samples} samples are of modes that stop early; "
        "collect more, or lower --heldout-share"
    )


def _cache_lines(
    answers: list[CollectedAnswer], options: CacheOptions, report: CacheReport
) -> Iterator[bytes]:
    """The lines of one prompt: one, or two if only some of its answers still have their token ids."""
    count = sum(len(one.rewards) for one in answers)
    if count < options.min_samples:
        report.small_prompts += 1
        return
    distinct: set[float] = set()
    for with_ids in (True, False):
        merged = [one for one in answers if (one.response_ids is not None) == with_ids]
        if not merged:
            continue
        reasons = [reason for one in merged for reason in one.finish_reasons]
        cut_off = [reason == "length" for reason in reasons]
        rewards = with_missing_eos_reward(
            [reward for one in merged for reward in one.rewards],
            cut_off,
            options.missing_eos_reward,
        )
        record: dict[str, Any] = {
            "prompt": merged[0].prompt,
            "responses": [text for one in merged for text in one.responses],
            "rewards": rewards,
            "finish_reasons": reasons,
        }
        if with_ids:
            record["response_ids"] = [ids for one in merged for ids in one.response_ids or ()]
        if merged[0].messages is not None:
            record["messages"] = merged[0].messages
        distinct.update(reward for reward in rewards if reward is not None)
        report.truncated += sum(cut_off)
        yield json.dumps(record, ensure_ascii=False).encode() + b"\n"
    report.prompts += 1
    report.samples += count
    report.flat_prompts += len(distinct) < 2
    report.most_samples = max(report.most_samples, count)
    report.fewest_samples = min(report.fewest_samples or count, count)


def _metadata(options: CacheOptions, identity: Identity, report: CacheReport) -> dict[str, Any]:
    config = {name: _plain(value) for name, value in asdict(options).items()}
    return {
        **provenance(config),
        "identity": {
            **identity.model_dump(mode="json", exclude_none=True),
            "missing_eos_reward": options.missing_eos_reward,
            "backend": BACKEND,
        },
        # The samples were drawn and scored to answer requests, so training pays nothing for them.
        "cost": {"sampling_seconds": 0.0},
        "samples": {"scored": report.samples, "truncated": report.truncated},
        "collected": asdict(report),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
