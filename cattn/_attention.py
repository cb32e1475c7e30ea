"""The attention functions: names, defaults and documentation. The work is done in `cattn._core`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from cattn import _core
from cattn._options import DEFAULTS, show_options, wanted_gradients
from cattn._types import Array, AttentionGrads, AttentionResult

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cattn._options import Options


@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: Literal[False] = ...,
    return_weights: Literal[False] = ...,
    out: Array | None = ...,
    **options: Unpack[Options],
) -> Array: ...
@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: bool = ...,
    return_weights: bool = ...,
    out: Array | None = ...,
    **options: Unpack[Options],
) -> Any: ...
@show_options()
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    return_lse: bool = False,
    return_weights: bool = False,
    out: Array | None = None,
    **options: Unpack[Options],
) -> Any:
    r"""Scaled dot-product attention, exactly: ``softmax(scale * q @ k.T + bias) @ v``.

    One fused pass over blocks of scores; memory is O(L·D), nothing of the size of the scores is
    kept (except `return_weights`). The options act in this order::

        s = scale·(q·k) → softcap → + bias → ALiBi → mask → softmax with sinks → dropout → · v

    Parameters
    ----------
    q : array_like, shape (..., Hq, Lq, D)
        Queries: float32, float64, float16 or bfloat16 (of ``ml_dtypes``, or a tensor of another
        library by DLPack). A two-dimensional (L, D) array is one head.
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
        One number, or one per batch entry (broadcast to the leading axes). Default ``Lk - Lq``
        (with `kv_lengths`, of each entry): the last query sees the last key. 0 is the top-left
        alignment of PyTorch and JAX. `window` and `alibi_slopes` count from it too.
    window : (left, right), optional
        Query ``i`` sees keys from ``i + causal_offset - left`` to ``i + causal_offset + right``,
        both included; None or -1 is unbounded.
    scale : float, optional
        Default ``1 / sqrt(D)``. 0 and negative numbers are allowed.
    softcap : float, optional
        ``c`` in ``c * tanh(s / c)``, which keeps scores within ``(-c, c)``.
    alibi_slopes : array_like of float32 or q's dtype, shape (Hq,) or (..., Hq), optional
        Subtracts ``slope * abs(i + causal_offset - j)`` from the scores.
    sinks : array_like of float32 or q's dtype, shape (Hq,), optional
        One more logit per head in the denominator of the softmax, with no value; counted in the
        log-sum-exp.
    kv_lengths : int or array_like of int, optional
        Keys of each batch entry: those at and past it do not exist.
    dropout : float
        Probability with which each weight is dropped after the softmax; the others are divided
        by ``1 - dropout``. See `dropout_mask`.
    seed : int, optional
        Of the dropout, ``0 <= seed < 2**64``: the same seed drops the same weights.
    precision : {"highest", "high", "medium"}
        How the matrix products of float32 arrays may be computed: accurate to float32; from two
        bfloat16 parts of each operand, which leaves ``a * b`` off by at most 2⁻¹⁵ of itself; or
        from operands rounded to bfloat16, 2⁻⁷. Sums are of float32. It is a permission: where the
        instruction set gains nothing, the result is that of "highest". Other dtypes ignore it.
    layout : {"bhld", "blhd"}
        ``"blhd"`` takes and returns ``(..., L, H, D)``, without copies.
    return_lse, return_weights : bool
        Also return the row log-sum-exp ``(..., Hq, Lq)`` (natural log of the softmax denominator;
        float64 for float64, else float32) or the probabilities ``(..., Hq, Lq, Lk)``, before
        dropout.
    out : ndarray, optional
        Where the result goes: exactly its shape and dtype, last axis contiguous. It may overlap
        the inputs.
    num_threads : int, optional
        Threads for this call, of which a very small one needs only one. By default at most
        `get_num_threads`, and one for a small call while others are probably asleep or busy.

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
    A masked position never contributes, whatever its key or value holds (NaN included). Half
    types are computed in float32 and rounded once; instruction sets that multiply half types
    (avx512bf16, amx, amx_fp16) also round weights for their product with v, to the half type or,
    for float16 on amx, to two bfloat16 parts, where there are more than a few queries. Arrays are
    read in place: masks and biases for any strides, the others as long as the last axis is
    contiguous; otherwise they are copied once. The result is the same to the last bit for any
    number of threads.

    References
    ----------
    Vaswani et al., "Attention Is All You Need" (2017), equation 1. Milakov and Gimelshein,
    "Online normalizer calculation for softmax" (2018). Dao et al., "FlashAttention" (2022). ALiBi:
    Press et al. (2022). Soft-capping: Gemma 2 (2024). Sinks: Xiao et al. (2024).

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
    result, lse, weights = _core.attention(q, k, v, None, options, return_lse, return_weights, out)
    if return_lse or return_weights:
        return AttentionResult(result, lse, weights)
    return result


@show_options()
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
    **options: Unpack[Options],
) -> AttentionGrads:
    r"""Gradients of a scalar through `attention`, from its gradient with respect to the output.

    With ``P`` the attention weights: ``dV = P.T @ dO``, ``dP = dO @ V.T``,
    ``dS = P * (dP - rowsum(dO * O) + dlse)``, ``dQ = scale * dS @ K``, ``dK = scale * dS.T @ Q``,
    ``dbias = dS`` summed over what was broadcast. ``P`` is computed again block by block from
    `lse`, so memory is O(L·D). Dropout drops ``P`` in ``dV`` and ``dP`` in ``dS``; a softcap
    multiplies ``dS`` by ``1 - tanh²`` on the way to ``dQ`` and ``dK``; the gradient of a sink is
    ``-sum(e^(sink - lse) * (rowsum(dO * O) - dlse))``.

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
    grads : sequence of {"q", "k", "v", "bias", "sinks"}
        Which gradients to compute; the others are None.
    **options
        As given to `attention`, `seed` included.

    Returns
    -------
    AttentionGrads(dq, dk, dv, dbias, dsinks)
        Each of its input's own shape and dtype, summed over what was broadcast.

    Raises
    ------
    ValueError, TypeError
        As `attention`; also an unknown word in `grads`, or one whose input is not given.

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
    gradients = _core.attention_backward(
        dout, q, k, v, out, lse, dlse, None, wanted_gradients(grads), options
    )
    layout = options.get("layout", DEFAULTS["layout"])
    for name, of in (("q", q), ("k", k), ("v", v)):
        if name in gradients:
            gradients[name] = _sum_to_input(name, gradients[name], of, layout)
    return AttentionGrads(*map(gradients.get, ("q", "k", "v", "bias", "sinks")))


def _sum_to_input(name: str, gradient: Array, of: ArrayLike, layout: str) -> Array:
    """Sum a gradient over the axes along which its input was broadcast."""
    if gradient.shape == np.shape(of):
        return gradient
    array = _core.as_array(name, of)
    shape = array.shape
    if layout == "blhd" and len(shape) == 2 < gradient.ndim:
        gradient = gradient[..., 0, :]  # one head has no axis of heads
    extra = gradient.ndim - len(shape)
    axes = tuple(
        axis
        for axis in range(gradient.ndim)
        if axis < extra or (shape[axis - extra] == 1 and gradient.shape[axis] != 1)
    )
    summed: Array = gradient.sum(axis=axes).reshape(shape)
    # Half types come here in float32 and are rounded once.
    return summed.astype(array.dtype) if array.dtype.itemsize == 2 else summed


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
    (out, lse) : ndarrays, shapes of the inputs
        `out` has the dtype of `out_a`; half types are joined in float32 and rounded once. `lse` is
        float32, or float64 where an input is.

    Raises
    ------
    ValueError
        Shapes that do not fit each other.
    TypeError
        A dtype that is not a floating-point one of `attention`.

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
    given = [_core.as_array(name, array) for name, array in arrays.items()]
    oa, la, ob, lb = (a.astype(np.float32) if a.dtype.itemsize == 2 else a for a in given)
    if oa.ndim == 0:
        raise ValueError("out_a: shape (), expected (..., L, Dv)")
    if ob.shape != oa.shape:
        raise ValueError(f"out_b: shape {ob.shape}, expected out_a's {oa.shape}")
    for name, lse in (("lse_a", la), ("lse_b", lb)):
        if lse.shape != oa.shape[:-1]:
            raise ValueError(f"{name}: shape {lse.shape}, expected {oa.shape[:-1]} like out_a's")
    merged: Array = np.logaddexp(la, lb)
    # -inf - -inf is nan: a row without keys on either side keeps weights 0.
    anchor = np.where(np.isneginf(merged), 0, merged)
    weight_a, weight_b = np.exp(la - anchor), np.exp(lb - anchor)
    joined: Array = weight_a[..., None] * oa + weight_b[..., None] * ob
    return joined.astype(given[0].dtype, copy=False), merged
