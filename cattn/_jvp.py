"""Forward mode: directional derivatives of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from cattn import _core
from cattn._options import show_options
from cattn._types import Array

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cattn._options import Options


@show_options()
def attention_jvp(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    dq: ArrayLike,
    dk: ArrayLike,
    dv: ArrayLike,
    **options: Unpack[Options],
) -> tuple[Array, Array]:
    r"""`attention` and how its output moves when q, k and v move: a Jacobian-vector product.

    ``dS = scale (dQ Kᵀ + Q dKᵀ)`` (times the softcap's derivative),
    ``dO = (P ∘ (dS - rowsum(P ∘ dS))) V + P dV``, in one pass and O(L·D) memory.

    Parameters
    ----------
    q, k, v : array_like
        As of `attention`.
    dq, dk, dv : array_like
        Their tangents, of the same shapes and dtype.
    **options
        As of `attention`; they are held fixed.

    Returns
    -------
    (out, dout) : ndarrays, shape (..., Hq, Lq, Dv)
        The output and its tangent.

    Raises
    ------
    ValueError, TypeError
        As `attention`; also a tangent whose shape or dtype is not its input's.

    References
    ----------
    Forward-mode differentiation: Griewank and Walther, "Evaluating Derivatives" (2008), chapter 3.

    Examples
    --------
    >>> import numpy as np, cattn
    >>> q, k, v, dq, dk, dv = np.random.default_rng(0).standard_normal((6, 5, 3))
    >>> out, dout = cattn.attention_jvp(q, k, v, dq, dk, dv)
    >>> step = 1e-6
    >>> moved = cattn.attention(q + step * dq, k + step * dk, v + step * dv)
    >>> np.allclose((moved - out) / step, dout, atol=1e-4)
    True
    """
    return _core.attention_jvp(q, k, v, dq, dk, dv, None, options)
