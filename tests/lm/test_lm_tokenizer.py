"""Splitting, joining, and the vocabulary."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cattn.lm import InputError, WordTokenizer, default_text
from cattn.lm.tokenizer import BLANK, JOIN, UNKNOWN, join, split

ROUND_TRIPS = {
    "english": "He said, \"It's 3.14 (roughly)!\" -- and left; well-known, isn't it?",
    "chinese": "我喜欢编程，因为它让我感到满足。\n“你好！”他说：《西游记》很好……",
    "mixed": "我用 Python 写代码, 也用C++。Then 他 said: ok!",
    "code": "def f(x, *args):\n    return x[0] + {'a': 1}['a']  ==  2\n\n\nprint(f([1]))",
    "lines": "one\ntwo\n\nthree\n    indented\n　　中文段落\n",
    "accents": "naïve café, Ångström, cafe\u0301, हिन्दी में, Ελληνικά, العربية!",
    "emoji": "fine 👍🏽 ok 👩‍💻 ❤️!",
    "quotes": "'single' and \"double\" and `code` and *stars* at 5 o'clock",
}


def canonical(text: str) -> str:
    """The text with what `split` may lose taken away: widths of gaps, blank lines beyond one."""
    text = re.sub(r"[^\S\n]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return re.sub(r"(?<=\S)[^\S\n]+(?=\S)", " ", text)


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trip(name: str) -> None:
    text = ROUND_TRIPS[name]
    assert join(split(text)) == canonical(text)
    tokenizer = WordTokenizer.from_text(text, min_count=1)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert (ids > 0).all()
    assert tokenizer.decode(ids) == canonical(text)


def test_round_trip_of_the_default_text() -> None:
    text = default_text()
    tokens = split(text)
    assert split(join(tokens)) == tokens
    assert len(tokens) > 50_000
    exceptions = sum(token in (BLANK, JOIN) for token in tokens)
    assert exceptions < 0.08 * len(tokens)


@given(st.text(max_size=60))
def test_any_text_survives(text: str) -> None:
    """What was split and joined once splits and joins the same for ever, and no letter is lost."""
    tokens = split(text)
    joined = join(tokens)
    assert split(joined) == tokens
    kept = [c for c in text if unicodedata.category(c)[0] in "LN"]
    assert [c for c in joined if unicodedata.category(c)[0] in "LN"] == kept


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, world!", ["Hello", ",", "world", "!"]),
        ("don't well-known 3.14 a_b", ["don't", "well-known", "3.14", "a_b"]),
        ("编程，好。", ["编", "程", "，", "好", "。"]),
        ("かな カナ", ["か", "な", BLANK, "カ", "ナ"]),
        ("a == b...", ["a", "==", "b", "..."]),
        ("f(x)", ["f", JOIN, "(", "x", ")"]),
        ("a\n\n\n  b", ["a", "\n\n  ", "b"]),
        ("", []),
        (" \t ", []),
    ],
)
def test_split(text: str, tokens: list[str]) -> None:
    assert split(text) == tokens


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["Speak", ",", "speak", "."], "Speak, speak."),
        (["(", "a", ")", "[", "b", "]"], "(a) [b]"),
        (["我", "用", "Python", "。"], "我用Python。"),
        (['"', "Hi", '"', "he", "said"], '"Hi" he said'),
        ([JOIN, JOIN, "a", BLANK], "a"),
        ([UNKNOWN, ",", "b"], "<unk>, b"),
    ],
)
def test_join(tokens: list[str], text: str) -> None:
    assert join(tokens) == text


def test_vocabulary_is_by_frequency_then_by_code_point() -> None:
    tokens = ["b", "a", "c", "a", "b", "d"]
    assert WordTokenizer.from_tokens(tokens, min_count=1).words == [UNKNOWN, *"abcd"]
    assert WordTokenizer.from_tokens(tokens, min_count=2).words == [UNKNOWN, *"ab"]
    assert WordTokenizer.from_tokens(tokens, min_count=1, max_size=2).words == [UNKNOWN, "a"]


def test_rare_words_of_a_long_text_are_unknown() -> None:
    words = ["often"] * 10_000 + ["once"]
    tokenizer = WordTokenizer.from_tokens(words)
    assert tokenizer.words == [UNKNOWN, "often"]
    assert tokenizer.encode_tokens(["once", "often"]).tolist() == [0, 1]


def test_unknown_indentation_is_still_a_line_end() -> None:
    tokenizer = WordTokenizer.from_text("a\nb", min_count=1)
    assert tokenizer.decode(tokenizer.encode("a\n      b")) == "a\nb"


def test_literal_markers_in_a_text_are_plain_text() -> None:
    assert split("<unk>") == ["<", JOIN, "unk", JOIN, ">"]
    assert JOIN not in split(f"a{JOIN}b")


def test_errors() -> None:
    with pytest.raises(InputError, match="the text is empty"):
        WordTokenizer.from_text(" \n"[:1])
    with pytest.raises(InputError, match="must start with <unk> and repeat no word"):
        WordTokenizer(["a", "b"])
    with pytest.raises(InputError, match="must start with <unk> and repeat no word"):
        WordTokenizer([UNKNOWN, "b", "b"])
