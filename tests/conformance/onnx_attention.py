"""The ONNX operators Attention (opsets 23 to 25) and RotaryEmbedding (23) on top of `cattn`.

The order of the operator is cattn's: scale, softcap, float mask, boolean mask and causal, softmax,
values. What differs, and what is done about it:

- The operator's causal mask starts at the top left where there is no cache, cattn's ends at the
  bottom right: the offset is always passed.
- A mask that is shorter than the keys is padded with "masked", even one of length 1, which NumPy
  would stretch.
- cattn never holds the scores, so `qk_matmul_output` of modes 0 to 2 is computed here, and only if
  it is asked for. Mode 3 is `return_weights`.
- The operator rounds scores and weights to the inputs' type on the way; cattn does not round half
  types before the end. `softmax_precision` matters only where it asks for more than cattn has
  anyway (float32, or float64 for float64).
- The operator multiplies q and k by the root of the scale each; cattn scales the product, so the
  scale may be negative.
- NaN or infinity behind a mask does not reach the output (the operator lets it, as 0 · NaN).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import cattn

Array = NDArray[Any]

DOUBLE = 11  # TensorProto.DOUBLE
NO_LIMIT = -1
RAW, SOFTCAPPED, MASKED, WEIGHTS = range(4)  # qk_matmul_output_mode


class Attention(NamedTuple):
    """The operator's outputs, in its order."""

    y: Array
    present_key: Array
    present_value: Array
    qk_matmul_output: Array | None


def attention(
    q: Array,
    k: Array,
    v: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = NO_LIMIT,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = RAW,
    right_window_size: int = NO_LIMIT,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    qk_matmul_output: bool = False,
    module: Any = cattn,
) -> Attention:
    """The operator Attention: inputs and attributes under its own names.

    q, k, v are ``(batch, heads, length, features)``, or ``(batch, length, heads · features)`` with
    the numbers of heads. `qk_matmul_output` says whether the fourth output is wanted; `module` is
    what computes, `cattn` or `cattn.reference`.
    """
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key and past_value: one is given without the other")
    if past_key is not None and nonpad_kv_seqlen is not None:
        raise ValueError("nonpad_kv_seqlen: is given together with past_key")
    one_axis = q.ndim == 3
    if one_axis:
        q = _split_heads(q, q_num_heads, "q_num_heads")
        k, v = (_split_heads(a, kv_num_heads, "kv_num_heads") for a in (k, v))
    if past_key is not None and past_value is not None:
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    queries, keys = q.shape[2], k.shape[2]

    if nonpad_kv_seqlen is not None:
        offset: Any = np.asarray(nonpad_kv_seqlen) - queries
    else:
        offset = 0 if past_key is None else past_key.shape[2]
    window = (left_window_size, right_window_size)
    banded = bool(is_causal) or window != (NO_LIMIT, NO_LIMIT)
    mask, bias = _mask_and_bias(attn_mask, keys)

    # One dtype for all, wide enough for the softmax that is asked for.
    dtype = np.result_type(q, k, v, *([np.float64] if softmax_precision == DOUBLE else []))
    arrays = [a.astype(dtype, copy=False) for a in (q, k, v)]
    result = module.attention(
        *arrays,
        mask=mask,
        bias=None if bias is None else bias.astype(dtype, copy=False),
        causal=bool(is_causal),
        causal_offset=offset if banded else None,
        window=window if banded else None,
        scale=scale,
        softcap=softcap or None,
        kv_lengths=nonpad_kv_seqlen,
        return_lse=True,
        return_weights=qk_matmul_output and qk_matmul_output_mode == WEIGHTS,
    )
    y = result.out.astype(q.dtype, copy=False)
    scores = result.weights
    if qk_matmul_output and qk_matmul_output_mode != WEIGHTS:
        scores = _scores(q, k, scale)
        if softcap and qk_matmul_output_mode >= SOFTCAPPED:
            scores = softcap * np.tanh(scores / softcap)
        if qk_matmul_output_mode == MASKED:
            seen = _seen(queries, keys, offset, bool(is_causal), window, nonpad_kv_seqlen)
            scores = scores if bias is None else scores + bias.astype(scores.dtype)
            scores = scores + np.where(seen if mask is None else seen & mask, 0, -np.inf)
    return Attention(
        _join_heads(y) if one_axis else y,
        k,
        v,
        None if scores is None else scores.astype(q.dtype, copy=False),
    )


def rotary_embedding(
    x: Array,
    cos_cache: Array,
    sin_cache: Array,
    position_ids: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
    module: Any = cattn,
) -> Array:
    """The operator RotaryEmbedding: inputs and attributes under its own names.

    x is ``(batch, heads, length, features)``, or ``(batch, length, heads · features)`` with
    `num_heads`.
    """
    y: Array = module.rope(
        _split_heads(x, num_heads, "num_heads") if x.ndim == 3 else x,
        position_ids,
        cos=cos_cache,
        sin=sin_cache,
        rotary_dim=rotary_embedding_dim or None,
        interleaved=bool(interleaved),
    )
    return (_join_heads(y) if x.ndim == 3 else y).astype(x.dtype, copy=False)


def _split_heads(a: Array, heads: int | None, name: str) -> Array:
    """(batch, length, heads · features) as (batch, heads, length, features): a view."""
    if not heads or a.shape[2] % heads:
        raise ValueError(f"{name}: is {heads}, expected a divisor of {a.shape[2]} features")
    return a.reshape(*a.shape[:2], heads, a.shape[2] // heads).swapaxes(1, 2)


def _join_heads(a: Array) -> Array:
    joined: Array = a.swapaxes(1, 2)
    return joined.reshape(*joined.shape[:2], -1)


def _mask_and_bias(attn_mask: Array | None, keys: int) -> tuple[Array | None, Array | None]:
    """The one input as cattn's two, over all keys."""
    if attn_mask is None:
        return None, None
    is_bool = attn_mask.dtype == bool
    missing = [(0, 0)] * (attn_mask.ndim - 1) + [(0, keys - attn_mask.shape[-1])]
    whole = np.pad(attn_mask, missing, constant_values=False if is_bool else -np.inf)
    return (whole, None) if is_bool else (None, whole)


def _scores(q: Array, k: Array, scale: float | None) -> Array:
    """scale · q kᵀ in float32 at least."""
    wide = np.result_type(q, k, np.float32)
    group = q.shape[1] // k.shape[1]
    products: Array = q.astype(wide) @ k.astype(wide).repeat(group, axis=1).swapaxes(2, 3)
    products *= q.shape[3] ** -0.5 if scale is None else scale
    return products


def _seen(
    queries: int,
    keys: int,
    offset: Any,
    causal: bool,
    window: tuple[int, int],
    lengths: Array | None,
) -> Array:
    """The pairs that causal, window and lengths leave, (batch or 1, 1, queries, keys)."""
    position = np.arange(queries)[:, None] + np.reshape(offset, (-1, 1, 1, 1))
    j = np.arange(keys)
    seen: Array = np.ones(np.broadcast_shapes(position.shape, j.shape), bool)
    if causal:
        seen = seen & (j <= position)
    left, right = window
    if left != NO_LIMIT:
        seen = seen & (j >= position - left)
    if right != NO_LIMIT:
        seen = seen & (j <= position + right)
    if lengths is not None:
        seen = seen & (j < np.reshape(lengths, (-1, 1, 1, 1)))
    return seen
