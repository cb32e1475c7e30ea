"""Attention over sequences of different lengths that are packed one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from cattn import _core
from cattn._options import show_options, wanted_gradients
from cattn._types import Array, AttentionGrads, AttentionResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cattn._options import Options


@show_options(without=["layout", "kv_lengths"])
def attention_varlen(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
    **options: Unpack[Options],
) -> Any:
    r"""Attention of each of several packed sequences to itself, without padding.

    The same as calling `attention` for every sequence, in one call that shares the threads out.

    Parameters
    ----------
    q : array_like, shape (total_q, Hq, D)
        Queries of all sequences, one sequence after the other.
    k, v : array_like, shapes (total_k, Hkv, D) and (total_k, Hkv, Dv)
        Keys and values likewise.
    cu_seqlens_q, cu_seqlens_k : array_like of int, shape (sequences + 1,)
        Where sequences start: sequence ``n`` is rows ``cu_seqlens[n]`` to ``cu_seqlens[n + 1]``.
        The first is 0, the last the number of rows; a sequence may be empty.
    return_lse, return_weights : bool
        Also return the log-sum-exp ``(Hq, total_q)`` or the probabilities
        ``(Hq, total_q, total_k)``, 0 outside of the sequences.
    out : ndarray, optional
        Where the result goes.
    **options
        As of `attention`, except `layout` and `kv_lengths`. Positions (`causal`, `window`,
        `alibi_slopes`, `dropout`) count within a sequence; `causal_offset` and `alibi_slopes` may
        have one entry per sequence. `mask` and `bias` broadcast to ``(Hq, total_q, total_k)``.

    Returns
    -------
    ndarray, shape (total_q, Hq, Dv), or AttentionResult(out, lse, weights)

    Raises
    ------
    ValueError, TypeError
        As `attention`; also ``cu_seqlens`` that do not start at 0, decrease or do not end at the
        number of rows.

    References
    ----------
    The packing of Dao et al., "FlashAttention" (2022), as its ``flash_attn_varlen_func`` has it.

    Examples
    --------
    >>> import numpy as np, cattn
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 5, 2, 4))
    >>> starts = [0, 2, 5]
    >>> out = cattn.attention_varlen(q, k, v, starts, starts, causal=True)
    >>> second = cattn.attention(q[2:], k[2:], v[2:], causal=True, layout="blhd")
    >>> np.allclose(out[2:], second)
    True
    """
    result, lse, weights = _core.attention(
        q, k, v, (cu_seqlens_q, cu_seqlens_k), options, return_lse, return_weights, out
    )
    if return_lse or return_weights:
        return AttentionResult(result, lse, weights)
    return result


@show_options(without=["layout", "kv_lengths"])
def attention_varlen_backward(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    dlse: ArrayLike | None = None,
    grads: Sequence[str] = ("q", "k", "v"),
    **options: Unpack[Options],
) -> AttentionGrads:
    r"""Gradients of a scalar through `attention_varlen`.

    Parameters
    ----------
    dout : array_like, shape (total_q, Hq, Dv)
        Gradient with respect to the output.
    q, k, v, cu_seqlens_q, cu_seqlens_k
        As given to `attention_varlen`.
    out, lse : array_like, shapes (total_q, Hq, Dv) and (Hq, total_q)
        What ``attention_varlen(..., return_lse=True)`` returned.
    dlse : array_like, shape (Hq, total_q), optional
        Gradient with respect to `lse`, where it was used.
    grads : sequence of {"q", "k", "v", "bias", "sinks"}
        Which gradients to compute; the others are None.
    **options
        As given to `attention_varlen`.

    Returns
    -------
    AttentionGrads(dq, dk, dv, dbias, dsinks)
        Each of its input's own shape and dtype; the gradient of a bias is 0 outside of the
        sequences.

    Raises
    ------
    ValueError, TypeError
        As `attention_backward` and `attention_varlen`.

    References
    ----------
    As `attention_backward`.

    Examples
    --------
    >>> import numpy as np, cattn
    >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 5, 2, 4))
    >>> starts = [0, 2, 5]
    >>> out, lse, _ = cattn.attention_varlen(q, k, v, starts, starts, return_lse=True)
    >>> grads = cattn.attention_varlen_backward(dout, q, k, v, out, lse, starts, starts)
    >>> grads.dk.shape
    (5, 2, 4)
    """
    gradients = _core.attention_backward(
        dout,
        q,
        k,
        v,
        out,
        lse,
        dlse,
        (cu_seqlens_q, cu_seqlens_k),
        wanted_gradients(grads),
        options,
    )
    return AttentionGrads(*map(gradients.get, ("q", "k", "v", "bias", "sinks")))
