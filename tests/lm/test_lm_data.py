"""Batches, held-out windows, and the n-gram losses."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from cattn.lm import InputError, ngram_losses
from cattn.lm.data import DROPOUT, ORDER, Batches, scored_windows, stream


def test_batches_are_a_function_of_seed_and_step():
    tokens = np.arange(1000)
    a, b = (Batches(tokens, 10, 4, seed=1) for _ in range(2))
    later = a.at(70).copy()
    for step in (0, 33, 1):
        np.testing.assert_array_equal(a.at(step), b.at(step))
    np.testing.assert_array_equal(b.at(70), later)
    assert (Batches(tokens, 10, 4, seed=2).at(0) != a.at(0)).any()


def test_an_epoch_shows_each_window_once():
    batches = Batches(np.arange(1003), context=10, batch=3, seed=0)
    assert batches.windows == 99
    for epoch in range(3):
        seen = np.concatenate([batches.at(33 * epoch + i) for i in range(33)])
        assert seen.shape == (99, 11)
        inputs = np.sort(seen[:, :-1].ravel())
        np.testing.assert_array_equal(inputs, np.arange(inputs[0], inputs[0] + 990))
        assert (np.diff(seen, axis=1) == 1).all()


def test_the_shortest_text():
    batches = Batches(np.arange(6), context=5, batch=2, seed=0)
    np.testing.assert_array_equal(batches.at(9), [np.arange(6)] * 2)
    with pytest.raises(InputError, match="5 tokens to train on, too short for a context of 5"):
        Batches(np.arange(5), context=5, batch=2, seed=0)


@pytest.mark.parametrize("before", [1, 3, 40])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 37])
@pytest.mark.parametrize("context", [1, 2, 5, 8])
def test_every_held_out_token_is_scored_once_with_context(before, count, context):
    tokens = np.arange(100, 100 + count)
    scored = []
    for windows, last in scored_windows(np.arange(100 - before, 100), tokens, context, 3):
        assert windows.shape[0] <= 3
        assert windows.shape[1] <= context + 1
        assert (np.diff(windows, axis=1) == 1).all()
        for window in windows:
            for place in range(len(window) - last, len(window)):
                scored.append(window[place])
                available = window[place] - (100 - before)
                assert place >= min(available, max(1, context // 2))
    assert sorted(scored) == tokens.tolist()


def test_streams_differ_by_seed_purpose_and_index():
    draws = {
        stream(seed, purpose, index).random()
        for seed in range(3)
        for purpose in (ORDER, DROPOUT)
        for index in range(3)
    }
    assert len(draws) == 18


def test_ngram_losses_against_dictionaries():
    rng = np.random.default_rng(0)
    vocab, train, held_out = 7, rng.integers(0, 6, 60), rng.integers(0, 7, 30)
    counts, pairs = Counter(train.tolist()), Counter(pairwise(train.tolist()))
    followed = Counter(train[:-1].tolist())

    def unigram(w):
        return (counts[w] + 1) / (60 + vocab)

    def bigram_loss(weight):
        total, previous = 0.0, train[-1]
        for w in held_out:
            p = unigram(w)
            if followed[previous]:
                p = weight * pairs[previous, w] / followed[previous] + (1 - weight) * p
            total -= np.log(p)
            previous = w
        return total / 30

    losses = ngram_losses(train, held_out, vocab)
    assert losses.unigram == pytest.approx(-np.mean([np.log(unigram(w)) for w in held_out]))
    candidates = {weight: bigram_loss(weight) for weight in np.arange(0.01, 1, 0.01)}
    assert losses.bigram == pytest.approx(min(candidates.values()))
    assert losses.bigram == pytest.approx(candidates[losses.weight])
    assert sum(unigram(w) for w in range(vocab)) == pytest.approx(1)
