"""What the functions return."""

from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]


class AttentionResult(NamedTuple):
    """Result of `attention` when a ``return_`` flag is set; what was not asked for is None."""

    out: Array
    lse: Array | None = None
    weights: Array | None = None


class AttentionGrads(NamedTuple):
    """Result of `attention_backward`; what was not asked for is None."""

    dq: Array | None = None
    dk: Array | None = None
    dv: Array | None = None
    dbias: Array | None = None
    dsinks: Array | None = None
