"""The attention functions: names, defaults and documentation. The work is done in `cattn._core`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from cattn import _core
from cattn._types import Array, AttentionGrads, AttentionResult

Layout = Literal["bhld", "blhd"]


@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | None = ...,
    bias: ArrayLike | None = ...,
    causal: bool = ...,
    causal_offset: ArrayLike | None = ...,
    scale: float | None = ...,
    layout: Layout = ...,
    return_lse: Literal[False] = ...,
    return_weights: Literal[False] = ...,
    out: Array | None = ...,
    num_threads: int | None = ...,
) -> Array: ...
@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    mask: ArrayLike | None = ...,
    bias: ArrayLike | None = ...,
    causal: bool = ...,
    causal_offset: ArrayLike | None = ...,
    scale: float | None = ...,
    layout: Layout = ...,
    return_lse: bool = ...,
    return_weights: bool = ...,
    out: Array | None = ...,
    num_threads: int | None = ...,
) -> Any: ...
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
    layout: Layout = "bhld",
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
    num_threads: int | None = None,
) -> Any:
    r"""Scaled dot-product attention, exactly: ``softmax(scale * q @ k.T + bias) @ v``.

    One fused pass over blocks of scores; memory is O(L·D), nothing of the size of the scores is
    kept (except `return_weights`).

    Parameters
    ----------
    q : array_like, shape (..., Hq, Lq, D)
        Queries, float32 or float64. A two-dimensional (L, D) array is one head.
    k : array_like, shape (..., Hkv, Lk, D)
        Keys of the same dtype. ``Hq`` is a multiple of ``Hkv``: query head ``h`` reads key head
        ``h // (Hq // Hkv)``. Leading axes of q, k and v broadcast as in `numpy.matmul`.
    v : array_like, shape (..., Hkv, Lk, Dv)
        Values of the same dtype; ``Dv`` may differ from ``D``.
    mask : array_like of bool, optional
        True where a query may attend a key; broadcast, right-aligned, to ``(..., Hq, Lq, Lk)``.
    bias : array_like of float32 or q's dtype, optional
        Added to the scores; same broadcast. ``-inf`` masks.
    causal : bool
        Query ``i`` sees key ``j`` only when ``j <= i + causal_offset``.
    causal_offset : int or array_like of int, optional
        One number, or one per batch entry (broadcast to the leading axes). Default ``Lk - Lq``:
        the last query sees the last key. 0 is the top-left alignment of PyTorch and JAX.
    scale : float, optional
        Default ``1 / sqrt(D)``. 0 and negative numbers are allowed.
    layout : {"bhld", "blhd"}
        ``"blhd"`` takes and returns ``(..., L, H, D)``, without copies.
    return_lse, return_weights : bool
        Also return the row log-sum-exp ``(..., Hq, Lq)`` (natural log of the softmax denominator)
        or the probabilities ``(..., Hq, Lq, Lk)``.
    out : ndarray, optional
        Where the result goes: exactly its shape and dtype, last axis contiguous. It may overlap
        the inputs.
    num_threads : int, optional
        Threads for this call; default `get_num_threads`.

    Returns
    -------
    ndarray, shape (..., Hq, Lq, Dv), or AttentionResult(out, lse, weights)
        The tuple when a ``return_`` flag is set. A row that may attend no key is 0, its lse -inf.

    Raises
    ------
    ValueError
        A shape or an option that does not fit; the message names the argument.
    TypeError
        A dtype that is not supported or not q's.

    Notes
    -----
    A masked position never contributes, whatever its key or value holds (NaN included). Arrays
    are read in place for any strides as long as the last axis is contiguous, and copied once
    otherwise. The result is the same to the last bit for any number of threads.

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), equation 1. Milakov and Gimelshein,
    "Online normalizer calculation for softmax" (2018). Dao et al., "FlashAttention" (2022).

    Examples
    --------
    Two queries over three keys, weights and all:

    >>> import numpy as np, cattn
    >>> q = np.array([[0.0, 0.0], [9.0, 0.0]])
    >>> k = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> v = np.array([[10.0], [20.0], [30.0]])
    >>> result = cattn.attention(q, k, v, return_weights=True)
    >>> result.weights.round(3)
    array([[0.333, 0.333, 0.333],
           [0.998, 0.002, 0.   ]])
    >>> result.out.round(2)
    array([[20.  ],
           [10.02]])
    """
    result, lse, weights = _core.attention(
        q, k, v, mask, bias, causal, causal_offset, scale, layout,
        return_lse, return_weights, out, num_threads,
    )  # fmt: skip
    if return_lse or return_weights:
        return AttentionResult(result, lse, weights)
    return result


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
    layout: Layout = "bhld",
    num_threads: int | None = None,
) -> AttentionGrads:
    r"""Gradients of a scalar through `attention`, from its gradient with respect to the output.

    With ``P`` the attention weights: ``dV = P.T @ dO``, ``dP = dO @ V.T``,
    ``dS = P * (dP - rowsum(dO * O) + dlse)``, ``dQ = scale * dS @ K``, ``dK = scale * dS.T @ Q``,
    ``dbias = dS`` summed over what was broadcast. ``P`` is computed again block by block from
    `lse`, so memory is O(L·D).

    Parameters
    ----------
    dout : array_like, shape (..., Hq, Lq, Dv)
        Gradient with respect to the output.
    q, k, v : array_like
        As given to `attention`.
    out, lse : array_like, shapes (..., Hq, Lq, Dv) and (..., Hq, Lq)
        What ``attention(..., return_lse=True)`` returned.
    dlse : array_like, shape (..., Hq, Lq), optional
        Gradient with respect to `lse`, where it was used.
    grads : sequence of {"q", "k", "v", "bias"}
        Which gradients to compute; the others are None.
    mask, bias, causal, causal_offset, scale, layout, num_threads
        As given to `attention`.

    Returns
    -------
    AttentionGrads(dq, dk, dv, dbias, dsinks)
        Each of its input's own shape and dtype, summed over what was broadcast.

    Raises
    ------
    ValueError, TypeError
        As `attention`; also an unknown word in `grads`, or ``"bias"`` without a bias.

    References
    ----------
    Dao et al., "FlashAttention" (2022), appendix B.4.

    Examples
    --------
    >>> import numpy as np, cattn
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, dout = rng.standard_normal((4, 5, 3))
    >>> out, lse, _ = cattn.attention(q, k, v, return_lse=True)
    >>> dq, dk, dv, *_ = cattn.attention_backward(dout, q, k, v, out, lse)
    >>> step = np.zeros_like(q)
    >>> step[2, 1] = 1e-6
    >>> change = (cattn.attention(q + step, k, v) - cattn.attention(q - step, k, v)) / 2e-6
    >>> bool(np.isclose((dout * change).sum(), dq[2, 1]))
    True
    """
    wanted = {"q": False, "k": False, "v": False, "bias": False}
    if not isinstance(grads, Iterable):
        raise TypeError(f"grads: is {grads!r}, expected words out of {list(wanted)}")
    for word in [grads] if isinstance(grads, str) else grads:
        if not isinstance(word, str) or word not in wanted:
            raise ValueError(f"grads: contains {word!r}, expected some of {list(wanted)}")
        wanted[word] = True
    dq, dk, dv, dbias = _core.attention_backward(
        dout, q, k, v, out, lse, dlse,
        wanted["q"], wanted["k"], wanted["v"], wanted["bias"],
        mask, bias, causal, causal_offset, scale, layout, num_threads,
    )  # fmt: skip
    return AttentionGrads(
        _sum_to_shape(dq, q), _sum_to_shape(dk, k), _sum_to_shape(dv, v), dbias, None
    )


def _sum_to_shape(gradient: Array | None, of: ArrayLike) -> Array | None:
    """Sum a gradient over the leading axes along which its input was broadcast."""
    if gradient is None:
        return None
    shape = np.shape(of)
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    axes = tuple(
        axis
        for axis in range(gradient.ndim)
        if axis < extra or (shape[axis - extra] == 1 and gradient.shape[axis] != 1)
    )
    summed: Array = gradient.sum(axis=axes).reshape(shape)
    return summed


def merge_attention(
    out_a: ArrayLike, lse_a: ArrayLike, out_b: ArrayLike, lse_b: ArrayLike
) -> tuple[Array, Array]:
    r"""Join attention over two disjoint sets of keys into attention over their union.

    ``lse = log(e^lse_a + e^lse_b)`` and ``out = e^(lse_a - lse) out_a + e^(lse_b - lse) out_b``.

    Parameters
    ----------
    out_a, out_b : array_like, shape (..., L, Dv)
        Outputs of the same queries over either set of keys.
    lse_a, lse_b : array_like, shape (..., L)
        Their log-sum-exps, as ``return_lse`` gives them; -inf for no key at all.

    Returns
    -------
    (out, lse) : ndarrays of the shapes and dtypes of the inputs

    Raises
    ------
    ValueError
        Shapes that do not fit each other.
    TypeError
        A dtype other than float32 or float64.

    References
    ----------
    The associativity of the online softmax: Milakov and Gimelshein (2018), section 3.1.

    Examples
    --------
    >>> import numpy as np, cattn
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 6, 4))
    >>> a = cattn.attention(q, k[:2], v[:2], return_lse=True)
    >>> b = cattn.attention(q, k[2:], v[2:], return_lse=True)
    >>> out, lse = cattn.merge_attention(a.out, a.lse, b.out, b.lse)
    >>> np.allclose(out, cattn.attention(q, k, v))
    True
    """
    arrays = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b}
    oa, la, ob, lb = (_floating(name, array) for name, array in arrays.items())
    if ob.shape != oa.shape:
        raise ValueError(f"out_b: shape {ob.shape}, expected out_a's {oa.shape}")
    for name, lse in (("lse_a", la), ("lse_b", lb)):
        if lse.shape != oa.shape[:-1]:
            raise ValueError(f"{name}: shape {lse.shape}, expected {oa.shape[:-1]} like out_a's")
    merged: Array = np.logaddexp(la, lb)
    # -inf - -inf is nan: a row without keys on either side keeps weights 0.
    anchor = np.where(np.isneginf(merged), 0, merged)
    weight_a, weight_b = np.exp(la - anchor), np.exp(lb - anchor)
    return weight_a[..., None] * oa + weight_b[..., None] * ob, merged


def _floating(name: str, array: ArrayLike) -> Array:
    a = np.asarray(array)
    if a.dtype not in (np.float32, np.float64):
        raise TypeError(f"{name}: dtype {a.dtype}, expected float32 or float64")
    return a
