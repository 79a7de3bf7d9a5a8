"""The answer that a text gives, as a key by which equal answers of differing texts are found."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from itertools import islice
from typing import Any

MOST_PATTERN = 500
MOST_MATCHES = 1000
# Memory of a compiled pattern and its automaton, bytes; RE2 refuses a pattern that needs more.
_MOST_MEMORY = 1 << 20


@lru_cache(maxsize=64)
def compiled(pattern: str) -> Any:
    """The pattern as RE2 compiles it, which finds one match in time linear in the text, whatever the pattern.

    Clients send these patterns. Python's own ``re`` can take exponential time, during which no other request
    would be answered.

    Raises:
        ValueError: RE2 does not take the pattern; names the reason.
    """
    import re2  # loaded only if a request sends a pattern

    options = re2.Options()
    options.max_mem = _MOST_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"RE2 does not take this pattern ({text}); it has no lookarounds, no backreferences and no "
            "counts above 1,000"
        ) from None


def answer_key(text: str, pattern: str | None) -> str | None:
    """The normalised answer of a text; ``None`` if it gives none.

    Without a pattern the whole text is the answer. With one it is the last match, or the first group of the
    last match if the pattern has groups. Normalised means: Unicode's compatibility form, without case, with
    single spaces, and without punctuation at its ends. A text with more than :data:`MOST_MATCHES` matches
    gives none: each match may read the text to its end, so their number has to be limited.
    """
    found: str | None = text
    if pattern is not None:
        found = None
        matches = list(islice(compiled(pattern).finditer(text), MOST_MATCHES + 1))
        if 0 < len(matches) <= MOST_MATCHES:
            found = matches[-1].group(1 if matches[-1].re.groups else 0)
    if found is None:
        return None
    return (
        " ".join(unicodedata.normalize("NFKC", found).casefold().split()).strip(" .,;:!?") or None
    )
