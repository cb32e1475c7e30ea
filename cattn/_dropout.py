"""Which weights dropout keeps."""

from __future__ import annotations

from collections.abc import Sequence

from cattn import _core
from cattn._options import as_integer
from cattn._types import Array


def dropout_mask(shape: Sequence[int], dropout: float, seed: int | None) -> Array:
    r"""The mask of kept weights that `attention` uses for this `dropout` and `seed`.

    A counter-based generator (Philox4x32-10) gives every (batch entry, head, query, key) its own
    random word, so the mask is the same whatever the threads, blocks or instruction set.

    Parameters
    ----------
    shape : sequence of int, (..., Hq, Lq, Lk)
        Of the attention weights. Of `attention_varlen`, sequence ``n`` is batch entry ``n``.
    dropout : float
        Probability with which a weight is dropped, ``0 <= dropout < 1``.
    seed : int
        ``0 <= seed < 2**64``.

    Returns
    -------
    ndarray of bool
        True where the weight is kept (and divided by ``1 - dropout``).

    Raises
    ------
    ValueError, TypeError
        A probability, seed or shape out of range.

    References
    ----------
    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).

    Examples
    --------
    >>> import cattn
    >>> mask = cattn.dropout_mask((4, 100, 100), 0.25, seed=1)
    >>> mask.dtype, bool(abs(mask.mean() - 0.75) < 0.01)
    (dtype('bool'), True)
    """
    sizes = [as_integer("shape", n) for n in shape]
    if any(not 0 <= n < 2**63 for n in sizes):
        raise ValueError(f"shape: is {tuple(sizes)}, expected sizes of 0 to 2**63 - 1")
    return _core.dropout_mask(sizes, dropout, seed)
