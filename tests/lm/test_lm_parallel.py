"""Threads: they share the windows of a step, and leave no trace in the result."""

from __future__ import annotations

import sys
import threading
import warnings

import numpy as np
import pytest

from cattn import get_num_threads, set_num_threads
from cattn.lm import ModelConfig, NextWordModel, Trainer, TrainSettings, prepare, trainer
from cattn.lm.parallel import parallel_map


@pytest.fixture
def threads():
    """Set the number of threads; afterwards it is as it was."""
    before = get_num_threads()
    yield set_num_threads
    set_num_threads(before)


def trained(story, monkeypatch):
    """Train for some steps with batches of five parts, the last one a window short."""
    monkeypatch.setattr(trainer, "PART_TOKENS", 16)
    tokenizer, data = prepare(story)
    config = ModelConfig(len(tokenizer), context=8, width=16, heads=2, dropout=0.2)
    result = Trainer.new(config, tokenizer, data, TrainSettings(steps=12, batch=9, evaluations=3))
    assert result.run() == "finished"
    return result


def test_the_number_of_threads_does_not_show(story, monkeypatch, threads):
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(trained(story, monkeypatch))
    for other in results[1:]:
        assert other.history == results[0].history
        for name, p in results[0].model.params.items():
            np.testing.assert_array_equal(other.model.params[name], p)


def test_shares_sum_to_the_batch(tiny_model):
    windows = np.random.default_rng(0).integers(0, 11, (5, 7))
    loss, grads = tiny_model.loss_and_grads(windows)
    parts = [
        tiny_model.loss_and_grads(part, share=len(part) / 5) for part in (windows[:2], windows[2:])
    ]
    assert sum(part[0] for part in parts) == pytest.approx(loss, rel=1e-12)
    for name, g in grads.items():
        np.testing.assert_allclose(sum(p[1][name] for p in parts), g, rtol=1e-10, atol=1e-14)


def test_parts_have_their_own_dropout(story, monkeypatch):
    """Two parts of the same windows: with the same dropout their losses would be the same."""
    monkeypatch.setattr(trainer, "PART_TOKENS", 8)
    tokenizer, data = prepare(story)
    model = NextWordModel(ModelConfig(len(tokenizer), context=8, width=16, heads=2, dropout=0.5))
    one = Trainer(model, tokenizer, data, TrainSettings(batch=2))
    batch = np.repeat(one.batches.at(0)[:1], 2, axis=0)
    assert one._part_of_step(batch, 0)[0] != one._part_of_step(batch, 1)[0]


def test_results_come_in_order_from_several_threads(threads):
    threads(2)
    meet = threading.Barrier(2, timeout=30)  # breaks unless two threads are at work

    def function(i):
        meet.wait()
        return 10 * i

    with parallel_map() as map_:
        assert list(map_(function, range(6))) == [0, 10, 20, 30, 40, 50]


def test_threads_do_not_warn_of_overflow(threads):
    threads(2)
    with parallel_map() as map_, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isinf(list(map_(np.exp, np.array([1e9, 1e9])))).all()


def test_the_blas_is_told_and_left_as_it_was():
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas_threads():
        pools = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
        return [pool["num_threads"] for pool in pools]

    before = blas_threads()
    with parallel_map():
        assert blas_threads() == [1] * len(before)
    assert blas_threads() == before


def test_without_threadpoolctl(story, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with parallel_map() as map_:
        assert map_ is map
    assert trained(story, monkeypatch).model.num_threads is None
