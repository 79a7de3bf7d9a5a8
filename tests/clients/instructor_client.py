"""instructor: typed answers in each of its modes for OpenAI's API."""

import sys
from typing import Literal

import instructor
import openai
from pydantic import BaseModel


class Reason(BaseModel):
    """A reason for a mood."""

    words: list[str]


class Review(BaseModel):
    """A review, with a nested model and an optional field."""

    mood: Literal["good", "bad"]
    stars: int
    reason: Reason | None = None


plain = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
MODES = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)
for mode in MODES:
    client = instructor.from_openai(plain, mode=mode)
    for model in ("ref", "bon"):
        found = client.chat.completions.create(
            model=model,
            response_model=Review,
            messages=[{"role": "user", "content": "the film was"}],
            max_tokens=400,
            max_retries=0,
        )
        assert isinstance(found, Review), (mode, found)
