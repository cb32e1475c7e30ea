r"""How far the computed attention may be from the exact one: a bound for every element.

Notation: ``u`` is the unit roundoff (2⁻²⁴ for float32, 2⁻⁵³ for float64) and
``γ(n) = n u / (1 - n u)``, which bounds the relative error that n roundings leave
(Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1). Sums may be taken in any order:
n terms pass through at most n - 1 additions. ``η`` is the smallest normal number: what underflows
is off by at most that. |X| is taken element by element. A product ``|a|·|b|`` below is a sum of
magnitudes, never the magnitude of a sum, so cancellation is paid for.

**Scores.** ``s = scale q·k + b`` passes through D roundings in the dot product and at most 8 more:
scale is rounded (3), multiplied, the bias is added, the change to base 2 multiplies by a rounded
log2 e (2), one to spare. With ``A = |scale| |q|·|k| + |b|``, ``M = max_j A_ij`` the error is
``γ(D + 8) A``. The exponent ``s - m``, with m some score of the row, is rounded once, and again
when m moves: at most ``4 u M`` together, as ``|s - m| <= 2 M``. So a weight ``e^(s - m)`` is
computed up to a factor within ``exp(±E)``,

    E = γ(D + 8) A + 4 u M + 4 u,

the last term being the exponential function itself (its polynomial and Horner's rule: 4 u).

**Output.** Numerator ``N = Σ w_j v_j`` and denominator ``S = Σ w_j`` take n_k roundings: Lk, and 5
per block of keys if m moves there (the factor's exponential and one product). Dividing both by the
exact denominator,

    τ = exp(E + γ(n_k)) - 1,    δN = Σ P_j τ_j |v_j| + η (Σ |v_j| + Lk),    δS = Σ P_j τ_j + η Lk,
    |out error| <= (1 + 3 u) (δN + |out| δS) / (1 - δS) + 3 u |out|,

from ``(N + δN) / (S + δS) - N / S`` and two roundings for the quotient.

**Log-sum-exp.** ``lse = m + log S``: ``-log(1 - δS)``, and 4 roundings of terms no larger than
``M + |lse|``.

**Weights recomputed from the lse**, ``P = e^(s - lse)``: the same E without the running m, and the
lse is multiplied by log2 e (3 u |lse| with the subtraction):

    ρ = exp(γ(D + 9) A + 3 u |lse| + |lse error| + 4 u) - 1.

**Gradients.** ``dP = dO·v`` and ``Δ = dO·out - dlse`` are sums of Dv and Dv + 1 products,

    g = γ(Dv + 1) |dO|·|v| + γ(Dv + 2) (|dO|·|out| + |dlse|) + |dO|·|out error|,
    |dS error| = ε <= P ((1 + ρ)(1 + 3 u)(|dP - Δ| + g) - |dP - Δ|) + η (1 + |dP - Δ|)

and the sums of n terms that follow are each ``Σ error·|x| + γ(n + 5) Σ (value + error)·|x| + n η``,
times |scale|, plus ``η (1 + Σ (value + error)·|x|)`` for a scale or a product that underflows: for
dV over P and dO, for dK over dS and q, for dQ over dS and k (n counts all that is summed, broadcast
axes and grouped heads included; 5 for the scale), for dbias over dS alone, then rounded to bias's
dtype.

The bounds hold for any order of summation, any block of at least 32 keys, with or without fused
multiply-add, and assume nothing else about the kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cattn import AttentionGrads, AttentionResult, reference
from cattn.reference import _inputs, _one_head_axis, _scale, _scores, _seen, _swap, _transposed

KEYS_PER_BLOCK = 32  # at least
EXP = 4.0  # units of u


def unit_roundoff(dtype: Any) -> float:
    return float(np.finfo(dtype).eps) / 2


def gamma(n: float, u: float) -> float:
    return n * u / (1 - n * u)


def attention_bound(q, k, v, *, layout="bhld", bias=None, scale=None, mask=None, **band):
    """Bounds on the errors of out, lse and weights of `attention(q, k, v, ...)`."""
    u, tiny = unit_roundoff(q.dtype), float(np.finfo(q.dtype).tiny)
    x = _inputs(q, k, v, layout, np.float64)
    head_dim, keys = x.q.shape[-1], x.k.shape[-2]
    exact = reference.attention(
        q, k, v, layout=layout, bias=bias, scale=scale, mask=mask, **band,
        return_lse=True, return_weights=True,
    )  # fmt: skip
    out = _one_head_axis(_swap(exact.out, layout))
    lse = exact.lse[None] if x.one_head else exact.lse
    p = _one_head_axis(exact.weights)

    seen = _seen_by(x, bias, mask, band)
    a = _magnitude(x, bias, scale, seen)
    m = a.max(axis=-1, initial=0, keepdims=True)
    e = gamma(head_dim + 8, u) * a + 4 * u * m + EXP * u
    n_k = keys + 5 * np.ceil(keys / KEYS_PER_BLOCK)
    tau = np.expm1(np.minimum(e + gamma(n_k, u), 700))
    magnitude = np.abs(x.v)
    d_n = (p * tau) @ magnitude + tiny * (magnitude.sum(axis=-2, keepdims=True) + keys)
    d_s = (p * tau).sum(axis=-1) + tiny * keys
    room = np.maximum(1 - d_s, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        out_bound = (1 + 3 * u) * (d_n + np.abs(out) * d_s[..., None]) / room[..., None]
        lse_bound = -np.log(room) + 4 * u * (m[..., 0] + np.abs(lse)) + tiny
    out_bound = out_bound + 3 * u * np.abs(out)
    empty = np.isneginf(lse)
    out_bound, lse_bound = np.where(empty[..., None], 0, out_bound), np.where(empty, 0, lse_bound)
    rho = _recomputed(a, lse, lse_bound, head_dim, u)
    weights_bound = np.where(seen, p * rho + tiny, 0)
    if x.one_head:
        out_bound, lse_bound, weights_bound = out_bound[0], lse_bound[0], weights_bound[0]
    return AttentionResult(_swap(out_bound, layout), lse_bound, weights_bound)


def attention_backward_bound(
    dout, q, k, v, out, lse, *, dlse=None, grads=("q", "k", "v"), layout="bhld", bias=None,
    scale=None, mask=None, out_error=0.0, lse_error=0.0, **band,
):  # fmt: skip
    """Bounds on the errors of `attention_backward(dout, q, k, v, out, lse, ...)`.

    `out_error` and `lse_error` say how far `out` and `lse` may themselves be from the exact ones.
    """
    u, tiny = unit_roundoff(q.dtype), float(np.finfo(q.dtype).tiny)
    x = _inputs(q, k, v, layout, np.float64)
    head_dim, value_dim = x.q.shape[-1], x.v.shape[-1]

    def to_heads(array):
        return _one_head_axis(_swap(np.asarray(array, np.float64), layout))

    d_out, out = to_heads(dout), to_heads(out)
    out_error = to_heads(np.broadcast_to(out_error, dout.shape))
    lse = np.asarray(lse, np.float64).reshape(out.shape[:-1])
    lse_error = np.broadcast_to(lse_error, np.shape(lse)[-2:] if x.one_head else lse.shape)
    lse_error = lse_error.reshape(lse.shape)
    d_lse = np.zeros_like(lse) if dlse is None else np.asarray(dlse, np.float64).reshape(lse.shape)

    seen = _seen_by(x, bias, mask, band)
    a = _magnitude(x, bias, scale, seen)
    s = np.where(seen, _scores(x, bias, scale), -np.inf)
    finite_lse = np.where(np.isneginf(lse), 0, lse)
    p = np.exp(s - finite_lse[..., None])
    rho = _recomputed(a, lse, lse_error, head_dim, u)

    magnitude = np.abs(d_out)
    d_p = magnitude @ _transposed(np.abs(x.v))
    delta = (magnitude * np.abs(out)).sum(axis=-1) + np.abs(d_lse)
    from_out = (magnitude * out_error).sum(axis=-1)
    g = gamma(value_dim + 1, u) * d_p
    g = g + (gamma(value_dim + 2, u) * delta + from_out)[..., None]
    exact = np.abs(d_out @ _transposed(x.v) - ((d_out * out).sum(axis=-1) - d_lse)[..., None])
    eps = p * ((1 + rho) * (1 + 3 * u) * (exact + g) - exact) + tiny * (1 + exact)
    eps = np.where(seen, eps, 0)
    value = p * exact

    factor = abs(_scale(x, scale))
    group = x.q.shape[-3] // max(np.shape(_swap(k, layout))[-3] if k.ndim >= 3 else 1, 1)
    batch = int(np.prod(seen.shape[:-3]))

    def summed(error, total, other, terms, factor=1.0):
        sums = total @ other
        bound = factor * (error @ other + gamma(terms + 5, u) * sums + terms * tiny)
        return bound + tiny * (1 + sums)  # the factor, or the product with it, may underflow

    queries, keys = seen.shape[-2:]
    d_q = summed(eps, value + eps, np.abs(x.k), batch * keys, factor)
    terms = batch * group * queries
    d_k = summed(_transposed(eps), _transposed(value + eps), np.abs(x.q), terms, factor)
    p_eps = np.where(seen, p * rho + tiny, 0)
    d_v = summed(_transposed(p_eps), _transposed(p + p_eps), magnitude, terms)

    def own(bound, of):
        shape = _swap(of, layout).shape
        return _swap(reference._sum_to(reference._sum_group(bound, shape), shape), layout)

    d_bias = None
    if "bias" in grads:
        every = gamma(seen.size / max(bias.size, 1) + 5, u)
        d_bias = reference._sum_to(eps + every * (value + eps), bias.shape)
        signed = p * (d_out @ _transposed(x.v) - ((d_out * out).sum(axis=-1) - d_lse)[..., None])
        total = np.abs(reference._sum_to(np.where(seen, signed, 0), bias.shape))
        d_bias = d_bias + unit_roundoff(bias.dtype) * (total + d_bias)
    return AttentionGrads(
        own(d_q, q) if "q" in grads else None,
        own(d_k, k) if "k" in grads else None,
        own(d_v, v) if "v" in grads else None,
        d_bias,
        None,
    )


def _seen_by(x, bias, mask, band):
    return _seen(x, mask, bias, band.get("causal", False), band.get("causal_offset"))


def _magnitude(x, bias, scale, seen):
    """A: the sum of the magnitudes that make up a score, 0 where it is masked."""
    a = abs(_scale(x, scale)) * (np.abs(x.q) @ _transposed(np.abs(x.k)))
    if bias is not None:
        a = a + np.abs(np.asarray(bias, np.float64))
    return np.where(seen, a, 0)


def _recomputed(a, lse, lse_error, head_dim, u):
    """ρ: the relative error of a weight that is computed from the lse."""
    finite = np.where(np.isneginf(lse), 0, np.abs(lse))
    e = gamma(head_dim + 9, u) * a + (3 * u * finite + lse_error)[..., None] + EXP * u
    return np.expm1(np.minimum(e, 700))  # no overflow: inf times a weight of 0 is NaN


def worst(actual, exact, bound, where="") -> float:
    """The largest error / bound. Where the bound is 0 or the exact value infinite: equality."""
    if actual is None or exact is None:
        assert actual is exact, f"{where}: {actual} instead of {exact}"
        return 0.0
    actual, exact, bound = np.asarray(actual), np.asarray(exact), np.asarray(bound)
    assert actual.shape == exact.shape, f"{where}: shape {actual.shape} instead of {exact.shape}"
    if actual.size == 0:
        return 0.0
    same = actual == exact
    wide = np.result_type(exact, np.float64)
    with np.errstate(all="ignore"):
        error = np.where(same, 0, np.abs(actual.astype(wide) - exact.astype(wide)))
        ratio = np.where(same, 0, error / bound).astype(np.float64)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    largest = float(ratio.max())
    if largest > 1:
        at = tuple(int(i) for i in np.unravel_index(ratio.argmax(), ratio.shape))
        raise AssertionError(
            f"{where}: error / bound = {largest:.4g} at {at}: {actual[at]} instead of "
            f"{exact[at]}, bound {bound[at] if bound.ndim else bound:.3g}; "
            f"{int((ratio > 1).sum())} of {ratio.size} elements are over"
        )
    return largest
