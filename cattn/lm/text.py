"""Where text comes from: files, folders, standard input, or the text that every Python carries."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from cattn.lm.errors import InputError

TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".text"})


def default_text() -> str:
    """Return the embedded text: the language reference that Python's ``help()`` prints.

    Examples
    --------
    >>> from cattn.lm import default_text
    >>> len(default_text()) > 300_000
    True
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def read_text(sources: Iterable[str]) -> str:
    """Join the texts of `sources` with a blank line between them.

    Parameters
    ----------
    sources : iterable of str
        Each a file, a folder (its ``.txt``, ``.md``, ``.rst`` and ``.text`` files, in the order
        of their paths), or ``-`` for standard input. No source at all gives `default_text`.

    Raises
    ------
    InputError
        A source that is missing, unreadable, not UTF-8 or empty.

    Examples
    --------
    >>> from cattn.lm import read_text
    >>> read_text(["no/such/file.txt"])
    Traceback (most recent call last):
        ...
    cattn.lm.errors.InputError: no/such/file.txt: no such file or folder
    """
    texts = [text for source in sources for text in _read_source(source)]
    return "\n\n".join(texts) if texts else default_text()


def _read_source(source: str) -> list[str]:
    if source == "-":
        return [_decode(sys.stdin.buffer.read(), "standard input")]
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES)
        files = [p for p in found if p.is_file()]
        if not files:
            kinds = ", ".join(sorted(TEXT_SUFFIXES))
            raise InputError(f"{source}: the folder holds no text file ({kinds})")
        return [_read_file(p) for p in files]
    return [_read_file(path)]


def _read_file(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or folder") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return _decode(raw, str(path))


def _decode(raw: bytes, name: str) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 (byte {error.start})") from None
    if not text.strip():
        raise InputError(f"{name}: the text is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")
