"""What the model must beat: the losses of a unigram and of an interpolated bigram model.

Both see the tokens that the next-word model sees, in the same vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cattn._types import Array

# Interpolation weights that are tried; the loss is convex in the weight, and flat at its minimum.
WEIGHTS = np.arange(0.01, 1.0, 0.01)


class NgramLosses(NamedTuple):
    """Mean losses in nats per held-out token."""

    unigram: float
    bigram: float
    weight: float  #: of the bigram, tuned on the held-out part itself


def ngram_losses(train: Array, held_out: Array, vocab_size: int) -> NgramLosses:
    """Return the losses of both models on a held-out text.

    Unigram: ``p(w) = (count(w) + 1) / (n + V)``. Bigram: ``λ count(u, w) / count(u) + (1 - λ)
    p(w)``, the unigram alone where u was never met. The best λ is chosen on the held-out text,
    which favours the bigram.

    Parameters
    ----------
    train, held_out : ndarrays of int, shapes (n,) and (m,)
        The held-out text follows the training text; its first token is scored after the last one.
    vocab_size : int

    References
    ----------
    Jelinek and Mercer, "Interpolated estimation of Markov source parameters from sparse data"
    (1980).

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm import ngram_losses
    >>> losses = ngram_losses(np.array([0, 1] * 50), np.array([0, 1] * 5), 2)
    >>> round(losses.unigram, 2), losses.bigram < 0.01
    (0.69, True)
    """
    counts = np.bincount(train, minlength=vocab_size)
    unigram = (counts + 1) / (len(train) + vocab_size)

    # A pair (u, w) as one number, so that counting is sorting and looking up is bisection.
    pairs, pair_counts = np.unique(_pairs(train, vocab_size), return_counts=True)
    contexts = np.concatenate((train[-1:], held_out[:-1])).astype(np.int64)
    wanted = contexts * vocab_size + held_out
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    joint = np.where(pairs[place] == wanted, pair_counts[place], 0)
    followed = np.bincount(train[:-1], minlength=vocab_size)[contexts]
    bigram = joint / np.maximum(followed, 1)

    base = unigram[held_out]
    known = followed > 0
    losses = [
        -np.log(np.where(known, weight * bigram + (1 - weight) * base, base)).mean()
        for weight in WEIGHTS
    ]
    best = int(np.argmin(losses))
    return NgramLosses(float(-np.log(base).mean()), float(losses[best]), float(WEIGHTS[best]))


def _pairs(tokens: Array, vocab_size: int) -> Array:
    return tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
