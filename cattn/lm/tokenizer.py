"""Words and back: a splitter that knows Unicode, and a vocabulary by frequency.

The blanks of a text are mostly foreseeable: one between two words, none before a comma, none
between Chinese characters. `split` foresees them with one small rule and writes a token only where
the text does otherwise (`BLANK` or `JOIN`); `join` applies the same rule. So words stay whole, few
tokens are spent on blanks, and nothing is lost but the width of a gap inside a line.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cattn._types import Array
from cattn.lm.errors import InputError

UNKNOWN = "<unk>"  #: every word outside the vocabulary; its id is 0
BLANK = " "  #: a blank where none is foreseen
JOIN = "\u2060"  #: no blank where one is foreseen (Unicode's WORD JOINER)

# Shapes that `_Shapes` gives to characters; all else (punctuation, symbols) stands for itself.
_LETTER, _CJK, _MARK, _SPACE = "\x01", "\x02", "\x03", " "

_WORD = rf"{_LETTER}[{_LETTER}{_MARK}]*"
_TOKEN = re.compile(
    rf"{_WORD}(?:['’.\-]{_WORD})*"  # don't, well-known, 3.14
    rf"|{_CJK}{_MARK}*"  # one character, with its variation selector
    rf"| *\n[ \n]*"  # the end of a line and the indentation of the next
    rf"|(?P<run>[^ \n{_LETTER}{_CJK}{_MARK}])(?P=run)*{_MARK}*"  # , ... == 。
)  # fmt: skip

_CLOSING = frozenset(",.;:!?)]}»”’%…")
_OPENING = frozenset("([{«“‘$#@")
_QUOTES = frozenset("\"'`*")  # the same character opens and closes

# Scripts written without blanks between words, and their punctuation: kana, bopomofo, ideographs,
# compatibility and fullwidth forms, the supplementary ideographic planes.
_CJK_RANGES = (
    (0x2E80, 0x312F), (0x31A0, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F),
    (0xFF00, 0xFF65), (0x20000, 0x3FFFF),
)  # fmt: skip


class _Shapes(dict[int, str]):
    """A table for `str.translate` that looks a character up in Unicode once, when first met."""

    def __missing__(self, code: int) -> str:
        self[code] = shape = _shape(chr(code))
        return shape


def _shape(char: str) -> str:
    if char == "\n":
        return char
    if char.isspace():
        return _SPACE
    category = unicodedata.category(char)
    if category[0] == "M" or category == "Cf":
        return _MARK
    if category[0] in "LN" or category == "Pc":
        return _CJK if _is_cjk(char) else _LETTER
    return _SPACE if category == "Cc" else char


def _is_cjk(char: str) -> bool:
    return any(first <= ord(char) <= last for first, last in _CJK_RANGES)


_SHAPES = _Shapes()


class _Blanks:
    """Foresees, token by token, whether a blank stands before the next one."""

    def __init__(self) -> None:
        self.last = "\n"
        self.open: set[str] = set()  # quotation marks that have been opened

    def before(self, token: str) -> bool:
        """Whether a blank is expected between the last token and this one, which becomes last."""
        last, self.last = self.last, token
        opened = last in self.open
        closes = token in self.open
        if token in _QUOTES:
            self.open ^= {token}
        elif token.startswith("\n\n"):
            self.open.clear()
        return not (
            last[0] == "\n"
            or token[0] == "\n"
            or last[-1] in _OPENING
            or token[0] in _CLOSING
            or opened
            or closes
            or _is_cjk(last[-1])
            or _is_cjk(token[0])
        )


def split(text: str) -> list[str]:
    """Split a text into words, punctuation marks, line ends and the exceptions among blanks.

    A word is a run of letters, digits, underscores and their combining marks, with single
    apostrophes, hyphens and full stops inside; each CJK character is a word; a run of one
    punctuation mark is a token. A line end keeps the indentation that follows it, and several
    count as two.

    Examples
    --------
    >>> from cattn.lm.tokenizer import split
    >>> split("Don't panic: 3.14 (roughly).")
    ["Don't", 'panic', ':', '3.14', '(', 'roughly', ')', '.']
    >>> split("我喜欢编程，因为")
    ['我', '喜', '欢', '编', '程', '，', '因', '为']
    """
    text = text.replace(JOIN, "")
    blanks = _Blanks()
    tokens = []
    end = 0
    for match in _TOKEN.finditer(text.translate(_SHAPES)):
        token = text[match.start() : match.end()]
        if "\n" in token:
            lines = token.count("\n")
            token = "\n" * min(lines, 2) + token[token.rindex("\n") + 1 :]
        seen = match.start() > end > 0
        if blanks.before(token) != seen:
            tokens.append(BLANK if seen else JOIN)
        tokens.append(token)
        end = match.end()
    return tokens


def join(tokens: Iterable[str]) -> str:
    """Write tokens as text: the inverse of `split`, up to the width of gaps inside lines.

    Examples
    --------
    >>> from cattn.lm.tokenizer import join, split
    >>> join(["Hello", ",", "world", "!"])
    'Hello, world!'
    >>> join(split('He said "a-b == c(d)"; 她说：“你好！” ok'))
    'He said "a-b == c(d)"; 她说：“你好！” ok'
    """
    blanks = _Blanks()
    parts: list[str] = []
    exception: bool | None = None
    for token in tokens:
        if token in (BLANK, JOIN):
            exception = token == BLANK
            continue
        expected = blanks.before(token)
        if parts and (expected if exception is None else exception):
            parts.append(" ")
        parts.append(token)
        exception = None
    return "".join(parts)


class WordTokenizer:
    """Maps words to ids and back.

    Parameters
    ----------
    words : sequence of str
        The vocabulary; a word's place is its id. The first must be `UNKNOWN`.

    Raises
    ------
    InputError
        A vocabulary that does not start with `UNKNOWN` or that repeats a word.

    Examples
    --------
    >>> from cattn.lm import WordTokenizer
    >>> tokenizer = WordTokenizer.from_text("the cat and the dog", min_count=1)
    >>> tokenizer.words
    ['<unk>', 'the', 'and', 'cat', 'dog']
    >>> tokenizer.encode("the bird")
    array([1, 0], dtype=int32)
    >>> tokenizer.decode([1, 3])
    'the cat'
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        if self.words[:1] != [UNKNOWN] or len(self._ids) != len(self.words):
            raise InputError(f"the vocabulary must start with {UNKNOWN} and repeat no word")

    @classmethod
    def from_text(
        cls, text: str, *, min_count: int | None = None, max_size: int | None = None
    ) -> WordTokenizer:
        """Make the vocabulary of a text; see `from_tokens`."""
        return cls.from_tokens(split(text), min_count=min_count, max_size=max_size)

    @classmethod
    def from_tokens(
        cls,
        tokens: Sequence[str],
        *,
        min_count: int | None = None,
        max_size: int | None = None,
    ) -> WordTokenizer:
        """Make the vocabulary of a split text: the most frequent first, ties in code-point order.

        Parameters
        ----------
        tokens : sequence of str
            As `split` gives them.
        min_count : int, optional
            Rarer words become `UNKNOWN`. Default 2, so that the unknown word is met in training;
            1 for a text of fewer than 10,000 tokens.
        max_size : int, optional
            Keep at most so many words, `UNKNOWN` included.

        Raises
        ------
        InputError
            No tokens.
        """
        if not tokens:
            raise InputError("the text is empty")
        if min_count is None:
            min_count = 2 if len(tokens) >= 10_000 else 1
        counts = Counter(tokens)
        counts.pop(UNKNOWN, None)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        kept = [word for word in ranked if counts[word] >= min_count]
        return cls([UNKNOWN, *kept][:max_size])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> Array:
        """Return the ids of a text: int32, shape (tokens,)."""
        return self.encode_tokens(split(text))

    def encode_tokens(self, tokens: Iterable[str]) -> Array:
        """Return the ids of tokens: int32, shape (tokens,)."""
        return np.array([self._id(token) for token in tokens], dtype=np.int32)

    def _id(self, token: str) -> int:
        index = self._ids.get(token, 0)
        if index == 0 and token[0] == "\n":  # an indentation never met: the line end alone
            index = self._ids.get(token.strip(" \t\u3000"), 0)
        return index

    def decode(self, ids: Iterable[Any]) -> str:
        """Return ids as text."""
        return join(self.words[int(index)] for index in ids)
