from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from cattn._types import Array

_Starts = tuple[ArrayLike, ArrayLike] | None

def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    cu_seqlens: _Starts,
    options: Mapping[str, Any],
    return_lse: bool,
    return_weights: bool,
    out: Array | None,
    /,
) -> tuple[Array, Array | None, Array | None]: ...
def attention_backward(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    dlse: ArrayLike | None,
    cu_seqlens: _Starts,
    grads: set[str],
    options: Mapping[str, Any],
    /,
) -> dict[str, Array]: ...
def attention_jvp(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    dq: ArrayLike,
    dk: ArrayLike,
    dv: ArrayLike,
    cu_seqlens: _Starts,
    options: Mapping[str, Any],
    /,
) -> tuple[Array, Array]: ...
def dropout_mask(shape: Sequence[int], dropout: float, seed: int | None, /) -> Array: ...
def rope(
    x: ArrayLike,
    cos: Array,
    sin: Array,
    interleaved: bool,
    inverse: bool,
    layout: str,
    num_threads: int | None,
    /,
) -> Array: ...
def as_array(name: str, object: ArrayLike, /) -> Array: ...
def set_num_threads(n: int | None, /) -> None: ...
def get_num_threads() -> int: ...
def version() -> str: ...
def isa() -> str: ...
def set_isa(name: str, /) -> None: ...
def available_isas() -> list[str]: ...
