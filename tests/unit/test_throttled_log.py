"""A repeated message does not fill the log."""

from __future__ import annotations

import logging

import pytest

from service.observability.throttled_log import MAX_LINES, MAX_MESSAGES, ThrottledLog


def test_a_sentence_is_said_once_in_a_while_with_how_often_it_was_true(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock_s = 100.0
    log = ThrottledLog(logging.getLogger("throttled"), every_s=10, now_s=lambda: clock_s)
    for _ in range(500):
        log.warn("engine_dead: ref")
    log.warn("timeout: another")
    clock_s = 110.0
    log.warn("engine_dead: ref")
    log.warn("engine_dead: ref")
    assert [record.getMessage() for record in caplog.records] == [
        "engine_dead: ref",
        "timeout: another",
        "engine_dead: ref (and 499 times since the last such line)",
    ]


def test_different_sentences_are_bounded_too(caplog: pytest.LogCaptureFixture) -> None:
    clock_s = 100.0
    log = ThrottledLog(logging.getLogger("throttled"), every_s=10, now_s=lambda: clock_s)
    for number in range(10 * MAX_MESSAGES):
        log.warn(f"sentence {number}")
    assert len(caplog.records) == MAX_LINES
    assert len(log._logged) <= MAX_MESSAGES
    clock_s = 110.0
    log.warn("the next")
    left_out = 10 * MAX_MESSAGES - MAX_LINES
    assert caplog.records[-1].getMessage() == f"the next ({left_out} other lines were left out)"


def test_the_debug_level_has_them_all(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        log = ThrottledLog(logging.getLogger("throttled"))
        for _ in range(3):
            log.warn("the same")
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]


def test_tracebacks_are_bounded_and_each_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    clock_s = 100.0
    log = ThrottledLog(logging.getLogger("throttled"), every_s=10, now_s=lambda: clock_s)
    for number in range(500):
        log.unexpected("unexpected error", ValueError(number))
    assert len(caplog.records) == MAX_LINES
    assert all(record.exc_info for record in caplog.records)
    clock_s = 110.0
    log.unexpected("unexpected error", ValueError("later"))
    left_out = 500 - MAX_LINES
    assert caplog.messages[-1] == f"unexpected error ({left_out} other lines were left out)"
