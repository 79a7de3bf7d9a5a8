"""A host's change of weights step by step, with a stub in place of vLLM, and what counts as weights alone."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.test_checkpoints import write_model, write_safetensors
from tests.unit.test_engine_starts import Guard, Llm
from vbon.engine import Sampling
from vbon.engine.fake import FakeEngine
from vbon.engine.remote.engine import RemoteEngine
from vbon.engine.vllm import host as vllm_host
from vbon.engine.vllm.engine import VllmEngine
from vbon.engine.vllm.host import VllmHost
from vbon.engine.vllm.options import VllmOptions
from vbon.errors import CheckpointError, EngineDeadError, NotReadyError, ReloadRefusedError
from vbon.prompts import Prompt
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.weights_alone import NewWeights, new_weights, read_beside_weights


class VllmDeadError(Exception):
    """An error like vLLM's own, which the host translates."""


class Changing(Llm):
    """Records what it is told, as one word each; the methods in ``failing`` fail."""

    def __init__(self) -> None:
        super().__init__()
        self.told_to: list[str] = []
        self.failing: set[str] = set()
        self.on_load: Any = lambda: None

    async def pause_generation(self, *, mode: str) -> None:
        await self._do(f"pause-{mode}")

    async def resume_generation(self) -> None:
        await self._do("resume")

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> None:
        name = "-".join([method.removeprefix("vbon_"), *(Path(str(one)).name for one in args)])
        if method == "vbon_change_weights":
            self.on_load()
        await self._do(name)

    async def _do(self, name: str) -> None:
        self.told_to.append(name)
        if any(name.startswith(one) for one in self.failing):
            raise RuntimeError(f"{name} failed")


class Host(VllmHost):
    killed = 0

    def __init__(self, path: str, options: VllmOptions | None = None) -> None:
        super().__init__(path, options or VllmOptions())

    def _build(self) -> Any:
        return Changing()

    def kill(self) -> None:
        self.killed += 1


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(vllm_host, "Guardian", lambda _: Guard())
    monkeypatch.setattr(vllm_host, "_release", lambda _: None)
    monkeypatch.setattr(
        vllm_host, "vllm_api", lambda: SimpleNamespace(EngineDeadError=VllmDeadError)
    )
    directory = tmp_path / "old"
    directory.mkdir()
    write_model(directory)
    return directory


def next_to(model: Path, payload: bytes = b"\1" * 16, name: str = "new") -> Path:
    """A copy with other weights, beside the model or in its place."""
    other = model.parent / name
    if other != model:
        shutil.copytree(model, other)
    write_safetensors(other / "model.safetensors", payload)
    return other


class Served:
    """A started host and its stub."""

    def __init__(self, host: Host) -> None:
        self.host, self.engine = host, VllmEngine(host)
        self.llm: Any = host.llm

    async def change(self, path: Path, **options: Any) -> None:
        await self.engine.change_weights(self.host.check_weights(str(path)), **options)


async def serve(model: Path, **options: Any) -> Served:
    host = Host(str(model), **options)
    await host.start()
    return Served(host)


async def test_the_order_of_a_change_and_what_is_served_then(model: Path) -> None:
    served = await serve(model)
    first = served.engine.info.revision
    new = next_to(model)
    for mode, keep in (("wait", False), ("keep", True)):
        served.llm.told_to.clear()
        await served.change(new if keep is False else model, keep_requests=keep)
        target = "new" if keep is False else "old"
        assert served.llm.told_to == [f"pause-{mode}", f"change_weights-{target}-False", "resume"]
    assert served.engine.info.revision == served.host.checkpoint.revision == first
    assert served.engine.info.replaced == (first, check_checkpoint(str(new), "causal-lm").revision)
    assert served.engine.info.path == str(model)


@pytest.mark.parametrize(
    ("overwritten", "expected"),
    [
        (False, ["change_weights-new-False", "change_weights-old-False"]),
        (True, ["change_weights-old-True", "put_back"]),
    ],
)
async def test_old_weights_come_from_where_they_still_are(
    model: Path, overwritten: bool, expected: list[str]
) -> None:
    served = await serve(model)
    info = served.engine.info
    new = next_to(model, name="old" if overwritten else "new")
    served.llm.failing = {expected[0]}
    with pytest.raises(CheckpointError, match=r"cannot load the weights of .*RuntimeError"):
        await served.change(new)
    assert served.llm.told_to == ["pause-wait", *expected, "resume"]
    assert (served.engine.info, served.host.killed) == (info, 0)


async def test_a_copy_that_was_kept_is_freed_after_the_change(model: Path) -> None:
    served = await serve(model)
    await served.change(next_to(model, name="old"))
    assert served.llm.told_to == [
        "pause-wait", "change_weights-old-True", "forget_kept", "resume",
    ]  # fmt: skip


async def test_old_weights_behind_a_link_are_found_where_it_led(model: Path) -> None:
    link = model.parent / "link"
    link.symlink_to(model)
    served = await serve(link)
    new = next_to(model)
    link.unlink()
    link.symlink_to(new)
    served.llm.failing = {"change_weights-link"}
    with pytest.raises(CheckpointError):
        await served.change(link)
    assert served.llm.told_to[1:3] == ["change_weights-link-False", "change_weights-old-False"]


async def test_files_that_change_while_they_are_loaded_are_not_served(model: Path) -> None:
    served = await serve(model)
    new = next_to(model)
    served.llm.on_load = lambda: write_safetensors(new / "model.safetensors", b"\4" * 16)
    with pytest.raises(CheckpointError, match="changed while they were loaded"):
        await served.change(new)
    assert served.llm.told_to[-2:] == ["change_weights-old-False", "resume"]
    assert served.host.checkpoint.path == str(model)


@pytest.mark.parametrize("reason", ["put_back fails", "load fails again", "the old files are new"])
async def test_an_engine_whose_old_weights_are_lost_is_ended(model: Path, reason: str) -> None:
    served = await serve(model)
    new = next_to(model, name="old" if reason == "put_back fails" else "new")
    served.llm.failing = {"change_weights", "put_back"}
    if reason == "the old files are new":
        served.llm.on_load = lambda: write_safetensors(model / "model.safetensors", b"\4" * 16)
    with pytest.raises(EngineDeadError, match="could not put its old weights back"):
        await served.change(new)
    assert served.host.killed == 1
    assert "resume" not in served.llm.told_to


async def test_one_that_hangs_is_ended_or_goes_on(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(model)
    new, resumed = next_to(model), served.llm.resume_generation
    hang = asyncio.Event().wait

    async def hanging(*_: object, **__: object) -> None:
        await hang()

    monkeypatch.setattr(vllm_host, "FINISH_S", 0.05)
    monkeypatch.setattr(served.llm, "pause_generation", hanging)
    with pytest.raises(NotReadyError, match=r"after 0\.05 s"):
        await served.change(new)
    assert (served.llm.told_to, served.host.killed) == (["resume"], 0)
    monkeypatch.undo()
    monkeypatch.setattr(
        vllm_host, "vllm_api", lambda: SimpleNamespace(EngineDeadError=VllmDeadError)
    )
    monkeypatch.setattr(vllm_host, "CHANGE_S", 0.05)
    monkeypatch.setattr(served.llm, "collective_rpc", hanging)
    monkeypatch.setattr(served.llm, "resume_generation", resumed)
    with pytest.raises(EngineDeadError, match=r"within 0\.05 s"):
        await served.change(new)
    assert served.host.killed == 1


async def test_an_engine_that_dies_meanwhile_is_reported_as_dead(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(model)

    async def dead(**_: object) -> None:
        raise VllmDeadError

    monkeypatch.setattr(served.llm, "pause_generation", dead)
    monkeypatch.setattr(served.llm, "resume_generation", dead)
    with pytest.raises(EngineDeadError, match="has died"):
        await served.change(next_to(model))


async def test_a_silent_engine_is_not_taken_for_one_that_hangs_while_it_changes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(model, options=VllmOptions(stall_timeout_s=0.01))
    served.llm.waiting, silent, now_s = 3, [], [0.0]
    monkeypatch.setattr(vllm_host, "monotonic", lambda: now_s[0])

    async def slow(*_: object, **__: object) -> None:
        now_s[0] += 60
        await served.engine.check()
        silent.append(served.host.silent_s)

    monkeypatch.setattr(served.llm, "collective_rpc", slow)
    await served.change(next_to(model), keep_requests=True)
    assert (silent, served.host.killed) == ([0], 0)


async def test_an_engine_with_another_extension_is_not_changed(model: Path) -> None:
    served = await serve(model, options=VllmOptions(args={"worker_extension_cls": "mine.Worker"}))
    with pytest.raises(ReloadRefusedError, match="worker_extension_cls is in use"):
        served.host.check_weights(str(next_to(model)))


async def test_weights_on_other_servers_are_not_ours_to_change() -> None:
    remote = RemoteEngine("http://127.0.0.1:1#m")
    with pytest.raises(ReloadRefusedError, match="change them there"):
        await remote.check_weights("/models/vbon")


def compared(model: Path, other: Path) -> NewWeights:
    served = read_beside_weights(check_checkpoint(str(model), "causal-lm"))
    assert served is not None
    return new_weights(check_checkpoint(str(other), "causal-lm"), served)


def test_weights_alone_may_differ_whatever_the_card_and_the_shards(model: Path) -> None:
    other = next_to(model)
    (other / "README.md").write_text("another run")
    config = json.loads((other / "config.json").read_text())
    config |= {"_name_or_path": "elsewhere", "transformers_version": "5"}
    (other / "config.json").write_text(json.dumps(config, indent=2))
    (other / "model.safetensors").rename(other / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    assert compared(model, other).checkpoint.path == str(other)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tokenizer.json", "tokenizer.json has changed"),
        ("config.json", "config.json has changed"),
        ("generation_config.json", "generation_config.json is new"),
        ("chat_template.jinja", "chat_template.jinja is new"),
        ("additional_chat_templates/tools.jinja", "tools.jinja is new"),
        ("special_tokens_map.json", "special_tokens_map.json is new"),
        ("modeling_custom.py", "modeling_custom.py is new"),
    ],
)
def test_every_other_file_that_decides_answers_must_be_the_same(
    model: Path, name: str, told: str
) -> None:
    other = next_to(model)
    (other / name).parent.mkdir(exist_ok=True)
    (other / name).write_text('{"architectures": ["LlamaForCausalLM"], "changed": 1}')
    with pytest.raises(ReloadRefusedError, match=f"{told}; reload it without in_place"):
        compared(model, other)
    if "new" in told:
        with pytest.raises(ReloadRefusedError, match="is missing"):
            compared(other, model)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"v": {"dtype": "F32", "shape": [4]}}, r"weight v is F32 \[4\] instead of absent"),
        (
            {"w": {"dtype": "F32", "shape": [2, 2]}},
            r"weight w is F32 \[2, 2\] instead of F32 \[4\]",
        ),
        ({"w": {"dtype": "I32", "shape": [4]}}, r"weight w is I32 \[4\] instead of F32 \[4\]"),
    ],
)
def test_weights_must_have_the_same_names_shapes_and_types(
    model: Path, entry: dict[str, Any], told: str
) -> None:
    other = next_to(model)
    header = {name: one | {"data_offsets": [0, 16]} for name, one in entry.items()}
    raw = json.dumps(header).encode()
    file = other / "model.safetensors"
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * 16)
    with pytest.raises(ReloadRefusedError, match=told):
        compared(model, other)


async def drawn(engine: FakeEngine, seed: int | None = 1) -> list[tuple[int, ...]]:
    sampling = Sampling(max_tokens=8, seed=seed, temperature=0 if seed is None else 1)
    ids = await engine.encode(Prompt(text="p"))
    async with aclosing(engine.generate(ids, sampling, 4, "r")) as candidates:
        found = [(one.index, one.token_ids) async for one in candidates]
    return [ids for _, ids in sorted(found)]


@pytest.mark.parametrize("seed", [None, 1])
async def test_the_fake_keeps_the_contract(model: Path, seed: int | None) -> None:
    """What it draws after a change is what another one draws that was started on the same files."""
    new = next_to(model)
    changed, fresh = FakeEngine(str(model), seconds_per_token=0.01), FakeEngine(str(new))
    await changed.start()
    await fresh.start()
    before, first = await drawn(changed, seed), changed.info
    under_way = asyncio.create_task(drawn(changed, seed))
    while not changed.running:  # noqa: ASYNC110
        await asyncio.sleep(0)
    changing = asyncio.create_task(changed.change_weights(await changed.check_weights(str(new))))
    await asyncio.sleep(0)
    later = asyncio.create_task(drawn(changed, seed))
    await changing
    assert (await under_way, await later) == (before, await drawn(fresh, seed))
    assert before != await drawn(fresh, seed)
    assert changed.info == replace(fresh.info, replaced=(first.revision,))
    write_safetensors(new / "model.safetensors", b"\5" * 16)
    late = await changed.check_weights(str(new))
    write_safetensors(new / "model.safetensors", b"\6" * 16)
    with pytest.raises(CheckpointError, match="changed while they were loaded"):
        await changed.change_weights(late)
    assert await drawn(changed, seed) == await drawn(fresh, seed)
    plain = FakeEngine()
    await plain.start()
    with pytest.raises(ReloadRefusedError, match="not a directory"):
        await plain.check_weights(str(new))
