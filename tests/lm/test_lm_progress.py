"""The progress bar: tqdm's, and the plain one."""

from __future__ import annotations

import io
import sys

from cattn.lm.progress import PlainProgress, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_in_a_file():
    stream = io.StringIO()
    bar = PlainProgress(100, 0, stream)
    for _ in range(50):
        bar.advance(2, "loss 1")
    bar.say("said")
    bar.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [f"{tenth}0%" for tenth in range(1, 11)]
    assert all(line.endswith("tok/s loss 1") for line in lines[:-1])
    assert lines[-1] == "said"


def test_plain_goes_on_where_it_was():
    stream = io.StringIO()
    bar = PlainProgress(100, 50, stream)
    bar.advance(5, "")
    assert stream.getvalue() == ""
    bar.advance(5, "")
    assert stream.getvalue().startswith(" 60%")


def test_plain_line_on_a_terminal(monkeypatch):
    times = iter([0.0, 0.1, 1.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    stream = Terminal()
    bar = PlainProgress(100, 0, stream)
    bar.advance(10, "a")  # too soon to be shown
    bar.advance(10, "b")
    bar.close()
    assert stream.getvalue() == "\r\x1b[K 20% 20 tok/s b\n"


def test_tqdm_is_used_on_a_terminal_if_installed(capsys, monkeypatch):
    assert isinstance(progress_bar(100), PlainProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = progress_bar(100)
    bar.advance(100, "loss 1.5")
    bar.say("said")
    bar.close()
    err = capsys.readouterr().err
    assert "loss 1.5" in err
    assert "100%" in err
    assert "said" in err


def test_plain_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(progress_bar(10), PlainProgress)
