"""Rotary position embedding."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike

from cattn import _core
from cattn._options import Layout
from cattn._types import Array


def rope(
    x: ArrayLike,
    positions: ArrayLike | None,
    *,
    base: float = 10000.0,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    layout: Layout = "bhld",
    num_threads: int | None = None,
) -> Array:
    r"""Turn pairs of features by angles that grow with the position, so that ``rope(q)·rope(k)``
    depends on positions by their difference alone.

    Pair ``t`` turns by ``positions * base^(-2t / rotary_dim)``:
    ``y1 = x1 cos - x2 sin``, ``y2 = x1 sin + x2 cos``.

    Parameters
    ----------
    x : array_like, shape (..., H, L, D)
        Queries or keys, of any dtype of `attention`; (L, D) is one head.
    positions : array_like of int or float, shape (L,) or (..., L), or None
        Of the rows, broadcast over the leading axes; None with tables that have a row per position
        of `x` already.
    base : float
        Of the angles.
    cos, sin : array_like, optional
        Tables instead: shape (positions, rotary_dim / 2), read at `positions` (integers); or with
        ``positions=None``, (..., L, rotary_dim / 2).
    rotary_dim : int, optional
        How many features, from the first on, are turned; even; default all (of tables: twice
        their columns). The others are copied.
    interleaved : bool
        Pairs are neighbours ``(2t, 2t + 1)``; default ``(t, t + rotary_dim / 2)``.
    layout : {"bhld", "blhd"}
        ``"blhd"`` takes and returns ``(..., L, H, D)``.
    num_threads : int, optional
        Threads for this call; default `get_num_threads`.

    Returns
    -------
    ndarray
        Of x's shape and dtype.

    Raises
    ------
    ValueError, TypeError
        A shape, dtype or option that does not fit; the message names the argument.

    References
    ----------
    Su et al., "RoFormer: Enhanced transformer with rotary position embedding" (2021), section 3.2.

    Examples
    --------
    >>> import numpy as np, cattn
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> cattn.rope(x, [0, 1]).round(3)  # turned by 0 and by 1 radian
    array([[1.   , 0.   ],
           [0.54 , 0.841]])
    """
    tables = _tables(x, positions, base, cos, sin, rotary_dim, layout)
    return _core.rope(x, *tables, interleaved, False, layout, num_threads)


def rope_backward(
    dout: ArrayLike,
    positions: ArrayLike | None,
    *,
    base: float = 10000.0,
    cos: ArrayLike | None = None,
    sin: ArrayLike | None = None,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    layout: Layout = "bhld",
    num_threads: int | None = None,
) -> Array:
    r"""Gradient of a scalar through `rope`: the opposite turn of its gradient by the output.

    Parameters
    ----------
    dout : array_like, shape (..., H, L, D)
        Gradient with respect to the output of `rope`.
    positions, base, cos, sin, rotary_dim, interleaved, layout, num_threads
        As given to `rope`.

    Returns
    -------
    ndarray
        Gradient with respect to x.

    Raises
    ------
    ValueError, TypeError
        As `rope`.

    References
    ----------
    A rotation is orthogonal: its transpose is the opposite rotation.

    Examples
    --------
    >>> import numpy as np, cattn
    >>> x = np.random.default_rng(0).standard_normal((5, 4))
    >>> np.allclose(cattn.rope_backward(cattn.rope(x, range(5)), range(5)), x)
    True
    """
    tables = _tables(dout, positions, base, cos, sin, rotary_dim, layout)
    return _core.rope(dout, *tables, interleaved, True, layout, num_threads)


def _tables(
    x: ArrayLike,
    positions: ArrayLike | None,
    base: float,
    cos: ArrayLike | None,
    sin: ArrayLike | None,
    rotary_dim: int | None,
    layout: str,
) -> tuple[Array, Array]:
    """Cosines and sines per row of x, (..., L, pairs), in the dtype that the core computes in."""
    shape = tuple(np.shape(x))
    if len(shape) < 2:
        raise ValueError(f"x: shape {shape} has too few axes, expected at least 2")
    dtype = np.float64 if str(getattr(x, "dtype", "float64")).endswith("float64") else np.float32
    if (cos is None) != (sin is None):
        raise ValueError("cos, sin: one table is given without the other")
    if cos is None or sin is None:
        if positions is None:
            raise ValueError("positions: is None, expected positions or the tables cos and sin")
        dim = _rotary_dim(rotary_dim, shape[-1])
        if not (np.isfinite(base) and base > 0):
            raise ValueError(f"base: is {base!r}, expected a finite number above 0")
        angles = _positions(positions, "iuf")[..., None] * base ** (-np.arange(0, dim, 2) / dim)
        tables = np.cos(angles), np.sin(angles)
    else:
        tables = np.asarray(cos), np.asarray(sin)
        dim = _rotary_dim(rotary_dim, 2 * tables[0].shape[-1])
        for name, table in zip(("cos", "sin"), tables, strict=True):
            if table.ndim < 2 or table.shape != tables[0].shape or table.dtype.kind != "f":
                raise ValueError(
                    f"{name}: shape {table.shape} and dtype {table.dtype}, expected two tables "
                    "(..., positions, rotary_dim / 2) of floats"
                )
            if 2 * table.shape[-1] != dim:
                raise ValueError(
                    f"{name}: shape {table.shape}, expected {dim // 2} columns for rotary_dim {dim}"
                )
        if positions is not None:
            rows = _positions(positions, "iu")
            count = tables[0].shape[-2]
            if rows.size and not (rows.min() >= 0 and rows.max() < count):
                raise ValueError(f"positions: contains {rows.max()}, the tables have {count} rows")
            tables = tables[0][rows], tables[1][rows]
    length = shape[-3] if layout == "blhd" and len(shape) >= 3 else shape[-2]
    if tables[0].shape[-2] not in (1, length):
        raise ValueError(
            f"positions: {tables[0].shape[-2]} of them, expected {length}, the rows of x"
        )
    first, second = (np.ascontiguousarray(table, dtype) for table in tables)
    return first, second


def _rotary_dim(rotary_dim: int | None, default: int) -> int:
    dim = default if rotary_dim is None else operator.index(rotary_dim)
    if dim < 0 or dim % 2 or dim > default:
        raise ValueError(f"rotary_dim: is {dim}, expected an even number up to {default}")
    return dim


def _positions(positions: ArrayLike, kinds: str) -> Array:
    array = np.asarray(positions)
    if array.size and array.dtype.kind not in kinds:
        expected = "integers or floats" if "f" in kinds else "integers, to look up in the tables"
        raise TypeError(f"positions: dtype {array.dtype}, expected {expected}")
    return np.atleast_1d(array if array.size else array.astype(np.int64))
