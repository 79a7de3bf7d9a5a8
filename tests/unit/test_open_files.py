"""The limit of open files is raised to the number of requests that may be admitted or waiting."""

from __future__ import annotations

import subprocess
import sys

from service.http.open_files import WANTED_FILES

# Run in a child process, because a lowered hard limit cannot be raised again.
PROGRAM = """
import logging, resource, sys
from service.http.open_files import raise_open_files_limit
from service.settings import LimitSettings
logging.basicConfig()
soft, hard, waiting = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
allowed = raise_open_files_limit(LimitSettings(running_sequences=16, waiting_sequences=waiting))
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, hard), allowed
print(allowed)
"""


def allowed(soft: int, hard: int, waiting: int) -> tuple[int, str]:
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(waiting)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout), done.stderr


def test_the_soft_limit_is_raised_as_far_as_it_may_be() -> None:
    assert allowed(100, 900, 64) == (900, "")


def test_a_limit_that_is_enough_is_left() -> None:
    assert allowed(900, 900, 64) == (900, "")


def test_one_that_stays_too_low_is_told() -> None:
    limit, said = allowed(100, 900, 2048)
    assert limit == 900
    assert "may open 900 files, but up to 2064 requests may run or wait" in said
    assert "LimitNOFILE" in said
    assert WANTED_FILES > 2064
