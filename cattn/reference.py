r"""The functions of `cattn` in plain NumPy at float64: the specification, written to be read.

Everything is computed in the open, scores and all, so memory is O(Lq·Lk) and nothing here is fast.
The options act in one fixed order, each a line of `_scores`, `_seen` or `attention`::

    s = scale · (q · k)  →  + bias  →  mask  →  softmax  →  · v

Shapes, with leading axes that broadcast as in `numpy.matmul`: q ``(..., Hq, Lq, D)``,
k ``(..., Hkv, Lk, D)``, v ``(..., Hkv, Lk, Dv)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cattn._types import Array, AttentionGrads, AttentionResult

__all__ = ["attention", "attention_backward", "merge_attention"]


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: bool = False,
    causal_offset: ArrayLike | None = None,
    scale: float | None = None,
    layout: str = "bhld",
    return_lse: bool = False,
    return_weights: bool = False,
    _dtype: DTypeLike = np.float64,
) -> Any:
    r"""Scaled dot-product attention (Vaswani et al. 2017, equation 1).

    ``out_i = sum_j P_ij v_j`` with ``P_ij = exp(s_ij - lse_i)``, ``lse_i = log sum_j exp(s_ij)``
    and ``s_ij = scale q_i · k_j + bias_ij``, the sums over the keys that query ``i`` may attend. A
    query that may attend none gets ``out_i = 0`` and ``lse_i = -inf``.

    With scores 0 and ln 3 the second key weighs three times as much as the first:

    >>> import numpy as np
    >>> q, k, v = np.ones((1, 1)), np.log([[1.0], [3.0]]), np.array([[0.0], [8.0]])
    >>> result = attention(q, k, v, return_lse=True, return_weights=True)
    >>> result.weights
    array([[0.25, 0.75]])
    >>> result.out, np.exp(result.lse)
    (array([[6.]]), array([4.]))
    """
    x = _inputs(q, k, v, layout, _dtype)
    seen = _seen(x, mask, bias, causal, causal_offset)
    with np.errstate(all="ignore"):  # what is masked may hold anything
        s = np.where(seen, _scores(x, bias, scale), -np.inf)
        lse = _log_sum_exp(s)
        weights = _weights(s, lse)
        out = _product(weights, x.v, seen)
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
    mask: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    causal: bool = False,
    causal_offset: ArrayLike | None = None,
    scale: float | None = None,
    layout: str = "bhld",
    _dtype: DTypeLike = np.float64,
) -> AttentionGrads:
    r"""Gradients of a scalar through `attention` (Dao et al. 2022, appendix B.4).

    With ``dO`` the gradient of the output::

        dV = Pᵀ dO        dP = dO Vᵀ        dS = P ∘ (dP - rowsum(dO ∘ O) + dlse)
        dQ = scale dS K   dK = scale dSᵀ Q   dbias = dS

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
    unknown = set(grads) - {"q", "k", "v", "bias"}
    if unknown:
        raise ValueError(f"grads: unknown {sorted(unknown)}")
    if "bias" in grads and bias is None:
        raise ValueError("grads: contains 'bias', but there is no bias")
    x = _inputs(q, k, v, layout, _dtype)
    dout, out = (_one_head_axis(_swap(np.asarray(a, _dtype), layout)) for a in (dout, out))
    lse = np.asarray(lse, _dtype).reshape(dout.shape[:-1])
    dlse = np.zeros_like(lse) if dlse is None else np.asarray(dlse, _dtype).reshape(lse.shape)

    seen = _seen(x, mask, bias, causal, causal_offset)
    with np.errstate(all="ignore"):
        s = np.where(seen, _scores(x, bias, scale), -np.inf)
        p = _weights(s, lse)
        dp = dout @ _transposed(x.v)
        delta = (dout * out).sum(axis=-1) - dlse
        ds = np.where(seen, p * (dp - delta[..., None]), 0)
        factor = _scale(x, scale)
        dq = factor * _product(ds, x.k, seen)
        dk = factor * _product(_transposed(ds), x.q, _transposed(seen))
        dv = _product(_transposed(p), dout, _transposed(seen))

    def own(gradient: Array, of: ArrayLike) -> Array:
        """`gradient` in the shape and layout of the input that it belongs to."""
        shape = _swap(np.asarray(of), layout).shape
        return _swap(_sum_to(_sum_group(gradient, shape), shape), layout)

    return AttentionGrads(
        own(dq, q) if "q" in grads else None,
        own(dk, k) if "k" in grads else None,
        own(dv, v) if "v" in grads else None,
        _sum_to(ds, np.shape(bias)) if "bias" in grads else None,  # type: ignore[arg-type]
        None,
    )


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


def _inputs(q: ArrayLike, k: ArrayLike, v: ArrayLike, layout: str, dtype: DTypeLike) -> _Inputs:
    arrays = [_swap(np.asarray(a, dtype), layout) for a in (q, k, v)]
    one_head = all(a.ndim == 2 for a in arrays)
    query, key, value = map(_one_head_axis, arrays)
    # Query head h reads key head h // (Hq // Hkv).
    group = query.shape[-3] // max(key.shape[-3], 1)
    return _Inputs(query, key.repeat(group, axis=-3), value.repeat(group, axis=-3), one_head)


def _scale(x: _Inputs, scale: float | None) -> Any:
    return 1 / np.sqrt(x.q.dtype.type(x.q.shape[-1])) if scale is None else scale


def _scores(x: _Inputs, bias: ArrayLike | None, scale: float | None) -> Array:
    """Step by step, before anything is masked."""
    s: Array = _scale(x, scale) * (x.q @ _transposed(x.k))
    if bias is not None:
        s = s + np.asarray(bias, s.dtype)
    return s


def _seen(
    x: _Inputs,
    mask: ArrayLike | None,
    bias: ArrayLike | None,
    causal: bool,
    causal_offset: ArrayLike | None,
) -> Array:
    """Which query may attend which key: the intersection of all that masks."""
    queries, keys = x.q.shape[-2], x.k.shape[-2]
    i, j = np.arange(queries)[:, None], np.arange(keys)
    batch = np.broadcast_shapes(x.q.shape[:-3], x.k.shape[:-3], x.v.shape[:-3])
    seen: Array = np.ones((*batch, x.q.shape[-3], queries, keys), bool)
    if mask is not None:
        seen = seen & np.asarray(mask)
    if bias is not None:
        seen = seen & ~np.isneginf(np.asarray(bias, np.float64))
    if causal:
        offset = keys - queries if causal_offset is None else causal_offset
        offset = np.asarray(offset)[..., None, None, None]  # one per batch entry
        seen = seen & (j <= i + offset)
    return seen


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
