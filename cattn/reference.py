r"""The functions of `cattn` in plain NumPy at float64: the specification, written to be read.

Everything is computed in the open, scores and all, so memory is O(Lq·Lk) and nothing here is fast.
The options act in one fixed order, each a line of `_scores`, `_seen` or `_pairs`::

    s = scale · (q · k)  →  softcap  →  + bias  →  + ALiBi  →  mask  →  softmax, sinks in the
    denominator  →  dropout  →  · v

Shapes, with leading axes that broadcast as in `numpy.matmul`: q ``(..., Hq, Lq, D)``,
k ``(..., Hkv, Lk, D)``, v ``(..., Hkv, Lk, Dv)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cattn._types import Array, AttentionGrads, AttentionResult

__all__ = [
    "attention",
    "attention_backward",
    "attention_jvp",
    "attention_varlen",
    "attention_varlen_backward",
    "dropout_mask",
    "merge_attention",
    "rope",
    "rope_backward",
]

Window = tuple[int | None, int | None]


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: bool = False,
    causal_offset: ArrayLike | None = None,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    precision: str = "highest",
    layout: str = "bhld",
    return_lse: bool = False,
    return_weights: bool = False,
    _dtype: DTypeLike = np.float64,
    _batch: int = 0,
) -> Any:
    r"""Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    ``out_i = sum_j P_ij v_j`` with ``P_ij = exp(s_ij - lse_i)``, ``lse_i = log sum_j exp(s_ij)``
    and ``s_ij = scale q_i · k_j + bias_ij``, the sums over the keys that query ``i`` may attend. A
    query that may attend none gets ``out_i = 0`` and ``lse_i = -inf``. The other options:

    - ``softcap`` c: ``c tanh(s / c)`` before the bias, so scores stay within ±c.
    - ``causal_offset``: query i stands at key position ``i + causal_offset``. Default: the number
      of keys less the number of queries, so the last query stands at the last key.
    - ``causal``: keys after the query's position are not seen.
    - ``window`` (left, right): only keys from left before the position to right after it are seen,
      both included; None or -1 is no limit.
    - ``alibi_slopes`` ``(Hq,)`` or ``(..., Hq)``: slope times the distance from the position is
      subtracted from the score (Press et al. 2022).
    - ``kv_lengths``, one per batch entry: the keys at and past it do not exist.
    - ``sinks`` ``(Hq,)``: one more score in the denominator, with nothing to add to the output.
    - ``dropout``, ``seed``: weights are multiplied by `dropout_mask` and divided by
      ``1 - dropout``. ``lse`` and the returned weights are those before it.
    - ``precision``: what rounding is permitted in products of float32. Here nothing is rounded:
      the word is checked and changes nothing.

    With scores 0 and ln 3 the second key weighs three times as much as the first:

    >>> import numpy as np
    >>> q, k, v = np.ones((1, 1)), np.log([[1.0], [3.0]]), np.array([[0.0], [8.0]])
    >>> result = attention(q, k, v, return_lse=True, return_weights=True)
    >>> result.weights
    array([[0.25, 0.75]])
    >>> result.out, np.exp(result.lse)
    (array([[6.]]), array([4.]))

    A sink of ln 4 takes half of the weight, and a key that does not exist takes none:

    >>> attention(q, k, v, sinks=np.log([4.0]))
    array([[3.]])
    >>> attention(q, k, v, kv_lengths=1)
    array([[0.]])
    """
    x = _inputs(q, k, v, layout, _dtype)
    with np.errstate(all="ignore"):  # what is masked may hold anything
        pairs = _pairs(
            x, mask=mask, bias=bias, causal=causal, causal_offset=causal_offset, window=window,
            scale=scale, softcap=softcap, alibi_slopes=alibi_slopes, kv_lengths=kv_lengths,
            dropout=dropout, seed=seed, precision=precision, batch=_batch,
        )  # fmt: skip
        lse = _log_sum_exp(_with_sinks(pairs.s, sinks))
        weights = _weights(pairs.s, lse)
        out = _spoiled(_product(pairs.dropped(weights), x.v, pairs.kept), lse)
    if x.one_head:
        out, lse, weights = out[0], lse[0], weights[0]
    out = _swap(out, layout)
    if not (return_lse or return_weights):
        return out
    return AttentionResult(out, lse if return_lse else None, weights if return_weights else None)


def attention_backward(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    *,
    dlse: ArrayLike | None = None,
    grads: Sequence[str] = ("q", "k", "v"),
    bias: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: ArrayLike | None = None,
    layout: str = "bhld",
    _dtype: DTypeLike = np.float64,
    _batch: int = 0,
    **options: Any,
) -> AttentionGrads:
    r"""Gradients of a scalar through `attention`, whose options it takes (Dao et al. 2022, B.4).

    With ``dO`` the gradient of the output, ``R`` the dropout mask divided by ``1 - dropout`` and
    ``c'`` the derivative of the softcap (both 1 without these options)::

        dV = (P ∘ R)ᵀ dO    dP = R ∘ dO Vᵀ    dS = P ∘ (dP - rowsum(dO ∘ O) + dlse)
        dQ = scale (c' ∘ dS) K    dK = scale (c' ∘ dS)ᵀ Q    dbias = dS
        dsinks = rowwise exp(sink - lse) (dlse - rowsum(dO ∘ O))

    each summed over the axes along which its input was broadcast, query heads of one key head
    included.

    The weights sum to one, so moving all values by the same vector moves the output by it:

    >>> import numpy as np
    >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 5, 3))
    >>> out, lse, _ = attention(q, k, v, return_lse=True)
    >>> dq, dk, dv, *_ = attention_backward(dout, q, k, v, out, lse)
    >>> bool(np.allclose(dv.sum(axis=0), dout.sum(axis=0)))
    True

    and all keys by the same vector shifts the scores of a row alike, which changes nothing:

    >>> bool(np.allclose(dk.sum(axis=0), 0))
    True
    """
    unknown = set(grads) - {"q", "k", "v", "bias", "sinks"}
    if unknown:
        raise ValueError(f"grads: unknown {sorted(unknown)}")
    if "bias" in grads and bias is None:
        raise ValueError("grads: contains 'bias', but there is no bias")
    if "sinks" in grads and sinks is None:
        raise ValueError("grads: contains 'sinks', but there are no sinks")
    x = _inputs(q, k, v, layout, _dtype)
    dout, out = (_one_head_axis(_swap(np.asarray(a, _dtype), layout)) for a in (dout, out))
    lse = np.asarray(lse, _dtype).reshape(dout.shape[:-1])
    dlse = np.zeros_like(lse) if dlse is None else np.asarray(dlse, _dtype).reshape(lse.shape)

    with np.errstate(all="ignore"):
        pairs = _pairs(x, bias=bias, scale=scale, softcap=softcap, batch=_batch, **options)
        seen, kept = pairs.seen, pairs.kept
        p = _weights(pairs.s, lse)
        dp = pairs.dropped(dout @ _transposed(x.v))
        delta = ((dout * out).sum(axis=-1) - dlse)[..., None]
        ds = np.where(seen, p * (dp - delta), 0)
        dscores = np.where(seen, _softcap_slope(x, scale, softcap) * ds, 0)
        factor = _scale(x, scale)
        dq = factor * _product(dscores, x.k, seen)
        dk = factor * _product(_transposed(dscores), x.q, _transposed(seen))
        dv = _product(_transposed(pairs.dropped(p)), dout, _transposed(kept))
        dsinks = None
        if sinks is not None and "sinks" in grads:
            sink = _sink_column(sinks, p)
            from_row = np.where(np.isneginf(sink), 0, _weights(sink, lse) * -delta)
            dsinks = _sum_to(from_row, (p.shape[-3], 1, 1))[:, 0, 0]

    def own(gradient: Array, of: ArrayLike) -> Array:
        """`gradient` in the shape and layout of the input that it belongs to."""
        shape = _swap(np.asarray(of), layout).shape
        return _swap(_sum_to(_sum_group(gradient, shape), shape), layout)

    return AttentionGrads(
        own(dq, q) if "q" in grads else None,
        own(dk, k) if "k" in grads else None,
        own(dv, v) if "v" in grads else None,
        _sum_to(ds, np.shape(bias)) if "bias" in grads else None,  # type: ignore[arg-type]
        dsinks,
    )


def attention_jvp(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    dq: ArrayLike,
    dk: ArrayLike,
    dv: ArrayLike,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: ArrayLike | None = None,
    layout: str = "bhld",
    _dtype: DTypeLike = np.float64,
    **options: Any,
) -> tuple[Array, Array]:
    r"""Forward mode: the output of `attention`, and how it moves when q, k, v move by dq, dk, dv.

    With ``R`` and ``c'`` as in `attention_backward`::

        dS = scale c' ∘ (dQ Kᵀ + Q dKᵀ)    dP = P ∘ (dS - rowsum(P ∘ dS))
        dO = (R ∘ dP) V + (R ∘ P) dV

    The output is linear in v alone:

    >>> import numpy as np
    >>> q, k, v, dv = np.random.default_rng(0).standard_normal((4, 5, 3))
    >>> out, dout = attention_jvp(q, k, v, 0 * q, 0 * k, dv)
    >>> bool(np.allclose(out + dout, attention(q, k, v + dv)))
    True
    """
    x = _inputs(q, k, v, layout, _dtype)
    dx = _inputs(dq, dk, dv, layout, _dtype)
    with np.errstate(all="ignore"):
        pairs = _pairs(x, scale=scale, softcap=softcap, **options)
        lse = _log_sum_exp(_with_sinks(pairs.s, sinks))
        p = _weights(pairs.s, lse)
        dscores = _scale(x, scale) * (dx.q @ _transposed(x.k) + x.q @ _transposed(dx.k))
        ds = np.where(pairs.seen, _softcap_slope(x, scale, softcap) * dscores, 0)
        dp = p * (ds - (p * ds).sum(axis=-1, keepdims=True))
        out = _product(pairs.dropped(p), x.v, pairs.kept)
        dout = _product(pairs.dropped(dp), x.v, pairs.kept)
        dout = dout + _product(pairs.dropped(p), dx.v, pairs.kept)
        out, dout = _spoiled(out, lse), _spoiled(dout, lse)
    if x.one_head:
        out, dout = out[0], dout[0]
    return _swap(out, layout), _swap(dout, layout)


def _spoiled(out: Array, lse: Array) -> Array:
    """Rows whose denominator is NaN are NaN, even if dropout leaves nothing of them."""
    return np.where(np.isnan(lse)[..., None], np.nan, out)


def attention_varlen(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike,
    *,
    return_lse: bool = False,
    return_weights: bool = False,
    _dtype: DTypeLike = np.float64,
    **options: Any,
) -> Any:
    r"""`attention` over sequences that lie end to end, each on its own.

    q ``(total_q, Hq, D)``, k ``(total_k, Hkv, D)``, v ``(total_k, Hkv, Dv)`` give out
    ``(total_q, Hq, Dv)``, lse ``(Hq, total_q)`` and weights ``(Hq, total_q, total_k)``, 0 between
    one sequence and another. Sequence n is the rows ``cu_seqlens[n]`` up to ``cu_seqlens[n + 1]``.

    The options are those of `attention` but for ``layout`` and ``kv_lengths``. ``mask`` and
    ``bias`` broadcast to the shape of the weights; ``causal_offset`` may be one per sequence and
    ``alibi_slopes`` ``(sequences, Hq)``; everything else, dropout included, takes the sequences for
    batch entries.

    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 5, 1, 4))
    >>> out = attention_varlen(q, k, v, [0, 2, 5], [0, 2, 5], causal=True)
    >>> bool(np.allclose(out[2:], attention(q[2:], k[2:], v[2:], causal=True, layout="blhd")))
    True
    """
    q, k, v = (np.asarray(a, _dtype) for a in (q, k, v))
    heads = q.shape[1]
    out = np.zeros((len(q), heads, v.shape[2]), _dtype)
    lse = np.full((heads, len(q)), -np.inf, _dtype)
    weights = np.zeros((heads, len(q), len(k)), _dtype) if return_weights else None
    for rows, keys, own in _sequences(q, k, cu_seqlens_q, cu_seqlens_k, options):
        one = attention(
            q[rows], k[keys], v[keys], **own, layout="blhd", _dtype=_dtype,
            return_lse=True, return_weights=return_weights,
        )  # fmt: skip
        out[rows], lse[:, rows] = one.out, one.lse
        if weights is not None:
            weights[:, rows, keys] = one.weights
    if not (return_lse or return_weights):
        return out
    return AttentionResult(out, lse if return_lse else None, weights)


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
    _dtype: DTypeLike = np.float64,
    **options: Any,
) -> AttentionGrads:
    r"""Gradients of a scalar through `attention_varlen`, whose options it takes.

    They are those of the sequences end to end. The gradient of the bias is zero between one
    sequence and another; that of the sinks is summed over the sequences.

    >>> import numpy as np
    >>> q, k, v, dout = np.random.default_rng(0).standard_normal((4, 5, 1, 3))
    >>> out, lse, _ = attention_varlen(q, k, v, [0, 2, 5], [0, 2, 5], return_lse=True)
    >>> dv = attention_varlen_backward(dout, q, k, v, out, lse, [0, 2, 5], [0, 2, 5]).dv
    >>> bool(np.allclose(dv[2:].sum(axis=0), dout[2:].sum(axis=0)))
    True
    """
    dout, q, k, v, out, lse = (np.asarray(a, _dtype) for a in (dout, q, k, v, out, lse))
    dlse = np.zeros_like(lse) if dlse is None else np.asarray(dlse, _dtype)
    bias, sinks = options.get("bias"), options.get("sinks")
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    dbias = np.zeros((q.shape[1], len(q), len(k)), _dtype) if "bias" in grads else None
    dsinks = np.zeros(np.shape(sinks), _dtype) if "sinks" in grads else None  # type: ignore[arg-type]
    for rows, keys, own in _sequences(q, k, cu_seqlens_q, cu_seqlens_k, options):
        one = attention_backward(
            dout[rows], q[rows], k[keys], v[keys], out[rows], lse[:, rows], dlse=dlse[:, rows],
            grads=grads, **own, layout="blhd", _dtype=_dtype,
        )  # fmt: skip
        for whole, part, at in ((dq, one.dq, rows), (dk, one.dk, keys), (dv, one.dv, keys)):
            if part is not None:
                whole[at] = part
        if dbias is not None:
            dbias[:, rows, keys] = one.dbias
        if dsinks is not None:
            dsinks += one.dsinks
    return AttentionGrads(
        dq if "q" in grads else None,
        dk if "k" in grads else None,
        dv if "v" in grads else None,
        None if dbias is None else _sum_to(dbias, np.shape(bias)),  # type: ignore[arg-type]
        dsinks,
    )


def dropout_mask(shape: Sequence[int], dropout: float, seed: int) -> Array:
    r"""The weights that dropout keeps: True with probability ``1 - dropout``.

    ``shape`` is that of the weights, ``(..., Hq, Lq, Lk)``. Whether (b, h, i, j) is kept depends on
    these numbers and the seed alone, b counting the batch entries in C order: it is if a random
    word of 32 bits is at least ``dropout · 2³²``. The words are Philox's, with the seed for its key
    and the place for its counter, which gives four: for the keys j, j + 16, j + 32 and j + 48.

    >>> mask = dropout_mask((2, 4, 8, 100), 0.25, seed=1)
    >>> mask.shape, round(float(mask.mean()), 2)
    ((2, 4, 8, 100), 0.75)
    >>> bool((mask[..., :50] == dropout_mask((2, 4, 8, 50), 0.25, seed=1)).all())
    True
    """
    return _dropout_mask(shape, dropout, seed)


def rope(
    x: ArrayLike,
    positions: ArrayLike | None,
    *,
    base: float = 10000.0,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    layout: str = "bhld",
) -> Array:
    r"""Rotary position embedding (Su et al. 2021, section 3.2) of x ``(..., H, L, D)``.

    The first ``rotary_dim`` features (default: all of them) form pairs, and pair t of the row at
    position p turns by the angle ``p · base^(-2t / rotary_dim)``. Feature t pairs with
    ``t + rotary_dim / 2``, or 2t with 2t + 1 if ``interleaved``. The other features stay.

    ``positions`` is ``(L,)`` or ``(..., L)`` without the head axis. Tables ``cos`` and ``sin`` of
    shape ``(positions, rotary_dim / 2)`` are looked up in place of the angles; without positions
    they are ``(..., L, rotary_dim / 2)`` and used as they are.

    A query at 5 meets a key at 3 just as one at 2 meets one at 0:

    >>> import numpy as np
    >>> q, k = np.random.default_rng(0).standard_normal((2, 1, 8))
    >>> bool(np.allclose(rope(q, [5]) @ rope(k, [3]).T, rope(q, [2]) @ rope(k, [0]).T))
    True
    """
    return _rotate(x, positions, 1, base, cos, sin, rotary_dim, interleaved, layout)


def rope_backward(
    x: ArrayLike,
    positions: ArrayLike | None,
    *,
    base: float = 10000.0,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    layout: str = "bhld",
) -> Array:
    r"""The gradient of `rope`'s input from x, that of its output: the turn by the opposite angle.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).standard_normal((3, 8))
    >>> bool(np.allclose(rope_backward(rope(x, [0, 1, 2]), [0, 1, 2]), x))
    True
    """
    return _rotate(x, positions, -1, base, cos, sin, rotary_dim, interleaved, layout)


def merge_attention(
    out_a: ArrayLike, lse_a: ArrayLike, out_b: ArrayLike, lse_b: ArrayLike
) -> tuple[Array, Array]:
    r"""Join attention over two disjoint sets of keys (Milakov and Gimelshein 2018, section 3.1).

    ``lse = log(exp(lse_a) + exp(lse_b))`` and
    ``out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b``.

    >>> import numpy as np
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 6, 4))
    >>> a = attention(q, k[:2], v[:2], return_lse=True)
    >>> b = attention(q, k[2:], v[2:], return_lse=True)
    >>> out, lse = merge_attention(a.out, a.lse, b.out, b.lse)
    >>> bool(np.allclose(out, attention(q, k, v)))
    True
    """
    a, b = (np.asarray(out, np.float64) for out in (out_a, out_b))
    parts = np.stack([np.asarray(lse, np.float64) for lse in (lse_a, lse_b)], axis=-1)
    lse = _log_sum_exp(parts)
    with np.errstate(invalid="ignore"):
        weights = _weights(parts, lse)
    return weights[..., :1] * a + weights[..., 1:] * b, lse


# ---- the steps ----


class _Inputs(NamedTuple):
    """q, k, v in layout (..., Hq, L, D), with as many key and value heads as query heads."""

    q: Array
    k: Array
    v: Array
    one_head: bool


class _Pairs(NamedTuple):
    """What becomes of each pair of a query and a key, ``(..., Hq, Lq, Lk)``."""

    s: Array  # the score, -inf where masked
    seen: Array
    kept: Array  # seen, and kept by dropout
    dropout: float

    def dropped(self, p: Array) -> Array:
        """Dropout of p: what is dropped is 0 whatever it was, and the rest makes up for it."""
        return np.where(self.kept, p / (1 - self.dropout), 0)


def _inputs(q: ArrayLike, k: ArrayLike, v: ArrayLike, layout: str, dtype: DTypeLike) -> _Inputs:
    arrays = [_swap(np.asarray(a, dtype), layout) for a in (q, k, v)]
    one_head = all(a.ndim == 2 for a in arrays)
    query, key, value = map(_one_head_axis, arrays)
    # Query head h reads key head h // (Hq // Hkv).
    group = query.shape[-3] // max(key.shape[-3], 1)
    return _Inputs(query, key.repeat(group, axis=-3), value.repeat(group, axis=-3), one_head)


def _pairs(
    x: _Inputs,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: bool = False,
    causal_offset: ArrayLike | None = None,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    precision: str = "highest",
    batch: int = 0,
) -> _Pairs:
    _check_options(causal, causal_offset, window, alibi_slopes, precision)
    seen = _seen(x, mask, bias, causal, causal_offset, window, kv_lengths)
    s = _scores(x, bias, scale, softcap, alibi_slopes, causal_offset, kv_lengths)
    s = np.where(seen, s, -np.inf)
    kept = seen & _dropout_mask(seen.shape, dropout, seed, batch) if dropout else seen
    return _Pairs(s, seen, kept, dropout)


def _check_options(
    causal: bool,
    causal_offset: ArrayLike | None,
    window: Window | None,
    alibi_slopes: ArrayLike | None,
    precision: str,
) -> None:
    if precision not in ("highest", "high", "medium"):
        raise ValueError(f"precision: is {precision!r}, expected 'highest', 'high' or 'medium'")
    bounded = any(side not in (None, -1) for side in window or ())
    if causal_offset is not None and not (causal or bounded or alibi_slopes is not None):
        raise ValueError("causal_offset: has a meaning only with causal, window or alibi_slopes")


def _scale(x: _Inputs, scale: float | None) -> Any:
    return 1 / np.sqrt(x.q.dtype.type(x.q.shape[-1])) if scale is None else scale


def _products(x: _Inputs, scale: float | None) -> Array:
    products: Array = _scale(x, scale) * (x.q @ _transposed(x.k))
    return products


def _scores(
    x: _Inputs,
    bias: ArrayLike | None,
    scale: float | None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    causal_offset: ArrayLike | None = None,
    kv_lengths: ArrayLike | None = None,
) -> Array:
    """Step by step, before anything is masked."""
    s = _products(x, scale)
    if softcap is not None:
        s = softcap * np.tanh(s / softcap)
    if bias is not None:
        s = s + np.asarray(bias, s.dtype)
    if alibi_slopes is not None:
        position, j = _positions(x, causal_offset, kv_lengths)
        s = s - np.asarray(alibi_slopes, s.dtype)[..., None, None] * abs(position - j)
    return s


def _softcap_slope(x: _Inputs, scale: float | None, softcap: float | None) -> Array | int:
    """The derivative of ``c tanh(s / c)`` by s."""
    return 1 if softcap is None else np.cosh(_products(x, scale) / softcap) ** -2


def _positions(
    x: _Inputs, causal_offset: ArrayLike | None, kv_lengths: ArrayLike | None
) -> tuple[Array, Array]:
    """Where each query stands among the keys, and the keys' own numbers."""
    queries, keys = x.q.shape[-2], x.k.shape[-2]
    if causal_offset is None:
        causal_offset = (keys if kv_lengths is None else _integers(kv_lengths)) - queries
    position: Array = np.arange(queries)[:, None] + _per_entry(causal_offset)
    return position, np.arange(keys)


def _per_entry(a: ArrayLike) -> Array:
    """One number for each batch entry, or one for all, beside ``(..., Hq, Lq, Lk)``."""
    return _integers(a)[..., None, None, None]


def _integers(a: ArrayLike) -> Array:
    """Integers of any width, of which differences do not wrap around."""
    return np.asarray(a).astype(np.int64, casting="same_kind")


def _seen(
    x: _Inputs,
    mask: ArrayLike | None,
    bias: ArrayLike | None,
    causal: bool,
    causal_offset: ArrayLike | None,
    window: Window | None = None,
    kv_lengths: ArrayLike | None = None,
) -> Array:
    """Which query may attend which key: the intersection of all that masks."""
    position, j = _positions(x, causal_offset, kv_lengths)
    left, right = window or (None, None)
    batch = np.broadcast_shapes(x.q.shape[:-3], x.k.shape[:-3], x.v.shape[:-3])
    seen: Array = np.ones((*batch, *x.q.shape[-3:-1], x.k.shape[-2]), bool)
    if mask is not None:
        seen = seen & np.asarray(mask)
    if bias is not None:
        seen = seen & ~np.isneginf(np.asarray(bias, np.float64))
    if causal:
        seen = seen & (j <= position)
    if left is not None and left != -1:
        seen = seen & (j >= position - left)
    if right is not None and right != -1:
        seen = seen & (j <= position + right)
    if kv_lengths is not None:
        seen = seen & (j < _per_entry(kv_lengths))
    return seen


def _sink_column(sinks: ArrayLike | None, s: Array) -> Array:
    """The sinks as one more key of the scores s: ``(..., Hq, Lq, 1)``."""
    return np.broadcast_to(np.asarray(sinks, s.dtype)[:, None, None], (*s.shape[:-1], 1))


def _with_sinks(s: Array, sinks: ArrayLike | None) -> Array:
    return s if sinks is None else np.concatenate([s, _sink_column(sinks, s)], axis=-1)


def _log_sum_exp(s: Array) -> Array:
    """Log of the sum of exp(s) over the last axis: -inf where there is nothing to sum."""
    m = s.max(axis=-1, initial=-np.inf, keepdims=True)
    m = np.where(np.isneginf(m), 0, m)  # -inf - -inf would be NaN
    with np.errstate(divide="ignore"):
        lse: Array = np.log(np.exp(s - m).sum(axis=-1)) + m[..., 0]
    return lse


def _weights(s: Array, lse: Array) -> Array:
    """exp(s - lse), and 0 where s is -inf: in rows whose lse is -inf or NaN too."""
    return np.where(np.isneginf(s), 0, np.exp(s - lse[..., None]))


def _product(a: Array, b: Array, seen: Array) -> Array:
    """Sum over j of ``a_ij b_j`` where seen: a NaN or inf in ``b_j`` stays out where it is not."""
    if np.isfinite(b).all():
        product: Array = a @ b
        return product
    terms = np.where(seen[..., None], a[..., None] * b[..., None, :, :], 0)
    total: Array = terms.sum(axis=-2)
    return total


def _dropout_mask(
    shape: Sequence[int], dropout: float, seed: int | None, first_batch: int = 0
) -> Array:
    if seed is None:
        raise ValueError("seed: is None, expected an integer with dropout")
    *batch, heads, queries, keys = (1, *shape) if len(shape) == 2 else shape
    b = first_batch + np.arange(np.prod(batch, dtype=int))[:, None, None, None]
    h, i, j = np.ogrid[:heads, :queries, :keys]
    words = _philox((j // 64 * 16 + j % 16, i, h, b), (seed & _WORD, seed >> 32))
    word = np.choose(j // 16 % 4, words)
    return (word >= int(dropout * 2**32)).reshape(shape)


_WORD = 0xFFFFFFFF


def _philox(counter: Sequence[ArrayLike], key: tuple[int, int]) -> list[Array]:
    """Philox4x32-10 (Salmon et al. 2011, section 4.3): four random words for each counter."""
    a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
    for step in range(10):
        k0, k1 = (key[0] + step * 0x9E3779B9) & _WORD, (key[1] + step * 0xBB67AE85) & _WORD
        left, right = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
        a, b = (right >> np.uint64(32)) ^ b ^ np.uint64(k0), right & np.uint64(_WORD)
        c, d = (left >> np.uint64(32)) ^ d ^ np.uint64(k1), left & np.uint64(_WORD)
    return [*np.broadcast_arrays(a, b, c, d)]


def _sequences(
    q: Array, k: Array, cu_seqlens_q: ArrayLike, cu_seqlens_k: ArrayLike, options: dict[str, Any]
) -> Iterator[tuple[slice, slice, dict[str, Any]]]:
    """Each sequence's queries, its keys, and the options as they apply to it."""
    starts_q, starts_k = np.asarray(cu_seqlens_q), np.asarray(cu_seqlens_k)
    sequences = len(starts_q) - 1
    pairs, slopes = (q.shape[1], len(q), len(k)), (sequences, q.shape[1])
    for n in range(sequences):
        rows, keys = slice(*starts_q[n : n + 2]), slice(*starts_k[n : n + 2])
        own = {**options, "_batch": n}
        for name, shape, at in (
            ("mask", pairs, (..., rows, keys)),
            ("bias", pairs, (..., rows, keys)),
            ("causal_offset", (sequences,), n),
            ("alibi_slopes", slopes, n),
        ):
            if own.get(name) is not None:
                own[name] = np.broadcast_to(own[name], shape)[at]
        yield rows, keys, own


def _rotate(
    x: ArrayLike,
    positions: ArrayLike | None,
    direction: int,
    base: float,
    cos: ArrayLike | None,
    sin: ArrayLike | None,
    rotary_dim: int | None,
    interleaved: bool,
    layout: str,
) -> Array:
    x = np.asarray(x, np.float64)
    y = _one_head_axis(_swap(x, layout)).copy()
    features = y.shape[-1] if rotary_dim is None else rotary_dim
    half = features // 2
    t = np.arange(half)
    first, second = (2 * t, 2 * t + 1) if interleaved else (t, t + half)

    if cos is None or sin is None:
        frequencies = float(base) ** (-2 * t / features)
        angles = np.atleast_1d(np.asarray(positions))[..., None] * frequencies
        cos, sin = np.cos(angles), np.sin(angles)
    elif positions is not None:
        rows = np.atleast_1d(np.asarray(positions)).astype(int)
        cos, sin = (np.asarray(table)[rows] for table in (cos, sin))
    # The same for all heads: (..., 1, L, half).
    c, s = (np.asarray(a, np.float64)[..., None, :, :] for a in (cos, sin))
    s = direction * s

    y1, y2 = y[..., first], y[..., second]
    y[..., first], y[..., second] = y1 * c - y2 * s, y1 * s + y2 * c
    return _swap(y.reshape(_swap(x, layout).shape), layout)


# ---- shapes ----


def _transposed(a: Array) -> Array:
    transposed: Array = a.swapaxes(-1, -2)
    return transposed


def _one_head_axis(a: Array) -> Array:
    return a[None] if a.ndim == 2 else a


def _swap(a: Array, layout: str) -> Array:
    """From the layout to "bhld", or back: the same exchange of two axes."""
    if layout not in ("bhld", "blhd"):
        raise ValueError(f"layout: is {layout!r}, expected 'bhld' or 'blhd'")
    return a.swapaxes(-2, -3) if layout == "blhd" and a.ndim >= 3 else a


def _sum_group(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum the query heads that share the key head of an input of this shape."""
    heads = shape[-3] if len(shape) >= 3 else 1
    group = gradient.shape[-3] // max(heads, 1)
    grouped = gradient.reshape(*gradient.shape[:-3], heads, group, *gradient.shape[-2:])
    summed: Array = grouped.sum(axis=-3)
    return summed


def _sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """Sum over the axes along which an array of this shape was broadcast."""
    extra = gradient.ndim - len(shape)
    stretched = (i + extra for i, n in enumerate(shape) if n == 1)
    summed: Array = gradient.sum(axis=(*range(extra), *stretched), keepdims=True)
    return summed.reshape(shape)
