"""Encodings of text files: found by their byte order mark, taken as UTF-8, or refused with a remedy."""

from __future__ import annotations

import codecs
import unicodedata

from vbon.errors import DataError

# Longer marks come first, because UTF-32's little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MARK = "\ufeff"
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_GUESS_BYTES = 64 * 1024
_WESTERN_SHARE = 0.3  # of characters that are not ASCII, at most
_ASCII_SHARE = 0.5  # of characters, at least, to take bytes for UTF-16 or UTF-32
_SHOWN = 60  # characters of a line that an error shows
_OPTION = "--encoding"


def decode_text(
    data: bytes, name: str, encoding: str | None = None, *, option: str | None = _OPTION
) -> str:
    """The text of a file without its byte order mark.

    Args:
        encoding: the encoding's name; by default that of the byte order mark, or UTF-8.
        option: the option that sets the encoding, for messages; ``None`` if there is none.

    Raises:
        DataError: the bytes are not text in that encoding; the message has line, byte offset and remedy.
    """
    marked = next(((mark, found) for mark, found in _MARKS if data.startswith(mark)), None)
    if encoding is not None:
        _check_name(encoding)
        if marked is not None and not _agree(encoding, marked[1]):
            raise DataError(
                f"{name} begins with the byte order mark of {marked[1].upper()}, so it is not "
                f"{encoding}; leave out {option}"
            )
    used = encoding or (marked[1] if marked else "utf-8")
    try:
        text = data.decode(used).removeprefix(_MARK)
    except UnicodeDecodeError as error:
        guess = None if encoding or marked else _guess(data)
        if b"\0" in data and guess in _WIDE:
            raise DataError(_has_nul(data, name, data.decode("latin-1"), False, option)) from error
        raise DataError(_undecodable(data, name, used, error, guess, option)) from error
    if "\0" in text:
        raise DataError(_has_nul(data, name, text, bool(encoding or marked), option))
    return text


def _check_name(encoding: str) -> None:
    try:
        "".encode(encoding)
    except LookupError as error:
        raise DataError(
            f"unknown encoding {encoding!r}; use a name that Python knows, such as utf-8, utf-16, cp1252 "
            "or latin-1"
        ) from error


def _agree(encoding: str, marked: str) -> bool:
    """True if a file of an encoding may begin with the mark of another: ``utf-16`` covers both orders."""
    given = codecs.lookup(encoding).name
    return marked.startswith(given.removesuffix("-sig")) or given.replace("_", "-") == marked


def _undecodable(
    data: bytes,
    name: str,
    used: str,
    error: UnicodeDecodeError,
    guess: str | None,
    option: str | None,
) -> str:
    before = data[: error.start].decode(used, errors="replace")
    where = f"{name}:{before.count(chr(10)) + 1}"
    what = (
        f"{where} is not {used.upper()}: byte 0x{data[error.start]:02x} at offset {error.start} of the "
        f"file ({error.reason})"
    )
    if option is None:
        return f"{what}; save the file as UTF-8"
    if guess is None:
        return f"{what}; save the file as UTF-8, or name its encoding with {option}"
    line = _line_at(data, error.start, guess)
    return f"{what}; read as {guess} the line is {line!r}: if that is right, give {option} {guess}"


def _has_nul(data: bytes, name: str, text: str, known: bool, option: str | None) -> str:
    where = f"{name}:{text[: text.index(chr(0))].count(chr(10)) + 1}"
    guess = None if known else _wide_encoding(data)
    if guess is None:
        return (
            f"{where} contains NUL bytes; the file may be damaged, or not text, or in an encoding such as "
            "UTF-16 that must be named"
        )
    remedy = "save the file as UTF-8" if option is None else f"give {option} {guess}"
    return (
        f"{where} contains NUL bytes; the file looks like {guess.upper()} without a byte order mark: "
        f"{remedy}"
    )


def _wide_encoding(data: bytes) -> str | None:
    """The UTF-32 or UTF-16 encoding in which bytes have the most ASCII characters and no NUL."""
    shares: dict[str, float] = {}
    for encoding in _WIDE:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            shares[encoding] = sum(map(str.isascii, text)) / len(text)
    best = max(shares, key=lambda encoding: shares[encoding], default=None)
    return best if best is not None and shares[best] >= _ASCII_SHARE else None


def _guess(data: bytes) -> str | None:
    """The most probable encoding of bytes that are not UTF-8; ``None`` if no encoding fits."""
    if b"\0" in data:  # texts have none in the encodings below
        return _wide_encoding(data)
    odd = b"\n".join(line for line in data.split(b"\n") if not line.isascii())[:_GUESS_BYTES]
    if _is_western(odd):
        return "cp1252"
    # Imported here because only a file with a fault needs it.
    from charset_normalizer import from_bytes

    best = from_bytes(odd).best()
    if best is None:
        return None
    # Python spells the names of Unicode's encodings with hyphens.
    return best.encoding.replace("_", "-") if best.encoding.startswith("utf") else best.encoding


def _is_western(data: bytes) -> bool:
    """True if bytes read as Windows' Western encoding are mostly ASCII, and Latin letters or punctuation.

    Dozens of single-byte encodings fit such text alike, and this one is by far the most common.
    """
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return False
    other = [char for char in text if not char.isascii()]
    letters = all("LATIN" in unicodedata.name(char, "") for char in other if char.isalpha())
    return letters and len(other) < _WESTERN_SHARE * len(text)


def _line_at(data: bytes, offset: int, encoding: str) -> str:
    text = data.decode(encoding, errors="replace")
    at = len(data[:offset].decode(encoding, errors="replace"))
    begin = max(text.rfind("\n", 0, at) + 1, at - _SHOWN // 2)
    return text[begin : begin + _SHOWN].partition("\n")[0].rstrip("\r")
