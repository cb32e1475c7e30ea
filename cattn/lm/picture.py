"""Pictures of attention: which words a word reads, as a heat map and in the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from cattn._types import Array
from cattn.lm.errors import InputError
from cattn.lm.extras import require
from cattn.lm.tokenizer import BLANK, JOIN

# Words that cannot be seen, in characters that every font has.
_VISIBLE = {BLANK: "(blank)", JOIN: "(join)"}

_SHADES = " ░▒▓█"
_ASCII_SHADES = " .:*#"


def visible(word: str) -> str:
    """Return a word in printable characters.

    Examples
    --------
    >>> from cattn.lm.picture import visible
    >>> visible("\\n  "), visible("word")
    ('\\\\n', 'word')
    """
    if word.startswith("\n"):
        return "\\n" * word.count("\n")
    return _VISIBLE.get(word, word)


def print_attention(words: Sequence[str], weights: Array, stream: TextIO, *, top: int = 3) -> None:
    """Draw attention weights in the terminal.

    One row per word: a strip with one shade per earlier word, and the words that it reads most.

    Parameters
    ----------
    words : sequence of str, length L
    weights : ndarray, shape (L, L)
        Row i: the weights of the words up to i; rows sum to 1.
    stream : text file
    top : int
        How many words to name.

    Examples
    --------
    >>> import sys
    >>> import numpy as np
    >>> from cattn.lm import print_attention
    >>> print_attention(["the", "猫"], np.array([[1.0, 0.0], [0.75, 0.25]]), sys.stdout)
     1 the |█ | 1 the 100%
     2 猫  |▓▒| 1 the 75%  2 猫 25%
    """
    shades = _SHADES if _can_write(stream, _SHADES) else _ASCII_SHADES
    shown = [visible(word) for word in words]
    margin = max(map(_columns, shown))
    digits = max(2, len(str(len(words))))
    for i, (word, row) in enumerate(zip(shown, weights, strict=True)):
        # The square root brings small weights out; any weight that is seen at all rounds up.
        levels = np.ceil(np.sqrt(row) * (len(shades) - 1) - 0.5).astype(int)
        strip = "".join(shades[level] for level in levels)
        most = np.argsort(-row, kind="stable")[: min(top, i + 1)]
        named = "  ".join(f"{j + 1} {shown[j]} {row[j]:.0%}" for j in most)
        padding = " " * (margin - _columns(word))
        stream.write(f"{i + 1:>{digits}} {word}{padding} |{strip}| {named}\n")


def _columns(text: str) -> int:
    """Return how many terminal columns a text takes: two for a wide character."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def draw_attention(
    words: Sequence[str], weights: Array, path: str | Path, *, title: str = ""
) -> bool:
    """Draw attention weights as heat maps, one panel per head, into an image file.

    Parameters
    ----------
    words : sequence of str, length L
    weights : ndarray, shape (panels, L, L) or (L, L)
    path : str or Path
        Its ending chooses the format.
    title : str

    Returns
    -------
    bool
        Whether the panels are labelled by the words. False: no installed font has all their
        characters, and the labels are the words' places, counted from 1.

    Raises
    ------
    InputError
        matplotlib is not installed, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from cattn.lm import draw_attention
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_attention(["a", "b"], np.array([[1, 0], [0.5, 0.5]]), Path(folder) / "ab.png")
    True
    """
    require("matplotlib", "drawing a picture")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    panels = weights[None] if weights.ndim == 2 else weights
    labels = [visible(word) for word in words]
    font = _font_for("".join(labels))
    if font is None:
        labels = [str(i + 1) for i in range(len(words))]

    columns = int(np.ceil(np.sqrt(len(panels))))
    rows = -(-len(panels) // columns)
    side = max(3.2, 0.28 * len(words) + 1.2)
    figure = Figure(figsize=(columns * side, rows * side), layout="constrained")
    FigureCanvasAgg(figure)
    for i, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        image = _heat_map(axes, panel, labels, font)
        if len(panels) > 1:
            axes.set_title(f"head {i + 1}", y=-0.08)
    scale = figure.colorbar(
        image, ax=figure.axes, shrink=0.5, aspect=30, pad=0.02, format=PercentFormatter(1, 0),
        ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1],
    )  # fmt: skip
    scale.outline.set_visible(False)
    if title:
        figure.suptitle(title)
    try:
        figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.1)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{path}: cannot be written ({error})") from None
    return font is not None


def _heat_map(axes: Any, weights: Array, labels: list[str], font: Any) -> Any:
    """Rows are the words that read, columns the words that are read; return the image."""
    from matplotlib.colors import PowerNorm

    future = np.triu(np.ones(weights.shape, bool), 1)
    # Darkness grows as the square root, as in the terminal: it brings small weights out.
    image = axes.imshow(
        np.ma.masked_where(future, weights), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1)
    )
    ticks = range(len(labels))
    # A character or a number stands upright; longer words need to be turned.
    turn = 0 if all(len(label) <= 2 for label in labels) else 90
    axes.set_xticks(ticks, labels, rotation=turn, fontproperties=font)
    axes.set_yticks(ticks, labels, fontproperties=font)
    axes.set_ylabel("this word")
    axes.set_xlabel("attends to")
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    # White lines between the cells.
    axes.set_xticks(np.arange(0.5, len(labels) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(labels) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="minor", length=0)
    return image


def _font_for(text: str) -> Any:
    """Return an installed font with every character of a text, or None.

    matplotlib's own font comes first, so that plain pictures look the same everywhere.
    """
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    needed = {ord(c) for c in text}
    own = font_manager.findfont(font_manager.FontProperties())
    for path in [own, *sorted(font_manager.findSystemFonts())]:
        try:
            covered = needed <= FT2Font(path).get_charmap().keys()
        except (OSError, RuntimeError):
            continue  # not a font that can be drawn
        if covered:
            return font_manager.FontProperties(fname=path)
    return None
