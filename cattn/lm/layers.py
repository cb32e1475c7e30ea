"""The layers around attention, forward and backward, in NumPy.

Shapes: T tokens of a batch in one axis, width d, vocabulary V. Each backward function takes the
gradient of its output first and returns the gradients of the inputs, the parameters' last.
"""

from __future__ import annotations

import numpy as np

from cattn._types import Array

NORM_EPSILON = 1e-6

# Rows of logits that are alive at once: they stay in cache, and memory does not grow with T.
LOGIT_CHUNK = 256


def rms_norm(x: Array, gain: Array) -> tuple[Array, Array]:
    """Divide each row by its root mean square: ``y = x * r * gain``, ``r = (mean(x²) + ε)^-½``.

    Parameters
    ----------
    x : ndarray, shape (T, d)
    gain : ndarray, shape (d,)

    Returns
    -------
    (y, r) : ndarrays, shapes (T, d) and (T, 1)
        The reciprocal root mean square ``r`` is what the backward needs.

    References
    ----------
    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm.layers import rms_norm
    >>> rms_norm(np.array([[3.0, 4.0]]), np.ones(2))[0].round(3)
    array([[0.849, 1.131]])
    """
    mean_square = np.einsum("td,td->t", x, x)[:, None] / x.shape[1]
    r = 1 / np.sqrt(mean_square + NORM_EPSILON, dtype=x.dtype)
    y = x * r
    y *= gain
    return y, r


def rms_norm_backward(dy: Array, x: Array, r: Array, gain: Array) -> tuple[Array, Array]:
    """Return ``(dx, dgain)``, shapes (T, d) and (d,).

    With ``n = x * r``: ``dn = dy * gain``, ``dx = r * (dn - n * mean(dn * n))``.
    """
    n = x * r
    dgain = np.einsum("td,td->d", dy, n)
    dn = dy * gain
    n *= np.einsum("td,td->t", dn, n)[:, None] / x.shape[1]
    dn -= n
    dn *= r
    return dn, dgain


def dropout_mask(
    shape: tuple[int, ...], rate: float, dtype: np.dtype, rng: np.random.Generator
) -> Array:
    """Return factors that are 0 with probability `rate` and ``1 / (1 - rate)`` otherwise.

    Multiplying by them keeps the expectation; the backward multiplies by the same factors.

    References
    ----------
    Srivastava et al., "Dropout" (2014), section 10 (the scaling at training time).

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm.layers import dropout_mask
    >>> mask = dropout_mask((1000,), 0.5, np.dtype("float32"), np.random.default_rng(0))
    >>> sorted(set(mask.tolist()))
    [0.0, 2.0]
    """
    kept = rng.random(shape, dtype=np.float32) >= rate
    return np.multiply(kept, 1 / (1 - rate), dtype=dtype)


def sum_rows_by_id(rows: Array, ids: Array, table: Array) -> None:
    """Add row t of `rows` to row ``ids[t]`` of `table`, in place: the gradient of ``table[ids]``.

    Sorting brings equal ids together, so that each row of the table is written once; the order of
    the sums is fixed.

    Parameters
    ----------
    rows : ndarray, shape (T, d)
    ids : ndarray of int, shape (T,)
    table : ndarray, shape (V, d)

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm.layers import sum_rows_by_id
    >>> table = np.zeros((3, 1))
    >>> sum_rows_by_id(np.array([[1.0], [2.0], [4.0]]), np.array([2, 0, 2]), table)
    >>> table.ravel()
    array([2., 0., 5.])
    """
    if not len(ids):
        return
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    table[ordered[starts]] += np.add.reduceat(rows[order], starts, axis=0)


def token_losses(x: Array, weight: Array, bias: Array, targets: Array) -> Array:
    """Return ``logsumexp(logits) - logits[target]`` with ``logits = x @ weight.T + bias``.

    Parameters
    ----------
    x : ndarray, shape (T, d)
    weight, bias : ndarrays, shapes (V, d) and (V,)
    targets : ndarray of int, shape (T,)

    Returns
    -------
    ndarray, shape (T,)
        The cross-entropy of each token, in nats.

    Examples
    --------
    >>> import numpy as np
    >>> from cattn.lm.layers import token_losses
    >>> x, weight, bias = np.zeros((1, 2)), np.zeros((4, 2)), np.zeros(4)
    >>> bool(np.isclose(token_losses(x, weight, bias, np.array([1]))[0], np.log(4)))
    True
    """
    losses = np.empty(len(x), x.dtype)
    for start in range(0, len(x), LOGIT_CHUNK):
        rows = slice(start, start + LOGIT_CHUNK)
        _, _, losses[rows] = _softmax_parts(x[rows], weight, bias, targets[rows])
    return losses


def linear_cross_entropy(
    x: Array,
    weight: Array,
    bias: Array,
    targets: Array,
    dweight: Array,
    dbias: Array,
    share: float = 1.0,
) -> tuple[float, Array]:
    """Return `share` times the mean of `token_losses`, and its gradient with respect to x.

    The logits are made, used and dropped in chunks of rows. With probabilities
    ``p = softmax(logits)``: ``dlogits = (p - onehot(target)) * share / T``,
    ``dx = dlogits @ weight``, ``dweight = dlogits.T @ x``, ``dbias = dlogits`` summed over rows.

    Parameters
    ----------
    x, weight, bias, targets
        As for `token_losses`.
    dweight, dbias : ndarrays, shapes (V, d) and (V,)
        The parameters' gradients are added here.
    share : float

    Returns
    -------
    (loss, dx) : float and ndarray, shape (T, d)
    """
    factor = share / len(x)
    total = 0.0
    dx = np.empty_like(x)
    for start in range(0, len(x), LOGIT_CHUNK):
        rows = slice(start, start + LOGIT_CHUNK)
        e, total_e, losses = _softmax_parts(x[rows], weight, bias, targets[rows])
        total += float(losses.sum(dtype=np.float64))
        # dlogits = (e - total_e * onehot) * r: the factor r of a row is applied to the narrow
        # operands, which saves two passes over the (rows, V) array.
        e[np.arange(len(e)), targets[rows]] -= total_e
        r = (factor / total_e).astype(x.dtype)
        dx[rows] = (e @ weight) * r[:, None]
        dweight += e.T @ (x[rows] * r[:, None])
        dbias += r @ e
    return total * factor, dx


def _softmax_parts(
    x: Array, weight: Array, bias: Array, targets: Array
) -> tuple[Array, Array, Array]:
    """Return ``e = exp(logits - max)`` (T, V), its row sums (T,) and the losses (T,)."""
    logits = x @ weight.T
    logits += bias
    logits -= logits.max(axis=1, keepdims=True)
    target_logits = logits[np.arange(len(x)), targets]
    e = np.exp(logits, out=logits)
    total_e = e.sum(axis=1)
    return e, total_e, np.log(total_e) - target_logits
