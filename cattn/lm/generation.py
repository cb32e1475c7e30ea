"""Sampling: which word comes next, again and again."""

from __future__ import annotations

import numpy as np

from cattn._types import Array
from cattn.lm.errors import InputError
from cattn.lm.model import NextWordModel
from cattn.lm.tokenizer import WordTokenizer


def next_word_probabilities(
    logits: Array, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Array:
    """Return the probabilities to draw the next word from.

    Parameters
    ----------
    logits : ndarray, shape (V,)
    temperature : float
        The logits are divided by it; 0 puts everything on the likeliest word.
    top_k : int, optional
        Keep the `top_k` likeliest words.
    top_p : float, optional
        Keep the fewest likeliest words whose probabilities sum to at least `top_p`.

    Returns
    -------
    ndarray of float64, shape (V,)
        Sums to 1; 0 for what was cut off.

    Raises
    ------
    InputError
        A negative temperature, ``top_k < 1`` or `top_p` outside (0, 1].

    References
    ----------
    Fan et al., "Hierarchical Neural Story Generation" (2018), section 5.1 (top-k); Holtzman et
    al., "The Curious Case of Neural Text Degeneration" (2020), section 3.1 (top-p).

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm import next_word_probabilities
    >>> logits = np.log([0.5, 0.3, 0.2])
    >>> next_word_probabilities(logits, top_k=2).round(3)
    array([0.625, 0.375, 0.   ])
    >>> next_word_probabilities(logits, top_p=0.4)
    array([1., 0., 0.])
    """
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature: is {temperature}, expected 0 or a positive number")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k: is {top_k}, expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p: is {top_p}, expected more than 0 and at most 1")
    # Likeliest first; a stable sort breaks ties by id, so that the result is the same everywhere.
    order = np.argsort(-logits, kind="stable")
    ranked = logits[order].astype(np.float64)
    ranked -= ranked[0]
    if temperature == 0:
        p = np.zeros(len(ranked))
        p[0] = 1
    else:
        p = np.exp(ranked / temperature)
        if top_k is not None:
            p[top_k:] = 0
        p /= p.sum()
        if top_p is not None:
            p[1:][np.cumsum(p)[:-1] >= top_p] = 0
            p /= p.sum()
    probabilities = np.empty_like(p)
    probabilities[order] = p
    return probabilities


def generate(
    model: NextWordModel,
    tokenizer: WordTokenizer,
    prompt: str,
    *,
    words: int = 50,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """Continue a text.

    Parameters
    ----------
    model : NextWordModel
    tokenizer : WordTokenizer
    prompt : str
        May be empty; of a long one the model sees the end.
    words : int
        How many tokens to add. The unknown word is never drawn.
    temperature, top_k, top_p
        See `next_word_probabilities`.
    seed : int
        The same seed gives the same text.

    Returns
    -------
    str
        The prompt, as the tokenizer writes it, and its continuation.

    Raises
    ------
    InputError
        Options out of range.

    Examples
    --------
    >>> from cattn.lm import ModelConfig, NextWordModel, WordTokenizer, generate
    >>> tokenizer = WordTokenizer.from_text("a b c", min_count=1)
    >>> model = NextWordModel(ModelConfig(len(tokenizer), context=4, width=8))
    >>> len(generate(model, tokenizer, "a b", words=3).split())
    5
    """
    if words < 0:
        raise InputError(f"words: is {words}, expected at least 0")
    rng = np.random.default_rng(seed)
    ids = [int(i) for i in tokenizer.encode(prompt)]
    start = len(ids)
    if not ids:  # a text begins like a line
        ids = [int(tokenizer.encode("\n")[0])]
        start = 1
    context = model.config.context
    cache = model.new_cache()
    fresh = ids[-context:]  # what the cache has not seen
    for _ in range(words):
        if cache.length + len(fresh) > context:
            # Positions are used up: go on from the later half of what was seen.
            cache.clear()
            fresh = ids[-max(1, context // 2) :]
        logits = model.next_logits(np.array(fresh), cache)
        logits[0] = -np.inf
        p = next_word_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        # Inverse transform: the first word whose cumulative probability exceeds a uniform number.
        cumulative = np.cumsum(p)
        drawn = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        ids.append(drawn)
        fresh = [drawn]
    shown = ids if prompt else ids[start:]
    return tokenizer.decode(shown)
