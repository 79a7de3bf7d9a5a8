"""Sampling runs that meet the files of an earlier run, ``--replace`` or a full disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from training.cache import sample, sample_file
from training.cache.metadata import check_content
from training.cache.sample import build_cache
from training.cache.sample_backends import Response
from training.configs import SampleConfig, TrainConfig
from training.outputs.identity import read_undamaged_record
from training.train.inputs import TrainingInputs
from vbon.engine import FinishReason
from vbon.errors import DataError, ExportError, InvalidInputError, RewardError
from vbon.prompt_files import encode_prompts, read_prompts
from vbon.prompts import Prompt
from vbon.storage.cache_metadata import metadata_path
from vbon.storage.checkpoints import Checkpoint
from vbon.storage.checksums import sha256_of


def line(prompt: str) -> bytes:
    return json.dumps({"prompt": prompt, "responses": ["x"], "rewards": [1.5]}).encode() + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.jsonl.partial"


def whole_lines(path: Path) -> dict[str, range]:
    return sample_file._complete_lines(path, 4)


@pytest.mark.parametrize("torn", [line("c")[:-1], line("c")[:9], b"\0" * 100, b"\xff", b"{"])
def test_a_torn_last_line_is_cut_off(path: Path, torn: bytes) -> None:
    path.write_bytes(line("a") + line("b") + torn)
    size = len(line("a"))
    assert whole_lines(path) == {"a": range(size), "b": range(size, 2 * size)}
    assert path.read_bytes() == line("a") + line("b")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (line("b")[:20] + b"\n", "not valid JSON"),
        (line("b").replace(b"b", b"\xff", 1), "not valid JSON"),
        (b"\0" * 30 + b"\n", "not valid JSON"),
        (line("b").replace(b"1.5", b"NaN"), "not finite"),
        (line("b").replace(b"prompt", b"promqt"), 'no string "prompt"'),
        (line("b\ud83d"), r"contains '\\ud83d', half a character"),
        (b"[" * 200_000 + b"\n", "not valid JSON"),
        (line("a"), "repeats the prompt of line 1"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_cut(path: Path, bad: bytes, words: str) -> None:
    content = line("a") + bad + line("c")
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"partial:2.*{words}.*delete"):
        whole_lines(path)
    assert path.read_bytes() == content


def test_line_ends_of_another_system_are_no_damage(path: Path) -> None:
    path.write_bytes((line("a") + line("b")).replace(b"\n", b"\r\n"))
    assert list(whole_lines(path)) == ["a", "b"]


def test_a_full_disk_leaves_whole_lines_and_is_named_once(path: Path) -> None:
    """The line half written is cut off again, and closing the file does not write it after all."""
    path.write_bytes(line("a"))

    def half_full(part: memoryview) -> int:
        if len(part) < 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.write(real.fileno(), part[:20])
        return 20

    with path.open("ab", buffering=0) as real:
        handle = SimpleNamespace(write=half_full, seek=real.seek, fileno=real.fileno)
        with pytest.raises(ExportError, match=r"partial: No space left .*same command again"):
            sample_file.append_line(handle, path, line("b"))  # type: ignore[arg-type]
    assert path.read_bytes() == line("a")


def test_a_cache_that_is_not_as_it_was_written_is_named(tmp_path: Path) -> None:
    check_content(tmp_path / "cache.jsonl", {}, "a" * 64)
    check_content(tmp_path / "cache.jsonl", {"sha256": "a" * 64}, "a" * 64)
    with pytest.raises(DataError, match=r"cache\.jsonl: its content .* delete cache\.jsonl\.meta"):
        check_content(tmp_path / "cache.jsonl", {"sha256": "a" * 64}, "b" * 64)


def test_a_damaged_record_is_not_a_missing_one(tmp_path: Path) -> None:
    assert read_undamaged_record(tmp_path / "x.json") is None
    for damaged in ('{"a": 1', "[" * 200_000):
        (tmp_path / "x.json").write_text(damaged)
        with pytest.raises(DataError, match=r"x\.json is damaged"):
            read_undamaged_record(tmp_path / "x.json")


def test_prompts_are_lines_by_line_feeds_alone(tmp_path: Path) -> None:
    """JSON strings may hold characters at which ``str.splitlines`` breaks."""
    path = tmp_path / "prompts.txt"
    odd = "one\u2028two\x85three"
    path.write_text(json.dumps({"prompt": odd}, ensure_ascii=False) + "\r\nplain\r\n\r\n", "utf-8")
    assert [prompt.text for prompt in read_prompts(path)] == [odd, "plain"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"\0\0", "contains NUL"),
        (b'{"prompt": "caf\\ud83d"}', r"contains '\\ud83d', half a character"),
        (b'{"messages": [{"role": "user", "content": "\\udc00"}]}', "half a character"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "not a JSON object"),
        (b'{"prompt": ' + b"[" * 200_000, "not a JSON object"),
    ],
)
def test_a_damaged_prompt_file_is_named_by_line(tmp_path: Path, bad: bytes, words: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"a\n" + bad + b"\n")
    with pytest.raises(DataError, match=rf"prompts\.txt:2 .*{words}"):
        read_prompts(path)


def refused(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("prompts.txt", "c.jsonl"):
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(Path, "read_bytes", refused)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"cannot read .*prompts\.txt: Permission denied"):
        read_prompts(tmp_path / "prompts.txt")
    with pytest.raises(DataError, match=r"cannot read .*c\.jsonl: Permission denied"):
        whole_lines(tmp_path / "c.jsonl")


def test_a_chat_that_the_template_refuses_is_named() -> None:
    jinja2 = pytest.importorskip("jinja2")

    def refuse(*_: object, **__: object) -> str:
        raise jinja2.TemplateError("roles must alternate")

    tokenizer = SimpleNamespace(chat_template="of sorts", apply_chat_template=refuse)
    with pytest.raises(DataError, match=r"'user: hi': the chat template .* roles must alternate"):
        encode_prompts(tokenizer, [Prompt(messages=({"role": "user", "content": "hi"},))])


# --- from start to end, with samples out of thin air ---


class Sampler:
    """Stands in for the models: yields the prompts last to first, and notes which it drew."""

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.fails_after: int | None = None
        self.loads = True
        self.second_ends: FinishReason = "stop"

    async def source(
        self, config: SampleConfig, prompts: list[Prompt]
    ) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
        for done, prompt in enumerate(reversed(prompts)):
            if done == self.fails_after:
                raise KeyboardInterrupt
            self.drawn.append(prompt.key)
            ended = Response(f"{config.temperature}", [1, 2], "stop")
            yield prompt, [ended, replace(ended, finish_reason=self.second_ends)]

    def load(self) -> None:
        if not self.loads:
            raise RewardError("does not load")

    def reward(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(
            revision="r",
            load=self.load,
            score=lambda items: [float(len(items))] * len(items),
            close=lambda: None,
        )


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Sampler:
    made = Sampler()
    monkeypatch.setattr(sample, "sample_with_transformers", made.source)
    monkeypatch.setattr(sample, "check_checkpoint", lambda path, kind: Checkpoint(path, "p"))
    monkeypatch.setattr(sample, "open_unsupervised", made.reward)
    return made


Configure = Callable[..., SampleConfig]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    def config(prompts: str = "abc", **changes: object) -> SampleConfig:
        (tmp_path / "prompts").write_text("\n".join(prompts))
        return SampleConfig(
            prompts=tmp_path / "prompts", out=tmp_path / "cache.jsonl", backend="transformers",
            **changes,  # type: ignore[arg-type]
        )  # fmt: skip

    return config


def rows(cache: Path) -> list[tuple[str, str]]:
    """The prompt and the first response of each line."""
    records = [json.loads(line) for line in cache.read_text().splitlines()]
    return [(record["prompt"], record["responses"][0]) for record in records]


def broken_off(sampler: Sampler, config: SampleConfig, after: int) -> None:
    sampler.fails_after = after
    with pytest.raises(KeyboardInterrupt):
        build_cache(config)
    sampler.fails_after = None


def check_whole(config: SampleConfig, expected: str, drawn: str = "1.0") -> None:
    """The cache has these lines and its record, and nothing else is left."""
    assert rows(config.out) == [(prompt, drawn) for prompt in expected]
    record = read_undamaged_record(metadata_path(config.out))
    assert record is not None
    assert record["sha256"] == sha256_of(config.out)
    left = {path.name for path in config.out.parent.iterdir()}
    assert left == {"prompts", "cache.jsonl", "cache.jsonl.meta.json"}


def test_lines_stand_in_the_order_of_the_prompts_whenever_they_are_done(
    sampler: Sampler, configure: Configure
) -> None:
    build_cache(configure("abc"))
    check_whole(configure("abc"), "abc")
    before = configure().out.read_bytes()
    build_cache(configure("abc"))
    assert configure().out.read_bytes() == before
    assert sampler.drawn == ["c", "b", "a"]


def test_the_prior_of_a_finished_cache_is_told_also_when_it_was_complete(
    sampler: Sampler,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    values = iter([[0.0, 2.0], [4.0, 6.0], [5.0, 7.0]])
    scored = sampler.reward()
    scored.score = lambda items: next(values)
    monkeypatch.setattr(sample, "open_unsupervised", lambda *_, **__: scored)
    caplog.set_level("INFO")
    for _ in range(2):
        caplog.clear()
        build_cache(configure("abc"))
        # Means 1, 5, 6: 4. Variances 2 each: within 2, between 7 - 2 / 2 = 6; equal spreads count most.
        assert "prior_mean 4, prior_sd 1.4, prior_mean_candidates 0.3333" in caplog.text
        assert "prior_sd_candidates 100" in caplog.text


def test_the_share_of_samples_that_were_cut_off_counts_every_run(
    sampler: Sampler, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    """The second sample of two prompts of three was cut off: one in the first run, one in the second."""
    caplog.set_level("INFO")
    sampler.second_ends = "length"
    broken_off(sampler, configure("abc"), after=1)
    sampler.second_ends = "stop"
    broken_off(sampler, configure("abc"), after=1)
    sampler.second_ends = "length"
    for _ in range(2):  # also when it was complete
        caplog.clear()
        build_cache(configure("abc"))
        assert "2 of 6 samples (33%) were cut off at 40 tokens; they are scored as" in caplog.text
    record = read_undamaged_record(metadata_path(configure().out))
    assert record is not None
    assert record["samples"] == {"scored": 6, "truncated": 2}
    inputs = TrainingInputs(TrainConfig(cache=configure().out), 1, 1, 1)
    assert inputs.truncated_share == pytest.approx(1 / 3)


def test_a_resumed_run_makes_the_very_file_of_an_unbroken_one(
    sampler: Sampler, configure: Configure
) -> None:
    config = configure("abcd")
    build_cache(config)
    whole = config.out.read_bytes()
    config.out.unlink()
    metadata_path(config.out).unlink()
    broken_off(sampler, config, after=2)
    build_cache(config)
    assert config.out.read_bytes() == whole
    assert sampler.drawn[4:] == ["d", "c", "b", "a"]


def test_the_time_of_the_whole_cache_is_recorded(
    sampler: Sampler, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of four prompts were resumed and took 3 s by the clock, so all four take 6 s."""
    config = configure("abcd")
    broken_off(sampler, config, after=2)
    clock = iter([10.0, 13.0])
    monkeypatch.setattr(sample, "perf_counter", lambda: next(clock))
    build_cache(config)
    record = read_undamaged_record(metadata_path(config.out))
    assert record is not None
    assert record["cost"] == {"sampling_seconds": 6.0, "seconds_of_prompts": 2}
    inputs = TrainingInputs(TrainConfig(cache=config.out), 0, 0, 0)
    assert inputs.sampling_seconds == 6.0
    metadata_path(config.out).unlink()
    assert inputs.sampling_seconds is None


def test_added_prompts_take_their_place_and_dropped_ones_the_end(
    sampler: Sampler, configure: Configure
) -> None:
    build_cache(configure("xby"))
    broken_off(sampler, configure("abc"), after=1)
    build_cache(configure("abc"))
    check_whole(configure("abc"), "abcxy")
    assert sampler.drawn == ["y", "b", "x", "c", "a"]


@pytest.mark.parametrize("ending", [".partial", ".ordered", ".meta.json.partial"])
def test_a_run_killed_while_the_cache_takes_its_name_goes_on(
    sampler: Sampler, configure: Configure, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    config = configure("a" if ending == ".partial" else "ab")
    rename = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name == f"cache.jsonl{ending}":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            build_cache(config)
    build_cache(config)
    check_whole(config, config.prompts.read_text().replace("\n", ""))
    assert len(sampler.drawn) == len(rows(config.out))


def test_a_cache_to_be_replaced_stays_until_another_is_whole(
    sampler: Sampler, configure: Configure
) -> None:
    build_cache(configure())
    old = {path: path.read_bytes() for path in (configure().out, metadata_path(configure().out))}
    other = configure(temperature=0.5, replace=True)
    sampler.loads = False
    with pytest.raises(RewardError, match="does not load"):
        build_cache(other)
    sampler.loads = True
    for after in (0, 1, 1):  # before the first line, after it, and after the second
        broken_off(sampler, other, after)
        assert {path: path.read_bytes() for path in old} == old
    build_cache(other)
    check_whole(other, "abc", "0.5")
    assert sampler.drawn == ["c", "b", "a"] * 2


@pytest.mark.parametrize(
    ("problem", "words"),
    [("away", "cannot connect to"), ("small", "no machine of the Ray cluster")],
)
def test_a_cache_stays_where_it_is_if_ray_cannot_do_the_work(
    sampler: Sampler,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    problem: str,
    words: str,
) -> None:
    """A finished cache takes its unfinished name when prompts are added, but only once work begins."""
    ray = pytest.importorskip("ray")

    def away(**_: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(ray, "init", away)
    monkeypatch.setattr(ray, "is_initialized", lambda: problem == "small")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    build_cache(configure("abc"))
    values = configure("abcd").model_dump(exclude_unset=True)
    more = SampleConfig(
        **{**values, "backend": "ray", "worker_backend": "transformers", "worker_gpus": 1}
    )
    with pytest.raises(InvalidInputError, match=words):
        build_cache(more)
    check_whole(configure("abcd"), "abc")


def test_an_unfinished_replacement_is_gone_on_with_only_under_its_settings(
    sampler: Sampler, configure: Configure
) -> None:
    build_cache(configure())
    broken_off(sampler, configure(temperature=0.5, replace=True), after=1)
    with pytest.raises(DataError, match=r"partial was made with .*temperature: 0\.5 -> 1\.0"):
        build_cache(configure())
    build_cache(configure(replace=True))
    assert rows(configure().out) == [(prompt, "1.0") for prompt in "abc"]
    broken_off(sampler, configure(temperature=0.5, replace=True), after=1)
    build_cache(configure(temperature=2.0, replace=True))
    check_whole(configure(), "abc", "2.0")


def spoil_content(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes().replace(b"1.0", b"1.1", 1))


def spoil_record(cache: Path) -> None:
    metadata_path(cache).write_text("{")


def spoil_no_record(cache: Path) -> None:
    metadata_path(cache).unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_content, "its content is not what .* sample it again with --replace"),
        (spoil_record, r"meta\.json is damaged"),
        (spoil_no_record, r"has no cache\.jsonl\.meta\.json that says .* again with --replace"),
    ],
)
def test_a_damaged_cache_is_sampled_again_if_told_to(
    sampler: Sampler, configure: Configure, spoil: Callable[[Path], None], words: str
) -> None:
    build_cache(configure())
    spoil(configure().out)
    with pytest.raises(DataError, match=words):
        build_cache(configure())
    build_cache(configure(replace=True))
    check_whole(configure(), "abc")


def test_an_unfinished_cache_of_an_earlier_version_is_gone_on_with(
    sampler: Sampler, configure: Configure
) -> None:
    """Earlier versions kept the metadata of an unfinished cache under the name of the finished one."""
    config = configure()
    build_cache(config)
    shutil.move(config.out, config.out.with_name("cache.jsonl.partial"))
    partial = config.out.with_name("cache.jsonl.partial")
    partial.write_bytes(partial.read_bytes()[:-10])
    build_cache(config)
    check_whole(config, "abc")
    assert sampler.drawn == ["c", "b", "a", "c"]


def test_a_directory_is_no_cache(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure()
    monkeypatch.chdir(config.out.parent)
    with pytest.raises(ExportError, match="is a directory; give the path"):
        build_cache(config.model_copy(update={"out": Path()}))
