"""The examples run, and do what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name, folder=EXAMPLES):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pooling():
    return load("learned_pooling")


def test_pooling_is_the_textbook_formula(pooling):
    rng = np.random.default_rng(0)
    x, _ = pooling.make_batch(rng)
    w, b = rng.standard_normal(pooling.WIDTH), rng.standard_normal(pooling.LENGTH)
    scores = x @ w + b
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = np.einsum("bl,bld->bd", weights, x)
    result = pooling.pool(x, w, b)
    np.testing.assert_allclose(result.out[:, 0, 0], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(result.weights[:, 0, 0], weights, rtol=1e-12)
    shifted = pooling.pool(x, w, b + 5).out  # a constant cancels
    np.testing.assert_allclose(shifted, result.out, rtol=1e-10, atol=1e-12)


def test_pooling_gradients(pooling):
    rng = np.random.default_rng(0)
    x, target = pooling.make_batch(rng)
    w, b = rng.standard_normal(pooling.WIDTH), rng.standard_normal(pooling.LENGTH)
    _, dw, db = pooling.loss_and_gradients(x, target, w, b)
    for array, gradient in ((w, dw), (b, db)):
        for i in range(len(array)):
            step = np.zeros_like(array)
            step[i] = 1e-6
            change = [
                pooling.loss_and_gradients(
                    x, target, w + s * step if array is w else w, b + s * step if array is b else b
                )[0]
                for s in (1, -1)
            ]
            assert (change[0] - change[1]) / 2e-6 == pytest.approx(gradient[i], abs=1e-8)
    assert db.sum() == pytest.approx(0, abs=1e-12)  # a constant bias has no gradient


def test_pooling_learns(pooling, capsys):
    losses, w, b = pooling.train()
    assert losses[-1] < 0.01 < 0.5 < losses[0]
    assert w[0] > 3  # it looks for the mark
    assert max(b[0], b[-1]) < b[1:-1].min() - 3  # and not at the ends
    pooling.main()
    printed = capsys.readouterr().out
    assert "step    0  loss 0.8" in printed
    assert "query W" in printed


def test_sentence(tmp_path, capsys):
    example = load("sentence_attention")
    example.main(tmp_path / "picture.png")
    printed = capsys.readouterr().out
    assert printed.startswith("我喜欢编程，因为它让我感到满足。\n 1 我 |")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_table_of_what_is_learnt(story, monkeypatch):
    """`make learn`, on one small text and with the fewest steps."""
    monkeypatch.setattr("cattn.lm.trainer.OPERATIONS", 0)
    learn = load("learn", EXAMPLES.parent / "benchmarks")
    row = dict(zip(learn.COLUMNS, learn.row("story", learn.train(story)), strict=True))
    assert row["text"] == "story"
    assert row["steps"] == "200"
    losses = [float(row[name]) for name in ("unigram", "bigram", "model")]
    assert losses == sorted(losses, reverse=True)
    assert float(row["below the bigram"]) == pytest.approx(losses[1] - losses[2], abs=2e-3)
