"""The options that all attention functions share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

from numpy.typing import ArrayLike

Layout = Literal["bhld", "blhd"]
Precision = Literal["highest", "high", "medium"]
Window = Sequence[int | None]


class Options(TypedDict, total=False):
    """Keyword arguments as `attention` documents them."""

    mask: ArrayLike | None
    bias: ArrayLike | None
    causal: bool
    causal_offset: ArrayLike | None
    window: Window | None
    scale: float | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    kv_lengths: ArrayLike | None
    dropout: float
    seed: int | None
    precision: Precision
    layout: Layout
    num_threads: int | None


#: What `attention_backward` can differentiate by.
GRADIENTS = ("q", "k", "v", "bias", "sinks")


def wanted_gradients(grads: Sequence[str]) -> set[str]:
    """Check the words of `grads`."""
    if not isinstance(grads, Iterable):
        raise TypeError(f"grads: is {grads!r}, expected words out of {list(GRADIENTS)}")
    words = [grads] if isinstance(grads, str) else list(grads)
    for word in words:
        if not isinstance(word, str) or word not in GRADIENTS:
            raise ValueError(f"grads: contains {word!r}, expected some of {list(GRADIENTS)}")
    return set(words)
