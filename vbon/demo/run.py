"""Runs the demo: models, service, fine-tuning beside it, comparison, evaluation."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import httpx

from vbon.demo.config import DemoConfig
from vbon.demo.processes import DemoFailedError, Part, ended, start, wait
from vbon.demo.stages import Stage, Stages
from vbon.errors import DataError
from vbon.prompt_files import read_prompt_file
from vbon.storage.training_record import read_training_record
from vbon.terminal import table_console

MAX_TOKENS = "40"
NUM_SAMPLES = 16
STAGES = (
    Stage("make a toy policy, a reward model and a gold reward model, side by side", 120),
    Stage("start the service; sample and score the reward cache beside it", 60),
    Stage("fine-tune vBoN, while the service answers ref and bon", 130),
    Stage("let the checkpoint join the running service", 20),
    Stage("send the same prompts through ref, bon and vbon", 50),
    Stage("evaluate on held-out prompts", 60),
)
_BEHIND = 10  # niceness of what runs beside the service
_KEY_VARIABLE = "VBON_REMOTE_API_KEY"  # from which `vbon compare` takes its key


def run_demo(config: DemoConfig) -> None:
    """Run the demo; return when it is done (``--once``) or interrupted.

    Raises:
        DataError: the port is taken. DemoFailedError: a part failed.
    """
    with ExitStack() as parts:
        Demo(config, parts).run()


class Demo:
    """A run of the demo. Whatever it starts is stopped with ``parts``."""

    def __init__(self, config: DemoConfig, parts: ExitStack) -> None:
        self.config = config
        self.out = config.out
        self.url = f"http://127.0.0.1:{config.port}"
        self.console = table_console()
        self.stages = Stages(STAGES, self.console)
        self._parts = parts

    def run(self) -> None:
        """Run all stages."""
        self._check_port()
        with self.stages.next():
            self._start(*self._warm_imports(), niceness=19)
            models = self._start("models", *self._sandbox())
            wait(self.console, [models], lambda: ended(models))
        with self.stages.next():
            service = self._start("service", *self._serve())
            cache = self._start("cache", *self._sample(), niceness=_BEHIND)
            wait(self.console, [service, cache], self._ready, needs=[service])
            self._show_first_answer()
            wait(self.console, [cache], lambda: ended(cache), needs=[service])
        with self.stages.next():
            training = self._start("vbon", *self._train(), niceness=_BEHIND)
            wait(self.console, [training], lambda: ended(training), needs=[service])
        with self.stages.next():
            wait(self.console, [service], lambda: "vbon" in self._modes(), needs=[service])
            self.console.print("      vbon answers now, too; the service was not restarted")
            self._say_what_vbon_is()
        with self.stages.next():
            self._shown("the comparison", *self._compare(service))
        with self.stages.next():
            evaluation = self._start("evaluation", *self._evaluate(), niceness=_BEHIND)
            wait(self.console, [evaluation], lambda: ended(evaluation), needs=[service])
        self._show_evaluation(evaluation)
        self._offer_the_story()
        if not self.config.once:
            self._stay(service)

    def _check_port(self) -> None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.config.port)) == 0:
                raise DataError(
                    f"port {self.config.port} is taken; stop what listens there, or choose another --port"
                )

    def _start(self, name: str, *words: str, niceness: int = 0, threads: int | None = None) -> Part:
        part = start(name, self.out / "logs", *words, niceness=niceness, threads=threads)
        self._parts.callback(part.stop)
        return part

    def _warm_imports(self) -> list[str]:
        """A process that reads vLLM from the disk once, so that the service imports it faster."""
        return ["imports", "vbon.demo.warm_imports"]

    def _sandbox(self) -> list[str]:
        config = self.config
        corpus = [word for file in config.corpus for word in ("--corpus", file)]
        encoding = ["--encoding", config.encoding] if config.encoding else []
        jobs = str(min(3, os.cpu_count() or 1))
        return [
            *("training", "sandbox", "--out", str(self.out), "--seed", str(config.seed)),
            *("--jobs", jobs, "--replace", *corpus, *encoding),
        ]

    def _sample(self) -> list[str]:
        # The toy draws samples faster through transformers than vLLM starts.
        return [
            *("training", "sample", "--backend", "transformers", "--replace"),
            *("--policy", self._path("policy"), "--reward", self._path("reward")),
            *("--prompts", self._path("prompts/train.jsonl"), "--out", self._path("cache.jsonl")),
        ]

    def _train(self) -> list[str]:
        return [
            *("training", "vbon", "--replace", "--policy", self._path("policy")),
            *("--reward", self._path("reward"), "--gold", self._path("gold")),
            *("--cache", self._path("cache.jsonl"), "--out", self._path("vbon")),
            *("--heldout", self._path("prompts/heldout.jsonl")),
        ]

    def _evaluate(self) -> list[str]:
        return [
            *("training", "evaluate", "--policy", self._path("policy")),
            *("--reward", self._path("reward"), "--gold", self._path("gold")),
            *("--checkpoints", f"vbon={self._path('vbon')}"),
            *("--prompts", self._path("prompts/heldout.jsonl")),
            *("--reference-samples", "128", "--policy-samples", "32"),
            *("--out", self._path("evaluation")),
        ]

    def _serve(self) -> list[str]:
        # Eager: on this toy as fast as compiled (docs/log.md), and ready half a minute sooner.
        return [
            *("service", "serve", "--host", self.config.host, "--port", str(self.config.port)),
            *("--engine.enforce-eager", "--expected", "vbon"),
            *("--policies", f"ref={self._path('policy')}"),
            *("--policies", f"vbon={self._path('vbon')}"),
            *("--reward", self._path("reward"), "--gold", self._path("gold")),
            *("--evaluation", self._path("evaluation/evaluation.json")),
        ]

    def _headers(self) -> dict[str, str]:
        """The headers of requests to the service."""
        return {}

    def _curl_key(self) -> str:
        """The words with which curl sends a key."""
        return ""

    def _compare(self, service: Part) -> list[str]:
        return [
            *("service", "compare", "--url", self.url, "--while-pid", str(service.process.pid)),
            *("--prompts", self._path("prompts/heldout.jsonl"), "--max-tokens", MAX_TOKENS),
            *("--json", self._path("comparison.json")),
        ]

    def _path(self, name: str) -> str:
        return str(self.out / name)

    def _get(self, path: str) -> httpx.Response | None:
        try:
            return httpx.get(self.url + path, timeout=10, headers=self._headers())
        except httpx.TransportError:
            return None

    def _ready(self) -> bool:
        answer = self._get("/readyz")
        return answer is not None and answer.status_code == httpx.codes.OK

    def _modes(self) -> set[str]:
        answer = self._get("/modes")
        if answer is None or answer.status_code != httpx.codes.OK:
            return set()
        return {mode["name"] for mode in answer.json()["modes"]}

    def _say_what_vbon_is(self) -> None:
        """Print what the checkpoint's record says it is: its steps, and what the on-policy ones changed."""
        record = read_training_record(self._path("vbon"))
        if record is not None:
            self.console.print(f"      vbon is {record.description}", highlight=False, markup=False)

    def _show_first_answer(self) -> None:
        """Ask for one best-of-N answer and show it: the first thing that a viewer can try."""
        prompt = read_prompt_file(self.out / "prompts" / "heldout.jsonl").prompts[0].key
        body = {"prompt": prompt, "n": NUM_SAMPLES, "max_tokens": int(MAX_TOKENS)}
        try:
            response = httpx.post(
                f"{self.url}/generate",
                params={"mode": "bon"},
                json={**body, "return_candidates": True},
                headers=self._headers(),
                timeout=120,
            )
            answer: dict[str, Any] = response.raise_for_status().json()
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise DemoFailedError(f"the service is ready but did not answer: {error}") from error
        rewards = [c["reward"] for c in answer["candidates"] if c["reward"] is not None]
        mean = sum(rewards) / len(rewards)
        self.console.print(
            f"\n      The service answers at {self.url} ({self.stages.elapsed_s:.0f} s after the start)."
            f"\n      Best of {NUM_SAMPLES} for {prompt!r}, reward {answer['reward']:+.2f} "
            f"(mean of the candidates {mean:+.2f}):"
            f"\n        {prompt}{answer['text']}\n      Try it, or open the page in a browser:"
            f"\n        curl{self._curl_key()} -X POST '{self.url}/generate?mode=bon' "
            f"-d '{json.dumps(body)}'\n",
            highlight=False,
            markup=False,
        )

    def _shown(self, name: str, *words: str) -> None:
        """Run a command whose output is part of the demo."""
        key = self._headers().get("Authorization", "").removeprefix("Bearer ")
        env = {**os.environ, **({_KEY_VARIABLE: key} if key else {})}
        status = subprocess.run([sys.executable, "-m", *words], check=False, env=env).returncode
        if status != 0:
            raise DemoFailedError(f"{name} ended with status {status}")

    def _show_evaluation(self, evaluation: Part) -> None:
        text = evaluation.log.read_text(encoding="utf-8", errors="replace")
        start_of_table = text.find("\u250f")
        self.console.print(text[start_of_table:] if start_of_table >= 0 else text, markup=False)
        self.console.print(f"all of it took {self.stages.elapsed_s:.0f} s", highlight=False)

    def _offer_the_story(self) -> None:
        self.console.print(
            "\nHere vBoN was trained on prompts that were chosen before. Another story begins without any:\n"
            "live best-of-N is collected, trains its own replacement, and requests move to it as you watch:"
            "\n\n  scripts/demo --distil      (or vbon demo --distil)\n",
            highlight=False,
            markup=False,
        )

    def _stay(self, service: Part) -> None:
        self.console.print(
            f"\nThe service goes on at {self.url} (API: {self.url}/docs). In another terminal:\n\n"
            f"  curl{self._curl_key()} -X POST '{self.url}/generate?mode=bon' "
            '-d \'{"prompt": "the film was", "n": 16}\'\n'
            f"  curl{self._curl_key()} -X POST '{self.url}/generate?mode=vbon' "
            '-d \'{"prompt": "the film was"}\'\n\n'
            "Ctrl-C stops it.",
            highlight=False,
            markup=False,
        )
        status = service.process.wait()
        raise DemoFailedError(f"the service ended with status {status}; see {service.log}")
