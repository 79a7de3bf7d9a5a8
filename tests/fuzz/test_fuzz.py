"""Bad input in its short form; ``scripts/fuzz`` has the long one."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest

from service.routes.errors import TABLE
from service.schemas import AT_WORK
from tests.fuzz.run import mutants, schemathesis
from tests.fuzz.server import fuzzed
from tests.fuzz.verdict import wrong_with


@pytest.fixture(scope="module")
async def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncGenerator[tuple[str, str], None]:
    async with fuzzed(tmp_path_factory.mktemp("fuzz")) as found:
        yield found


async def test_the_service_is_what_its_openapi_document_says(server: tuple[str, str]) -> None:
    pytest.importorskip("schemathesis")
    url, key = server
    status, output = await schemathesis(url, examples=5, seed=0, key=key)
    assert status == 0, output
    assert "Operations:       0" not in output, output


async def test_mutants_get_an_answer_or_a_clear_error(server: tuple[str, str]) -> None:
    url, key = server
    statuses, wrong = await mutants(url, count=600, seed=0, key=key)
    assert not wrong, "\n".join(wrong[:5])
    assert statuses[200] > 50  # some are valid still, and most are not
    assert statuses[422] > 200


def test_every_error_that_work_can_end_in_is_documented() -> None:
    mapped = {status for _, status, _ in TABLE} - {403, 409}
    assert mapped <= AT_WORK.keys() | {500}


@pytest.mark.parametrize(
    ("response", "what"),
    [
        (httpx.Response(500, json={"error": {}}), "500"),
        (httpx.Response(200, content=b'{"reward": NaN}'), "NaN is no JSON"),
        (httpx.Response(200, content=b"\xff"), "without JSON"),
        (httpx.Response(422, json={"detail": "no"}), "another shape"),
        (httpx.Response(404, text="Not Found"), "without JSON"),
    ],
)
def test_what_may_not_be_is_told(response: httpx.Response, what: str) -> None:
    assert what in (wrong_with(response) or "")


def test_an_error_that_says_when_to_come_back_is_well() -> None:
    error = {"message": "full", "type": "overloaded", "param": None, "code": 429}
    assert wrong_with(httpx.Response(429, json={"error": error})) == "429 without Retry-After"
    headers = {"retry-after": "1"}
    assert wrong_with(httpx.Response(429, json={"error": error}, headers=headers)) is None
