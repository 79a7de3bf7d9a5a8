"""Reward functions as people write them: each works, or is refused when it is loaded."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vbon.errors import CheckpointError, RewardError
from vbon.prompts import Prompt
from vbon.rewards import Scorable, open_reward_model
from vbon.rewards.worker import RewardWorker

TEXTS = [Scorable(Prompt(text="p"), text) for text in ("a", "bb", "ccc")]
CHAT = Prompt(messages=({"role": "system", "content": "s"}, {"role": "user", "content": "q"}))

# Each returns the length of every completion, or of its content.
WORKING = {
    "positional": "def f(prompts, completions): return [len(c) for c in completions]",
    "other names": "def f(questions, answers): return [len(a) for a in answers]",
    "positional only": "def f(prompts, completions, /): return [len(c) for c in completions]",
    "swapped": "def f(completions, prompts): return [len(c) for c in completions]",
    "any position": "def f(*args): return [len(c) for c in args[1]]",
    "one by name": "def f(completions): return [len(c) for c in completions]",
    "TRL": "def f(completions, **kwargs): return [len(c) for c in completions]",
    "TRL with prompts": "def f(prompts, completions, **kwargs): return [len(c) for c in completions]",
    "all keywords": "def f(**kwargs): return [len(c) for c in kwargs['completions']]",
    "keyword-only": "def f(*, completions, prompts): return [len(c) for c in completions]",
    "keyword-only and more": "def f(*, completions, **_): return [len(c) for c in completions]",
    "defaults": "def f(completions, ground_truth=None, **kw): return [len(c) for c in completions]",
    "old names and more": "def f(p, c, **kwargs): return [len(x) for x in c]",
    "async": "async def f(completions, **kwargs): return [len(c) for c in completions]",
    "async with a pause": (
        "import asyncio\nasync def f(prompts, completions):\n"
        "    await asyncio.sleep(0)\n    return [len(c) for c in completions]"
    ),
    "object": (
        "class F:\n    def __call__(self, completions, **kwargs):\n"
        "        return [len(c) for c in completions]\nf = F()"
    ),
    "async object": (
        "class F:\n    async def __call__(self, prompts, completions):\n"
        "        return [len(c) for c in completions]\nf = F()"
    ),
    "partial": (
        "from functools import partial\ndef g(scale, prompts, completions):\n"
        "    return [scale * len(c) for c in completions]\nf = partial(g, 1)"
    ),
    "array": "import numpy as np\ndef f(completions, **_): return np.array([len(c) for c in completions])",
    "array elements": (
        "import numpy as np\ndef f(completions, **_):\n"
        "    return [np.float32(len(c)) for c in completions]"
    ),
    "yields": "def f(prompts, completions):\n    for c in completions:\n        yield len(c)",
    "tuple": "def f(prompts, completions): return tuple(len(c) for c in completions)",
    "data class": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Settings:\n    scale: int = 1\n"
        "def f(prompts, completions): return [Settings().scale * len(c) for c in completions]"
    ),
}
TRUTHS = {
    "bools": "def f(completions, **kwargs): return [len(c) > 1 for c in completions]",
    "array of bools": (
        "import numpy as np\ndef f(completions, **_): return np.array([len(c) > 1 for c in completions])"
    ),
    "list of NumPy's bools": (
        "import numpy as np\ndef f(completions, **_): return [np.bool_(len(c) > 1) for c in completions]"
    ),
}
REFUSED = {
    "a column": ("def f(completions, ground_truth, **kwargs): return []", "needs ground_truth"),
    "two columns": ("def f(completions, a, *, b): return []", "needs a, b"),
    "token ids": (
        "def f(completion_ids, **kwargs): return []",
        r"needs completion_ids.*\(completion_ids: .*tokenize the completions in the function\)",
    ),
    "the trainer": (
        "def f(completions, trainer_state): return []",
        r"needs trainer_state.*\(trainer_state: .*the same reward at every step",
    ),
    "one parameter": ("def f(texts): return []", r"cannot be called with \(prompts, completions\)"),
    "three parameters": ("def f(a, b, c): return []", r"missing a required argument: 'c'"),
    "none": ("def f(): return []", "too many positional arguments"),
    "a class": ("class f:\n    pass", "is a class; name a function, or an object"),
    "a number": ("f = 3", "is int, not callable"),
    "an asynchronous generator": (
        "async def f(prompts, completions):\n    yield 1.0",
        "is an asynchronous generator",
    ),
}
BROKEN = {
    "no such name": ("x = undefined", "NameError: name 'undefined' is not defined"),
    "syntax": ("def f(:", "SyntaxError: invalid syntax"),
    "another module": ("import no_such_module_here", "No module named 'no_such_module_here'"),
    "its own error": ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    "exit": ("import sys\nsys.exit(2)", "SystemExit: 2"),
    "no such function": ("g = 1", "has no attribute 'f'"),
}


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("vbon_reward_", "module_of_rewards", "helper_of_rewards")):
            del sys.modules[name]


def written(tmp_path: Path, source: str) -> str:
    (tmp_path / "my rewards.py").write_text(source)
    return f"python:{tmp_path}/my rewards.py:f"


def scored(spec: str, items: list[Scorable]) -> list[float | None]:
    model = open_reward_model(spec)
    model.load()
    first = model.score(items)
    assert model.score(items) == first  # a coroutine's event loop serves the next call too
    model.close()
    return first


@pytest.mark.parametrize("form", WORKING)
def test_a_function_of_each_form_scores(tmp_path: Path, form: str) -> None:
    assert scored(written(tmp_path, WORKING[form]), TEXTS) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("form", TRUTHS)
def test_truth_values_are_0_and_1(tmp_path: Path, form: str) -> None:
    assert scored(written(tmp_path, TRUTHS[form]), TEXTS) == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("form", REFUSED)
def test_a_function_that_cannot_be_called_is_refused_when_it_is_loaded(
    tmp_path: Path, form: str
) -> None:
    source, words = REFUSED[form]
    spec = written(tmp_path, source)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_reward_model(spec).load()
    assert str(caught.value).startswith(spec)


@pytest.mark.parametrize("name", ["completion_ids", "trainer_state"])
def test_what_a_function_reads_from_its_keywords_in_vain_is_named(
    tmp_path: Path, name: str
) -> None:
    source = f"def f(completions, **kwargs): return [float(len(kwargs[{name!r}]))]"
    model = open_reward_model(written(tmp_path, source))
    model.load()
    with pytest.raises(RewardError, match=f"reads {name} from its keyword arguments, and a reward"):
        model.score([Scorable(Prompt(text="p"), "a"), Scorable(Prompt(text="p"), "b")])


@pytest.mark.parametrize("form", BROKEN)
@pytest.mark.parametrize("as_module", [False, True])
def test_a_failing_import_is_one_line_with_the_reason(
    tmp_path: Path, form: str, as_module: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, words = BROKEN[form]
    spec = written(tmp_path, source)
    if as_module:
        (tmp_path / "module_of_rewards.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        spec = "python:module_of_rewards:f"
    with pytest.raises(CheckpointError) as caught:
        open_reward_model(spec).load()
    message = str(caught.value)
    assert message.startswith(f"cannot import reward callable {spec}: ")
    assert words in message
    assert "\n" not in message


def test_a_module_that_does_not_exist_may_be_a_file() -> None:
    with pytest.raises(CheckpointError, match=r"for a file, write python:\./no_rewards\.py:f"):
        open_reward_model("python:no_rewards:f").load()


def test_a_file_is_found_from_the_working_directory_with_the_modules_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards.py").write_text(
        "from helper_of_rewards import length\ndef f(prompts, completions):\n"
        "    return [length(c) for c in completions]"
    )
    (tmp_path / "helper_of_rewards.py").write_text("length = len")
    monkeypatch.chdir(tmp_path)
    assert scored("python:./rewards.py:f", TEXTS) == [1.0, 2.0, 3.0]
    assert scored("python:rewards.py:f", TEXTS) == [1.0, 2.0, 3.0]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scored("python:~/rewards.py:f", TEXTS) == [1.0, 2.0, 3.0]
    with pytest.raises(CheckpointError, match=r"No such file or directory \(.*none\.py\)"):
        open_reward_model("python:./none.py:f")


def test_the_revision_of_a_file_follows_its_content(tmp_path: Path) -> None:
    spec = written(tmp_path, WORKING["TRL"])
    first = open_reward_model(spec).revision
    assert first.startswith("sha256:")
    assert open_reward_model(spec).revision == first
    assert open_reward_model(written(tmp_path, WORKING["async"])).revision != first


@pytest.mark.parametrize("source", [WORKING["async with a pause"], WORKING["data class"]])
def test_a_file_runs_in_a_process_of_its_own(tmp_path: Path, source: str) -> None:
    worker = RewardWorker(open_reward_model(written(tmp_path, source)))
    worker.load()
    try:
        assert worker.score(TEXTS) == [1.0, 2.0, 3.0]
    finally:
        worker.close()


SEEN = "seen = []\ndef f({}):\n    seen.append((prompts, completions))\n    return [1.0] * len(completions)"


def arguments(tmp_path: Path, parameters: str) -> list[Any]:
    """What the function got for two texts around a chat."""
    spec = written(tmp_path, SEEN.format(parameters))
    items = [TEXTS[0], Scorable(CHAT, "hello"), TEXTS[1]]
    model = open_reward_model(spec)
    model.load()
    assert model.score(items) == [1.0, 1.0, 1.0]
    return list(sys.modules["vbon_reward_my rewards"].seen)


def test_a_function_written_for_trl_gets_a_chat_as_trl_gives_it(tmp_path: Path) -> None:
    texts, chats = arguments(tmp_path, "prompts, completions, **kwargs")
    assert texts == (["p", "p"], ["a", "bb"])
    assert chats == ([list(CHAT.messages)], [[{"role": "assistant", "content": "hello"}]])


def test_any_other_function_gets_a_chat_as_text(tmp_path: Path) -> None:
    [(prompts, completions)] = arguments(tmp_path, "prompts, completions")
    assert prompts == ["p", "system: s\nuser: q", "p"]
    assert completions == ["a", "hello", "bb"]


def test_the_scores_of_texts_and_chats_keep_their_order(tmp_path: Path) -> None:
    spec = written(
        tmp_path,
        "def f(completions, **kwargs):\n"
        "    return [len(c) if isinstance(c, str) else 10 * len(c[0]['content']) for c in completions]",
    )
    items = [Scorable(CHAT, "xx"), TEXTS[2], Scorable(CHAT, "y"), TEXTS[0]]
    assert scored(spec, items) == [20, 3, 10, 1]


def test_a_generator_that_fails_on_one_text_gives_the_others_their_scores(tmp_path: Path) -> None:
    spec = written(
        tmp_path,
        "def f(prompts, completions):\n    for c in completions:\n        yield 1 / (len(c) - 2)",
    )
    assert scored(spec, TEXTS) == [-1.0, None, 1.0]


@pytest.mark.parametrize(
    "source",
    [
        "import sys\ndef f(completions, **_):\n"
        "    return [len(c) if len(c) - 2 else sys.exit(3) for c in completions]",
        "import asyncio\nasync def f(completions, **_):\n    if 'bb' in completions:\n"
        "        raise asyncio.CancelledError\n    return [len(c) for c in completions]",
        # As libraries for time limits and tests have them.
        "class TimedOut(BaseException): pass\ndef f(completions, **_):\n    if 'bb' in completions:\n"
        "        raise TimedOut\n    return [len(c) for c in completions]",
    ],
)
def test_an_exit_or_a_cancelled_task_is_that_texts_matter(tmp_path: Path, source: str) -> None:
    assert scored(written(tmp_path, source), TEXTS) == [1.0, None, 3.0]


@pytest.mark.parametrize("name", ["./rewards.txt", "/tmp/rewards", "rewards/judge"])
def test_a_file_must_be_one_of_python(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"must end in \.py"):
        open_reward_model(f"python:{name}:f")


def test_an_interruption_is_nobodys_but_the_programs(tmp_path: Path) -> None:
    """Training scores in its own process, which Ctrl-C must end."""
    model = open_reward_model(
        written(tmp_path, "def f(completions, **_):\n    raise KeyboardInterrupt")
    )
    model.load()
    with pytest.raises(KeyboardInterrupt):
        model.score(TEXTS)


async def test_a_coroutine_is_scored_beside_a_running_event_loop(tmp_path: Path) -> None:
    model = open_reward_model(written(tmp_path, WORKING["async with a pause"]))
    model.load()
    assert await asyncio.to_thread(model.score, TEXTS) == [1.0, 2.0, 3.0]
    assert await asyncio.to_thread(model.score, TEXTS) == [1.0, 2.0, 3.0]
    await asyncio.to_thread(model.close)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("None", "returned NoneType, not a list"),
        ("1.5", "returned float, not a list"),
        ("{'a': 1, 'b': 2, 'c': 3}", "returned dict, not a list"),
        ("{0: 1.0, 1: 2.0, 2: 3.0}", "returned dict, not a list"),
        ("{1.0, 2.0, 3.0}", "returned set, not a list"),
        ("frozenset({1.0, 2.0, 3.0})", "returned frozenset, not a list"),
        ("'123'", "returned str, not a list"),
        ("__import__('numpy').ones((3, 1))", "a value of type list, which is not a number"),
        ("[1, 2]", "2 scores for 3"),
        ("[1] * 50", "50 scores for 3"),
        ("(1 for _ in iter(int, 1))", "4 scores for 3"),  # endless; it is asked for one too many
    ],
)
def test_other_results_are_named(tmp_path: Path, value: str, words: str) -> None:
    model = open_reward_model(written(tmp_path, f"def f(completions, **_): return {value}"))
    model.load()
    with pytest.raises(RewardError, match=words):
        model.score(TEXTS)
