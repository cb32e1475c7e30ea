"""A progress bar: tqdm's on a terminal where it is installed, else plain lines."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """What the trainer asks of a progress bar."""

    def advance(self, tokens: int, note: str) -> None:
        """Count tokens; `note` is shown beside the bar."""

    def say(self, line: str) -> None:
        """Print a line above the bar."""

    def close(self) -> None:
        """Leave the bar as it is."""


def progress_bar(total: int, done: int = 0, *, plain: bool = False) -> Progress:
    """Return a bar on standard error that counts tokens, from `done` to `total`.

    Parameters
    ----------
    total, done : int
    plain : bool
        Do not use tqdm even if it is installed.

    Examples
    --------
    >>> from cattn.lm.progress import progress_bar
    >>> bar = progress_bar(100, plain=True)
    >>> bar.advance(100, "loss 1.2")
    >>> bar.close()
    """
    if not plain and sys.stderr.isatty():
        try:
            tqdm = importlib.import_module("tqdm").tqdm
        except ImportError:
            pass
        else:
            # Asked for here, because tqdm hides the bar where a terminal does not tell its size.
            columns, lines = shutil.get_terminal_size()
            bar = tqdm(
                total=total, initial=done, unit="tok", unit_scale=True, ncols=columns, nrows=lines
            )
            return _TqdmProgress(bar)
    return PlainProgress(total, done, sys.stderr)


class _TqdmProgress:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, tokens: int, note: str) -> None:
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(tokens)

    def say(self, line: str) -> None:
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class PlainProgress:
    """One line that is written over again on a terminal, and every tenth of the way elsewhere."""

    def __init__(self, total: int, done: int, stream: TextIO) -> None:
        self._total, self._first, self._done = max(1, total), done, done
        self._stream = stream
        self._terminal = stream.isatty()
        self._start = self._shown = time.monotonic()
        self._next_tenth = 10 * done // self._total + 1

    def advance(self, tokens: int, note: str) -> None:
        """Count tokens; `note` is shown beside the bar."""
        self._done += tokens
        now = time.monotonic()
        tenth = 10 * self._done // self._total
        due = now - self._shown >= 0.2 if self._terminal else tenth >= self._next_tenth
        if due:
            rate = (self._done - self._first) / max(1e-9, now - self._start)
            line = f"{self._done / self._total:4.0%} {rate:,.0f} tok/s {note}"
            self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
            self._stream.flush()
            self._shown, self._next_tenth = now, tenth + 1

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._stream.write(f"\r\x1b[K{line}\n" if self._terminal else f"{line}\n")

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()


class NoProgress:
    """Shows nothing."""

    def advance(self, tokens: int, note: str) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
