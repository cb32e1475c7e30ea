"""Rotary position embedding."""

from __future__ import annotations

import numbers
import sys

import numpy as np
from numpy.typing import ArrayLike

from cattn import _core
from cattn._options import Layout, as_integer
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
    array = _core.as_array("x", x)
    tables = _tables("x", array, positions, base, cos, sin, rotary_dim, layout)
    return _core.rope(array, *tables, interleaved, False, layout, num_threads)


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
    array = _core.as_array("dout", dout)
    tables = _tables("dout", array, positions, base, cos, sin, rotary_dim, layout)
    return _core.rope(array, *tables, interleaved, True, layout, num_threads)


def _tables(
    name: str,
    x: Array,
    positions: ArrayLike | None,
    base: float,
    cos: ArrayLike | None,
    sin: ArrayLike | None,
    rotary_dim: int | None,
    layout: str,
) -> tuple[Array, Array]:
    """Cosines and sines per row of x, (..., L, pairs), in the dtype that the core computes in."""
    if x.ndim < 2:
        raise ValueError(f"{name}: shape {x.shape} has too few axes, expected at least 2")
    rows_first = isinstance(layout, str) and layout == "blhd" and x.ndim >= 3
    length = x.shape[-3] if rows_first else x.shape[-2]
    if (cos is None) != (sin is None):
        raise ValueError("cos, sin: one table is given without the other")
    if cos is None or sin is None:
        if positions is None:
            raise ValueError("positions: is None, expected positions or the tables cos and sin")
        tables = _computed_tables(positions, base, _even_part(name, x.shape[-1], rotary_dim))
        rows_of = "positions"
    else:
        tables = _given_tables(cos, sin, rotary_dim)
        rows_of = "cos"
        if positions is not None:
            tables = _looked_up(tables, positions)
            rows_of = "positions"
    rows = tables[0].shape[-2]
    if rows not in (1, length):
        raise ValueError(f"{rows_of}: {rows} rows, expected {length} like {name}")
    lead, own = x.shape[:-3], tables[0].shape[:-2]
    if len(own) > len(lead) or any(
        n not in (1, m) for n, m in zip(reversed(own), reversed(lead), strict=False)
    ):
        raise ValueError(f"{rows_of}: has leading axes {own}, which do not fit {name}'s, {lead}")
    dtype = np.float64 if x.dtype.itemsize == 8 else np.float32
    first, second = (np.ascontiguousarray(table, dtype) for table in tables)
    return first, second


def _computed_tables(positions: ArrayLike, base: float, dim: int) -> tuple[Array, Array]:
    if isinstance(base, bool) or not isinstance(base, numbers.Real):
        raise TypeError(f"base: is {base!r}, expected a number")
    if not 0 < base <= sys.float_info.max:
        raise ValueError(f"base: is {base!r}, expected a finite number above 0")
    angles = _positions(positions, "iuf")[..., None] * float(base) ** (-np.arange(0, dim, 2) / dim)
    return np.cos(angles), np.sin(angles)


def _given_tables(cos: ArrayLike, sin: ArrayLike, rotary_dim: int | None) -> tuple[Array, Array]:
    first, second = _core.as_array("cos", cos), _core.as_array("sin", sin)
    for name, table in (("cos", first), ("sin", second)):
        if table.ndim < 2 or table.shape != first.shape:
            raise ValueError(
                f"{name}: shape {table.shape}, expected two tables (..., positions, rotary_dim / 2)"
            )
    dim = 2 * first.shape[-1]
    if rotary_dim is not None and as_integer("rotary_dim", rotary_dim) != dim:
        raise ValueError(
            f"rotary_dim: is {rotary_dim}, the tables have {dim // 2} columns, expected {dim}"
        )
    return first, second


def _looked_up(tables: tuple[Array, Array], positions: ArrayLike) -> tuple[Array, Array]:
    cos, sin = tables
    if cos.ndim != 2:
        raise ValueError(
            f"cos: shape {cos.shape}, expected (positions, rotary_dim / 2) to look up positions in"
        )
    rows = _positions(positions, "iu")
    outside = rows[(rows < 0) | (rows >= len(cos))]
    if outside.size:
        raise ValueError(f"positions: contains {outside[0]}, the tables have {len(cos)} rows")
    return cos[rows], sin[rows]


def _even_part(name: str, size: int, rotary_dim: int | None) -> int:
    """How many of `size` features are turned."""
    if rotary_dim is None:
        if size % 2:
            raise ValueError(
                f"{name}: has {size} features, expected an even number, or give rotary_dim"
            )
        return size
    dim = as_integer("rotary_dim", rotary_dim)
    if dim < 0 or dim % 2 or dim > size:
        raise ValueError(f"rotary_dim: is {dim}, expected an even number up to {size}")
    return dim


def _positions(positions: ArrayLike, kinds: str) -> Array:
    array = np.asarray(positions)
    if array.size and array.dtype.kind not in kinds:
        expected = "integers or floats" if "f" in kinds else "integers, to look up in the tables"
        raise TypeError(f"positions: dtype {array.dtype}, expected {expected}")
    return np.atleast_1d(array if array.size else array.astype(np.int64))
