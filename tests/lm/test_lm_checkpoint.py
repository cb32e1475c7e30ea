"""Checkpoint files: what is written is read, and whatever goes wrong, the old file is there."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import safetensors.numpy

from cattn.lm import (
    Checkpoint,
    InputError,
    ModelConfig,
    NextWordModel,
    WordTokenizer,
    load_checkpoint,
    load_model,
    save_checkpoint,
)


@pytest.fixture
def checkpoint():
    tokenizer = WordTokenizer.from_text("one 二\n three", min_count=1)
    config = ModelConfig(len(tokenizer), context=4, width=8, heads=2)
    params = NextWordModel(config).params
    optimizer = {"velocity.norm": np.arange(8, dtype=np.float32)}
    return Checkpoint(config, tokenizer, params, dict(params), optimizer, {"step": 3})


@pytest.fixture
def path(tmp_path, checkpoint):
    path = tmp_path / "m.safetensors"
    save_checkpoint(path, checkpoint)
    return path


def test_round_trip(path, checkpoint):
    read = load_checkpoint(path)
    assert read.config == checkpoint.config
    assert read.tokenizer.words == checkpoint.tokenizer.words
    assert read.training == {"step": 3}
    for group in ("model", "last", "optimizer"):
        written, found = getattr(checkpoint, group), getattr(read, group)
        assert written.keys() == found.keys()
        for name in written:
            np.testing.assert_array_equal(written[name], found[name], strict=True)
    model, _ = load_model(path)
    np.testing.assert_array_equal(model.params["embedding"], checkpoint.model["embedding"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(path):
    path.write_bytes(path.read_bytes()[:20])


def damage_empty(path):
    path.write_bytes(b"")


def damage_text(path):
    path.write_text("once upon a time")


def rewrite(path, change):
    """Write the file again with its metadata or tensors changed."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata, names = file.metadata(), file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    change(metadata, tensors)
    safetensors.numpy.save_file(tensors, path, metadata)


CASES = {
    "truncated": (damage_truncate, "not a checkpoint, or a truncated one"),
    "cut in the header": (damage_header, "not a checkpoint, or a truncated one"),
    "empty": (damage_empty, "not a checkpoint, or a truncated one"),
    "a text": (damage_text, "not a checkpoint, or a truncated one"),
    "another format": (
        lambda path: rewrite(path, lambda m, t: m.clear() or m.update(format="pt")),
        "a safetensors file, but not a checkpoint of cattn.lm",
    ),
    "another version": (
        lambda path: rewrite(path, lambda m, t: m.update(version="9")),
        "format version 9, this cattn reads version 1",
    ),
    "no state": (
        lambda path: rewrite(path, lambda m, t: m.pop("state")),
        "a damaged checkpoint",
    ),
    "broken state": (
        lambda path: rewrite(path, lambda m, t: m.update(state="{")),
        "a damaged checkpoint",
    ),
    "a missing tensor": (
        lambda path: rewrite(path, lambda m, t: t.pop("model/norm")),
        "its tensors are not those of its settings",
    ),
    "a tensor of another shape": (
        lambda path: rewrite(path, lambda m, t: t.update({"model/norm": np.ones(3, np.float32)})),
        "its tensors are not those of its settings",
    ),
    "an unknown tensor": (
        lambda path: rewrite(path, lambda m, t: t.update(other=np.ones(3, np.float32))),
        "a damaged checkpoint",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged(path, cli, case):
    damage, message = CASES[case]
    damage(path)
    with pytest.raises(InputError, match=message):
        load_checkpoint(path)
    for arguments in (
        ["generate", "-m", path],
        ["show", "one", "-m", path],
        ["train", "--resume", path],
    ):
        outcome = cli(*arguments)
        assert outcome.code == 2
        assert outcome.err.startswith(f"cattn: {path}: ")
        assert message in outcome.err
        assert outcome.err.count("\n") == 1


def test_missing(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="not a file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file(path, checkpoint, monkeypatch, error):
    before = path.read_bytes()

    def fail(*arguments):
        raise error

    monkeypatch.setattr("os.fsync", fail)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_unwritable_place(tmp_path, checkpoint):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "m.safetensors", checkpoint)


def test_missing_extra_is_one_clear_line(path, cli, monkeypatch):
    for module in ("safetensors", "safetensors.numpy", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    outcome = cli("generate", "--model", path)
    assert outcome.code == 2
    assert outcome.err == (
        "cattn: reading a checkpoint needs safetensors: pip install 'cattn[lm]'\n"
    )
    outcome = cli("train", "-o", path.with_name("new.safetensors"))
    assert outcome.code == 2
    assert "saving a checkpoint needs safetensors: pip install 'cattn[lm]'" in outcome.err
