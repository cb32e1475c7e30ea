"""Training: it learns, it is deterministic, it stops, and it goes on exactly where it stopped."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from cattn.lm import (
    InputError,
    ModelConfig,
    NextWordModel,
    Trainer,
    TrainSettings,
    default_text,
    generate,
    load_checkpoint,
    prepare,
)

SIZES = {"context": 8, "width": 16, "heads": 2, "dropout": 0.2}
SETTINGS = TrainSettings(steps=40, batch=4, warmup=5, evaluations=5, patience=5)


def make_trainer(text, path=None, settings=SETTINGS, **sizes):
    tokenizer, data = prepare(text)
    config = ModelConfig(len(tokenizer), **(SIZES | sizes))
    return Trainer.new(config, tokenizer, data, settings, path)


def assert_same_training(a, b):
    """To the last bit: history, weights in use, weights at the end, the optimiser's state."""
    assert a.history == b.history
    assert a.step == b.step
    for group in ("last", "model", "optimizer"):
        x, y = (getattr(load_checkpoint(trainer.path), group) for trainer in (a, b))
        assert x.keys() == y.keys()
        assert all(np.array_equal(x[name], y[name]) for name in x), group


def test_beats_the_bigram_on_what_a_bigram_cannot_see(story):
    """The last word of a sentence follows from the first: 2.08 nats in six words."""
    settings = TrainSettings(steps=400, batch=12, lr=0.2, warmup=20, evaluations=4)
    trainer = make_trainer(story, settings=settings, context=16, width=32, dropout=0.1)
    assert trainer.run() == "finished"
    assert trainer.best().held_out < trainer.ngrams.bigram - 0.3
    assert trainer.ngrams.bigram < trainer.ngrams.unigram


def test_beats_the_bigram_on_prose():
    """A slice of the default text, with SGD. (Every Python's text is another.)"""
    trainer = make_trainer(
        default_text()[200_000:400_000],
        settings=TrainSettings(steps=500, batch=16, lr=0.7, warmup=40, evaluations=5),
        context=32, width=48, heads=4, dropout=0.1,
    )  # fmt: skip
    trainer.run()
    assert trainer.best().held_out < trainer.ngrams.bigram - 0.1


def test_learns_a_sentence():
    sentence, first_half = "我喜欢编程，因为它让我感到满足。", "我喜欢编程，"
    tokenizer, data = prepare(sentence, held_out=0.0)
    config = ModelConfig(len(tokenizer), context=15, width=32)
    trainer = Trainer.new(
        config, tokenizer, data, TrainSettings(steps=150, batch=8, lr=0.3, warmup=10)
    )
    assert trainer.run() == "finished"
    for seed in range(5):
        assert generate(trainer.model, tokenizer, first_half, words=10, seed=seed) == sentence


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_same_seed_same_run(story, tmp_path, optimizer):
    lr = {"sgd": 0.5, "adam": 0.003}[optimizer]
    settings = TrainSettings(steps=12, batch=4, optimizer=optimizer, lr=lr, evaluations=3)
    a = make_trainer(story, tmp_path / "a.safetensors", settings)
    b = make_trainer(story, tmp_path / "b.safetensors", settings)
    a.run()
    b.run()
    assert len(a.history) == 3
    assert_same_training(a, b)

    other = TrainSettings(steps=12, batch=4, optimizer=optimizer, lr=lr, evaluations=3, seed=1)
    c = make_trainer(story, settings=other)
    c.run()
    assert c.history != a.history


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resume_is_exact(story, tmp_path, optimizer):
    lr = {"sgd": 0.5, "adam": 0.003}[optimizer]
    settings = TrainSettings(
        steps=40, batch=4, optimizer=optimizer, lr=lr, warmup=5, evaluations=5, patience=5
    )
    unbroken = make_trainer(story, tmp_path / "unbroken.safetensors", settings)
    assert unbroken.run() == "finished"

    path = tmp_path / "broken.safetensors"
    assert make_trainer(story, path, settings).run(until=11) == "paused"  # between evaluations
    assert Trainer.resume(path, story).run(until=24) == "paused"  # on one
    resumed = Trainer.resume(path, story)
    assert resumed.step == 24
    assert resumed.run() == "finished"
    assert_same_training(unbroken, resumed)

    again = Trainer.resume(path, story)
    assert again.run() == "finished"  # nothing left to do, nothing changed
    assert_same_training(unbroken, again)


def test_resume_refuses_another_text(story, tmp_path):
    path = tmp_path / "m.safetensors"
    make_trainer(story, path).run(until=1)
    with pytest.raises(InputError, match="was trained on another text"):
        Trainer.resume(path, story + " And so on.")


def test_stops_early_and_keeps_the_best(tmp_path):
    """Random words cannot be foreseen: the training loss falls and the held-out loss rises."""
    rng = np.random.default_rng(0)
    text = " ".join(f"w{i}" for i in rng.integers(0, 40, 400))
    settings = TrainSettings(steps=2000, batch=8, lr=0.3, warmup=5, evaluations=100, patience=3)
    trainer = make_trainer(text, tmp_path / "m.safetensors", settings, dropout=0.0)
    assert trainer.run() == "stopped early"
    losses = [record.held_out for record in trainer.history]
    assert trainer.step < 2000
    assert losses.index(min(losses)) == len(losses) - 4
    assert trainer.held_out_loss() == trainer.best().held_out
    checkpoint = load_checkpoint(trainer.path)
    assert all(np.array_equal(p, checkpoint.model[n]) for n, p in trainer.model.params.items())
    assert any((checkpoint.last[n] != p).any() for n, p in checkpoint.model.items())
    assert Trainer.resume(trainer.path, text).run() == "stopped early"


def test_every_held_out_token_counts_once(story):
    trainer = make_trainer(story)
    for p in trainer.model.params.values():
        p[...] = 0  # every word is as likely as any other
    assert trainer.held_out_loss() == pytest.approx(np.log(len(trainer.tokenizer)), rel=1e-6)


def test_runs_outside_the_main_thread(story):
    trainer = make_trainer(story)
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(trainer.run(until=3)))
    thread.start()
    thread.join()
    assert outcomes == ["paused"]


def test_ctrl_c_saves_and_going_on_is_exact(python, text_file, tmp_path):
    """The real thing: a process that gets SIGINT, a second one that goes on."""
    sizes = ["--context", "8", "--width", "16", "--heads", "2", "--batch", "4", "--steps", "1500",
             "--evaluations", "3"]  # fmt: skip

    command = ["-m", "cattn", "train", text_file, "--plain"]
    broken, unbroken = tmp_path / "broken.safetensors", tmp_path / "unbroken.safetensors"
    process = python(*command, *sizes, "-o", broken)
    first_report = process.stderr.readline()
    assert "tok/s" in first_report
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"go on with: python -m cattn train {text_file} --resume {broken}" in out
    step = load_checkpoint(broken).training["step"]
    assert f"interrupted at step {step} of 1500, saved to {broken}" in out
    assert 0 < step < 1500

    for arguments in (["--resume", broken], [*sizes, "-o", unbroken]):
        process = python(*command, *arguments)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    a, b = load_checkpoint(broken), load_checkpoint(unbroken)
    assert a.training == b.training
    for group in ("last", "model", "optimizer"):
        x, y = getattr(a, group), getattr(b, group)
        assert all(np.array_equal(x[name], y[name]) for name in x), group


def test_second_ctrl_c_does_not_wait(story):
    trainer = make_trainer(story)
    plain_step = trainer.train_step

    def step():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return plain_step()

    trainer.train_step = step
    # A shell starts what runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps: is 0, expected at least 1"),
        ({"lr": 0.0}, "lr: is 0.0, expected more than 0"),
        ({"lr": float("nan")}, "lr: is nan, expected more than 0"),
        ({"momentum": -0.1}, "momentum: is -0.1, expected at least 0"),
        ({"optimizer": "x"}, "optimizer: is x, expected sgd or adam"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        TrainSettings(**settings)


def test_bad_share():
    with pytest.raises(InputError, match=r"held_out: is 1.0, expected at least 0"):
        prepare("a b c", held_out=1.0)


def test_without_a_path_nothing_is_written(story, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_trainer(story).run(until=2)
    assert list(Path().iterdir()) == []


def test_a_trainer_takes_any_model(story):
    tokenizer, data = prepare(story)
    model = NextWordModel(ModelConfig(len(tokenizer), **SIZES))
    trainer = Trainer(model, tokenizer, data, SETTINGS)
    assert trainer.train_step() == pytest.approx(np.log(len(tokenizer)), rel=0.2)
