"""The command line: each command, each wrong input, one clear line and exit code 2."""

from __future__ import annotations

import io

import numpy as np
import pytest

from cattn.cli import COMMANDS, to_type
from cattn.lm import load_checkpoint

FAST = ["--context", 8, "--width", 16, "--heads", 2, "--steps", 6, "--batch", 2, "--evaluations", 2]


@pytest.fixture
def model(cli, text_file, tmp_path):
    path = tmp_path / "m.safetensors"
    outcome = cli("train", text_file, "-o", path, *FAST)
    assert outcome.code == 0, outcome.err
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help(cli, command):
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert COMMANDS[command][1:] in outcome.out.replace("\n", " ")
    if command != "info":
        assert "example" in outcome.out
        assert f"python -m cattn {command}" in outcome.out


def test_help_lists_the_commands(python):
    """As a person runs it."""
    out, err = python("-m", "cattn", "--help").communicate(timeout=60)
    assert all(f"\n    {command}" in out for command in COMMANDS), err


def test_a_wrong_command(cli):
    outcome = cli("trian")
    assert outcome.code == 2
    assert "invalid choice: 'trian'" in outcome.err


def test_train_reports_what_must_be_beaten(cli, text_file, tmp_path):
    outcome = cli("train", text_file, "-o", tmp_path / "m.safetensors", *FAST, "--plain")
    assert outcome.code == 0
    assert "words to train on" in outcome.out
    for line in ("unigram", "bigram", "this model", "below the bigram", "tok/s"):
        assert line in outcome.out
    assert outcome.err.count("held-out") == 2
    assert "unigram" in outcome.err
    assert "tok/s" in outcome.err


def test_train_from_a_folder_and_from_standard_input(cli, text_file, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    (folder / "deeper").mkdir(parents=True)
    first, second = "one two three. " * 20, "four five six. " * 20
    (folder / "a.txt").write_text(first)
    (folder / "deeper" / "b.md").write_text(second)
    (folder / "c.png").write_bytes(b"\xff\xfe")
    assert cli("train", folder, "-o", tmp_path / "folder.safetensors", *FAST).code == 0
    text = first + "\n\n" + second
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert cli("train", "-", "-o", tmp_path / "stdin.safetensors", *FAST).code == 0
    a, b = (load_checkpoint(tmp_path / f"{n}.safetensors") for n in ("folder", "stdin"))
    assert a.training["digest"] == b.training["digest"]


def test_sentence_from_start_to_end(cli, tmp_path):
    """The commands that a newcomer types for one sentence."""
    text, model = tmp_path / "sentence.txt", tmp_path / "sentence.safetensors"
    text.write_text("我喜欢编程，因为它让我感到满足。", encoding="utf-8")
    outcome = cli("train", text, "-o", model, "--held-out", 0, "--context", 15, "--width", 32,
                  "--steps", 150, "--warmup", 10, "--batch", 8, "--lr", 0.3)  # fmt: skip
    assert outcome.code == 0, outcome.err
    outcome = cli("generate", "--model", model, "--prompt", "我喜欢编程，", "--words", 10)
    assert outcome.out == "我喜欢编程，因为它让我感到满足。\n"
    outcome = cli(
        "show", "我喜欢编程，", "-m", model, "-o", tmp_path / "picture.png", "--head", "all"
    )
    assert outcome.code == 0
    assert outcome.out.startswith(" 1 我 |█     | 1 我 100%\n")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_generate_options(cli, model):
    outcome = cli("generate", "-m", model, "-p", "Ada found", "--words", 5, "--samples", 2,
                  "--top-k", 3, "--top-p", 0.9, "--temperature", 0.7, "--seed", 4)  # fmt: skip
    assert outcome.code == 0
    assert outcome.out.count("Ada found") == 2
    assert cli("generate", "-m", model, "-p", "Ada found", "--words", 0).out == "Ada found\n"


def test_show_without_a_font(cli, model, tmp_path, monkeypatch):
    monkeypatch.setattr("cattn.lm.picture._font_for", lambda text: None)
    outcome = cli(
        "show", "Ada found", "-m", model, "-o", tmp_path / "p.png", "--head", 2, "--block", 1
    )
    assert outcome.code == 0
    assert "no installed font has all these characters" in outcome.out
    assert " 1 Ada   |" in outcome.out


def test_bench(cli):
    outcome = cli("bench", "--length", 16, "--heads", 1, "--dim", 8)
    assert outcome.code == 0
    rows = [line.split() for line in outcome.out.splitlines()[2:]]
    assert [(row[0], row[4]) for row in rows] == [
        ("forward", "dense"), ("backward", "dense"), ("forward", "causal"), ("backward", "causal"),
    ]  # fmt: skip
    assert all(float(row[-1]) < 1e-5 for row in rows)


def test_info(cli):
    outcome = cli("info")
    assert outcome.code == 0
    assert "instruction set" in outcome.out


def test_demo(cli, tmp_path):
    outcome = cli("demo", "--folder", tmp_path / "results", "--steps", 2)
    assert outcome.code == 0
    for heading in ("a next-word model", "what it writes", "what it attends to", "plain NumPy"):
        assert heading in outcome.out
    assert (tmp_path / "results" / "demo.png").exists()
    path = tmp_path / "results" / "demo.safetensors"
    assert load_checkpoint(path).training["step"] == 2
    assert outcome.out.endswith(f"try: python -m cattn generate --model {path}\n")


def test_suggestions_name_the_program_as_it_was_started(monkeypatch):
    monkeypatch.setattr("sys.argv", [".venv/bin/cattn", "demo"])
    assert to_type("train", "--resume", "a b") == ".venv/bin/cattn train --resume 'a b'"


# Wrong input


def assert_refused(outcome, message):
    assert outcome.code == 2
    assert outcome.err.startswith("cattn: ")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc \xff\xfe def", "text.txt: not UTF-8 (byte 4)"),
        (b"", "text.txt: the text is empty"),
        (b" \n\t\n ", "text.txt: the text is empty"),
        (b"much too short", "the text has 3 tokens to train on, too short for a context of 32"),
        (None, "text.txt: no such file or folder"),
    ],
)
def test_unusable_text(cli, tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    assert_refused(cli("train", path, "-o", tmp_path / "m.safetensors"), message)
    assert not (tmp_path / "m.safetensors").exists()


def test_folder_without_texts(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(cli("train", tmp_path / "empty"), "empty: the folder holds no text file")


def test_empty_standard_input(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert_refused(cli("train", "-", "-o", tmp_path / "m"), "standard input: the text is empty")


@pytest.mark.parametrize(
    "command", [["generate", "--model"], ["show", "a text", "--model"], ["train", "--resume"]]
)
def test_missing_checkpoint(cli, tmp_path, command):
    assert_refused(cli(*command, tmp_path / "m.safetensors"), "m.safetensors: no such checkpoint")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "10", "--heads", "3"], "heads: is 3, expected a divisor of the width 10"),
        (["--dropout", "1"], "dropout: is 1.0, expected at least 0 and less than 1"),
        (["--batch", "0"], "batch: is 0, expected at least 1"),
        (["--steps", "0"], "steps: is 0, expected at least 1"),
        (["--lr", "nan"], "lr: is nan, expected more than 0"),
        (["--optimizer", "lion"], "optimizer: is lion, expected sgd or adam"),
        (["--held-out", "2"], "held_out: is 2.0, expected at least 0 and less than 1"),
        (["--seed", "-1"], "seed: is -1, expected at least 0"),
    ],
)
def test_bad_settings(cli, text_file, tmp_path, arguments, message):
    path = tmp_path / "m.safetensors"
    assert_refused(cli("train", text_file, "-o", path, *arguments), message)
    assert not path.exists()


def test_divergence_is_reported_and_the_last_checkpoint_is_whole(cli, text_file, tmp_path):
    path = tmp_path / "m.safetensors"
    outcome = cli("train", text_file, "-o", path, *FAST, "--lr", "1e30", "--warmup", 0)
    assert outcome.code == 2
    assert "cattn: training diverged at step " in outcome.err
    assert all(np.isfinite(p).all() for p in load_checkpoint(path).last.values())


def test_bad_use_of_a_model(cli, model):
    assert_refused(cli("generate", "-m", model, "--top-p", 2), "top_p: is 2.0")
    assert_refused(cli("generate", "-m", model, "--seed", -1), "seed: is -1, expected at least 0")
    assert_refused(cli("show", "a", "-m", model, "--block", 2), "block: is 2, expected 1 to 1")
    assert_refused(
        cli("show", "a", "-m", model, "--head", "x"), "head: is x, expected 1 to 2, mean"
    )
    assert_refused(cli("show", " ", "-m", model), "the text is empty")
    assert_refused(cli("bench", "--length", 0), "expected at least 1")


def test_an_existing_checkpoint_is_not_lost(cli, text_file, model):
    before = model.read_bytes()
    outcome = cli("train", text_file, "-o", model, *FAST)
    assert_refused(outcome, f"{model} exists: go on with --resume {model}")
    assert model.read_bytes() == before

    # A run that is refused leaves it alone even if it was to be replaced.
    assert cli("train", text_file, "-o", model, "--overwrite", "--heads", 5).code == 2
    assert model.read_bytes() == before

    assert cli("train", text_file, "-o", model, "--overwrite", *FAST, "--seed", 1).code == 0
    assert model.read_bytes() != before
    assert model.with_name("m.safetensors.bak").read_bytes() == before


def test_a_place_that_cannot_be_written_is_refused_at_once(cli, text_file, tmp_path):
    outcome = cli("train", text_file, "-o", text_file / "m.safetensors", *FAST)
    assert_refused(outcome, f"{text_file / 'm.safetensors'}: cannot be written")
    assert_refused(cli("train", text_file, "-o", tmp_path, "--overwrite", *FAST), "is a folder")
    assert_refused(cli("demo", "--folder", text_file), "cannot be written")


def test_resume_refuses_settings_and_another_text(cli, text_file, model):
    before = model.read_bytes()
    outcome = cli("train", text_file, "--resume", model, "--width", 8, "--weight-decay", 0.1)
    assert_refused(outcome, "leave out --width, --weight-decay")
    outcome = cli("train", "--resume", model)
    assert_refused(outcome, "was trained on another text; give the same text to go on")
    assert model.read_bytes() == before
    assert cli("train", text_file, "--resume", model).code == 0


def test_a_terminal_without_unicode(python, model):
    """Words that the terminal cannot show are replaced; nothing breaks."""
    process = python("-m", "cattn", "show", "我 found", "-m", model, PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith(" 1 ?      |#")


def test_output_that_is_no_longer_read(python, model):
    """As in ``| head -0``: no traceback."""
    process = python("-m", "cattn", "generate", "-m", model, "--words", 5, "--samples", 20)
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait(timeout=60) == 141


def test_a_text_that_cannot_be_read(cli, text_file, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    outcome = cli("train", text_file / "in_a_file.txt", "-o", tmp_path / "m")
    assert_refused(outcome, "in_a_file.txt: cannot be read (Not a directory)")
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    outcome = cli("train", text_file, "-o", tmp_path / "m")
    assert_refused(outcome, f"{text_file}: cannot be read (Permission denied)")


def test_a_checkpoint_that_cannot_be_read(cli, text_file, model, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("safetensors.safe_open", refuse)
    for command in (["generate", "-m"], ["show", "Ada", "-m"], ["train", text_file, "--resume"]):
        assert_refused(cli(*command, model), f"{model}: cannot be read (Permission denied)")


def test_train_says_whether_the_bigram_is_beaten(cli, text_file, tmp_path):
    path = tmp_path / "m.safetensors"
    assert "(the bigram is NOT beaten)" in cli("train", text_file, "-o", path, *FAST).out
    outcome = cli("train", text_file, "-o", path, "--overwrite", "--context", 16, "--width", 32,
                  "--steps", 400, "--batch", 12, "--lr", 0.2, "--warmup", 20)  # fmt: skip
    assert "(the model beats the bigram)" in outcome.out
    margin = outcome.out.partition("below the bigram")[2].split()[0]
    best = load_checkpoint(path).training["history"][-1][2]
    bigram = float(outcome.out.partition("  bigram ")[2].split()[0])
    assert float(margin) == pytest.approx(bigram - best, abs=2e-3)
    assert float(margin) > 0.3


@pytest.mark.parametrize("module", ["cattn", "cattn.lm"])
def test_importing_loads_no_more_than_needed(python, module):
    lazy = {"matplotlib", "tqdm", "safetensors", "threadpoolctl"} | (
        {"cattn.lm", "cattn.cli"} - {module}
    )
    code = f"import sys, {module}; print(sorted({lazy} & sys.modules.keys()))"
    out, err = python("-c", code).communicate(timeout=60)
    assert out == "[]\n", err
