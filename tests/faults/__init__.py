"""Faults injected into the real thing: one a file, run by ``python -m tests.faults`` or pytest.

A file that is a fault defines

- ``PROMISE``: what must hold, in one sentence, as docs/faults.md has it;
- ``async def inject(stage: Stage) -> Tally``: breaks something and counts what became of the work.

Optional: ``NEEDS`` (modules without which it is skipped), ``IN_FULL_ONLY`` (not in CI),
``ENDS_THE_SERVICE`` (the shared one; such faults come last). The size of a
run is ``stage.size``: 1 in full and less in CI, so counts are ``stage.count(10_000)``.
"""
