"""Windows of tokens: batches to train on, and overlapping ones to measure the held-out loss.

A batch is a function of the seed and the step alone. So there is no hidden state: a run that goes
on from step n sees what an unbroken run would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from cattn._types import Array
from cattn.lm.errors import InputError

# What a random stream is for: the first number after the seed.
ORDER, DROPOUT = 0, 1


def stream(seed: int, purpose: int, *index: int) -> np.random.Generator:
    """Return the random stream of one purpose: `ORDER` and an epoch, `DROPOUT`, a step and a part.

    Examples
    --------
    >>> from cattn.lm.data import DROPOUT, stream
    >>> float(stream(0, DROPOUT, 5, 1).random()) == float(stream(0, DROPOUT, 5, 1).random())
    True
    """
    return np.random.default_rng((seed, purpose, *index))


class Batches:
    """Windows of ``context + 1`` tokens, all of a text once per epoch, in random order.

    Parameters
    ----------
    tokens : ndarray of int, shape (n,)
    context, batch : int
    seed : int

    Raises
    ------
    InputError
        A text shorter than one window.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm.data import Batches
    >>> batches = Batches(np.arange(100), context=9, batch=4, seed=0)
    >>> batches.at(0).shape, batches.windows
    ((4, 10), 10)
    """

    def __init__(self, tokens: Array, context: int, batch: int, seed: int) -> None:
        if len(tokens) < context + 1:
            raise InputError(
                f"the text has {len(tokens)} tokens to train on, too short for a context of "
                f"{context}: a longer text or a context of at most {len(tokens) - 1} is needed"
            )
        self.tokens, self.context, self.batch, self.seed = tokens, context, batch, seed
        #: Windows per epoch. One less than would fit, so that their start can be shifted at random.
        self.windows = max(1, (len(tokens) - context) // context)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> Array:
        """Return where the windows of an epoch start, in order: shape (windows,)."""
        rng = stream(self.seed, ORDER, epoch)
        slack = len(self.tokens) - 1 - self.windows * self.context
        shift = rng.integers(0, slack + 1)
        starts: Array = shift + self.context * rng.permutation(self.windows)
        return starts

    def at(self, step: int) -> Array:
        """Return the batch of a step: shape (batch, context + 1)."""
        places = [divmod(step * self.batch + i, self.windows) for i in range(self.batch)]
        starts = np.array([self._epoch(epoch)[i] for epoch, i in places])
        return self.tokens[starts[:, None] + np.arange(self.context + 1)]


def scored_windows(
    before: Array, tokens: Array, context: int, batch: int
) -> Iterator[tuple[Array, int]]:
    """Cover a held-out text by windows that overlap by half, so that every token has a context.

    Parameters
    ----------
    before : ndarray of int, shape (m,)
        What precedes the text: the end of the training part. At least one token.
    tokens : ndarray of int, shape (n,)
        Each is scored exactly once: with at least ``context // 2`` tokens before it, where there
        are so many.
    context, batch : int

    Yields
    ------
    (windows, scored) : ndarray of shape (at most batch, at most context + 1), int
        The last `scored` tokens of each window are the ones to score.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm.data import scored_windows
    >>> for windows, scored in scored_windows(np.arange(5), np.arange(5, 10), 4, 8):
    ...     print(windows.tolist(), scored)
    [[2, 3, 4, 5, 6], [4, 5, 6, 7, 8]] 2
    [[5, 6, 7, 8, 9]] 1
    """
    joined = np.concatenate((before[-context:], tokens))
    first = len(joined) - len(tokens)  # the first token to score
    stride = max(1, context // 2)
    ends = np.arange(first + stride, len(joined) + 1, stride)
    full = [end for end in ends if end - context - 1 >= 0]
    for i in range(0, len(full), batch):
        group = np.array(full[i : i + batch])
        yield joined[group[:, None] + np.arange(-context - 1, 0)], stride
    done = first + stride * len(ends)
    short = [(int(end), stride) for end in ends if end - context - 1 < 0]
    if done < len(joined):
        short.append((len(joined), len(joined) - done))
    for end, scored in short:
        yield joined[None, max(0, end - context - 1) : end], scored
