"""What people write and are answered, and their keys, are not in the logs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from bestofn.engine.fake import FakeEngine
from service.keys import new_key, write_keys
from tests.unit.fakes import FakeReward, make_runtime, serving, stream

CANARY = "canary7f3a"


async def test_no_record_of_any_level_holds_prompts_answers_or_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [new_key("ann"), new_key("bob", tokens_per_minute=1)]
    file = tmp_path / "keys.jsonl"
    write_keys(file, [key for key, _ in pairs])
    token, poor = (token for _, token in pairs)
    headers = {"authorization": f"Bearer {token}"}
    body: dict[str, Any] = {"prompt": f"{CANARY} was", "n": 2, "max_tokens": 6}
    texts: list[str] = []
    runtime = make_runtime(auth={"keys_file": str(file)}, reward=Failing())
    with caplog.at_level(logging.DEBUG):
        async with serving(runtime) as (app, client):
            client.headers.update(headers)
            quiet = {**body, "score": False}  # the reward model fails on all of ours
            for path in ("/generate?mode=ref", "/generate?mode=bon"):
                texts.append((await client.post(path, json=quiet)).json().get("text", ""))
            await client.post("/generate", json=body)
            chat = {"model": "vbon", "messages": [{"role": "user", "content": CANARY}]}
            await client.post("/v1/chat/completions", json=chat)
            await client.post("/v1/completions", json={"model": CANARY, "prompt": CANARY})
            await client.post("/compare", json={"prompts": [CANARY], "modes": ["ref", "bon"]})
            await client.post("/generate", json={"prompt": [CANARY], CANARY: 1})
            await client.post("/generate", content=f'{{"prompt": "{CANARY}'.encode())
            await client.post("/generate", json={"prompt": CANARY * 500, "max_tokens": 4000})
            await client.get(f"/{CANARY}?{CANARY}")
            for bad in (token + "x", f"Basic {token}", poor):
                await client.post(
                    "/generate", json=body, headers={"authorization": f"Bearer {bad}"}
                )
            engine = runtime.policies["ref"]
            assert isinstance(engine, FakeEngine)
            await engine.stop()
            await client.post("/generate", json=body)
            await stream(app, "/generate?mode=ref", {**body, "stream": True})
    assert texts[0]
    ours = [
        record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert any("failed on" in record.getMessage() for record in ours)  # the reward model's failure
    formatter = logging.Formatter()
    secrets = [CANARY, token, poor, pairs[0][0].sha256, token.rsplit("-", 1)[1], texts[0]]
    for record in ours:
        line = formatter.format(record)
        assert not [secret for secret in secrets if secret in line], line


class Failing(FakeReward):
    """Fails on every batch but the warm-up's."""

    def score(self, items: Any) -> list[float | None]:
        if any(CANARY in str(item.prompt) for item in items):
            raise RuntimeError("out of memory")
        return super().score(items)
