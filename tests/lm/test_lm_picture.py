"""Pictures of attention: in the terminal, in a file, and with characters that no font has."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from cattn.lm import InputError, draw_attention, picture, print_attention
from cattn.lm.picture import visible

WORDS = ["The", "cat", "\n    ", "sat", " ", "!"]
WEIGHTS = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
UNDRAWABLE = "\U000e0fff"  # not assigned: no font has it


def test_terminal():
    stream = io.StringIO()
    print_attention(
        ["我", "like", "it"], np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 0.3, 0.7]]), stream
    )
    assert stream.getvalue().splitlines() == [
        " 1 我   |█  | 1 我 100%",
        " 2 like |█░ | 1 我 90%  2 like 10%",
        " 3 it   | ▒▓| 3 it 70%  2 like 30%  1 我 0%",
    ]


def test_terminal_without_unicode():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_attention(WORDS, WEIGHTS, stream)
    stream.flush()
    lines = raw.getvalue().decode("ascii").splitlines()
    assert lines[0] == " 1 The     |#     | 1 The 100%"
    assert lines[2].startswith(r" 3 \n      |")
    assert lines[4].startswith(" 5 (blank) |")


def test_visible():
    assert [visible(word) for word in ["a", "\n\n  ", " ", "\u2060"]] == [
        "a", r"\n\n", "(blank)", "(join)",
    ]  # fmt: skip


@pytest.mark.parametrize("panels", [1, 4])
def test_picture_is_drawn(tmp_path, panels):
    path = tmp_path / "picture.png"
    weights = WEIGHTS if panels == 1 else np.stack([WEIGHTS] * panels)
    assert draw_attention(WORDS, weights, path, title="a title") is True
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 200
    assert pixels.min() < 60  # ink
    assert pixels.max() == 255


def test_characters_without_a_font_become_numbers(tmp_path, recwarn):
    """No boxes: matplotlib would warn of every glyph that it lacks."""
    path = tmp_path / "picture.png"
    assert draw_attention(["a", UNDRAWABLE], WEIGHTS[:2, :2], path) is False
    assert path.stat().st_size > 0
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_chinese_is_drawn_with_a_font_or_numbered(tmp_path, recwarn):
    labelled = draw_attention(list("我喜欢"), WEIGHTS[:3, :3], tmp_path / "picture.png")
    assert labelled == (picture._font_for("我喜欢") is not None)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_errors(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="cannot be written"):
        draw_attention(WORDS, WEIGHTS, tmp_path / "missing" / "picture.png")
    with pytest.raises(InputError, match="cannot be written"):
        draw_attention(WORDS, WEIGHTS, tmp_path / "picture.unheard")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="drawing a picture needs matplotlib: pip install"):
        draw_attention(WORDS, WEIGHTS, tmp_path / "picture.png")
