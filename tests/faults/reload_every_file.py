"""Each kind of file of a served model changes: weights, tokenizer, chat template, generation config."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.faults.service import ENGINE_FLAGS, Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally

PROMISE = (
    "After a reload, and after the restart of a dead engine, answers are those of a fresh start on the "
    "same files."
)
TEXT = "the film was good"
TEMPLATE = "{% for message in messages %}{{ message['content'] }} film {% endfor %}"
WHAT_FILES_DECIDE = (
    "text", "token_ids", "token_logprobs", "finish_reason", "usage", "policy", "reward", "error",
)  # fmt: skip

Answers = list[dict[str, Any]]


async def inject(stage: Stage) -> Tally:
    """Change all files and reload; change them back and kill the engine; compare with fresh starts."""
    tally = Tally()
    service = await stage.second_service()
    original, changed = stage.scratch / "every-file-before", stage.scratch / "every-file-after"
    shutil.copytree(stage.served, original)
    before = await _answers(service, "vbon", tally)
    shutil.copytree(original, changed)
    _change_all(changed, stage.sandbox / "policy", before)
    _put(changed, stage.served)
    reloaded = await service.client.post("/admin/reload", json={"model": "vbon"}, timeout=300)
    if reloaded.status_code != 200:
        tally.fail(f"reload: {reloaded.status_code} {reloaded.text[:300]}")
    after = await _answers(service, "vbon", tally)
    _put(original, stage.served)
    await _restart_newest_engine(service, tally)
    back = await _answers(service, "vbon", tally)
    fresh = await _fresh(stage, changed, tally)
    _compare("the restart of the engine", back, before, tally)
    _compare("the reload", after, fresh, tally)
    for was, now in zip(before, after, strict=True):
        if was.get("token_ids") == now.get("token_ids"):
            tally.fail(f"the changes make no difference, so nothing is shown: {was}")
    return tally


async def _answers(service: Service, mode: str, tally: Tally) -> Answers:
    """The answers to a text and to a chat, with what the model's files decide of them."""
    found: Answers = []
    for prompt in ({"prompt": TEXT}, {"messages": [{"role": "user", "content": TEXT}]}):
        body = {"max_tokens": 24, "seed": 5, "logprobs": True, **prompt}
        response = await service.client.post("/generate", params={"mode": mode}, json=body)
        tally.add(response)
        content = response.json()
        content["error"] = content.get("error", {}).get("message")
        content["policy"] = content.get("policy", {}).get("revision")
        found.append({key: content.get(key) for key in WHAT_FILES_DECIDE})
    return found


def _change_all(model: Path, other: Path, answers: Answers) -> None:
    """Give a model the weights of another, two words for each other, a template, and an early end."""
    shutil.copyfile(other / "model.safetensors", model / "model.safetensors")
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(TEXT).ids
    one, two = list(dict.fromkeys(number for number in ids if number > 2))[:2]
    swapped = {one: two, two: one}
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: swapped.get(at, at) for word, at in vocab.items()}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    config = json.loads((model / "generation_config.json").read_text(encoding="utf-8"))
    [(frequent, _)] = Counter(answers[0]["token_ids"]).most_common(1)
    config["eos_token_id"] = sorted({config["eos_token_id"], frequent})
    (model / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    (model / "checksums.json").unlink(missing_ok=True)


def _put(model: Path, place: Path) -> None:
    """Make a directory hold these files, and no others."""
    for file in place.iterdir():
        if file.is_file() and not (model / file.name).exists():
            file.unlink()
    shutil.copytree(model, place, dirs_exist_ok=True)


async def _restart_newest_engine(service: Service, tally: Tally) -> None:
    """Kill the engine that the reload has started."""
    service.children("EngineCore")[-1].send_signal(signal.SIGKILL)
    if not await service.until_not_ready():
        tally.fail("readiness did not drop")
    await service.until_ready(200)


async def _fresh(stage: Stage, model: Path, tally: Tally) -> Answers:
    flags = (
        *(*ENGINE_FLAGS, "--policies", f"ref={model}"),
        *("--reward", str(stage.sandbox / "reward")),
    )
    async with stage.serving(*flags, models=False) as service:
        return await _answers(service, "ref", tally)


def _compare(when: str, found: Answers, expected: Answers, tally: Tally) -> None:
    for ours, fresh in zip(found, expected, strict=True):
        differing = [key for key in ours if ours[key] != fresh[key]]
        if differing:
            tally.fail(f"after {when}, {differing} differ from a fresh start: {ours} and {fresh}")
