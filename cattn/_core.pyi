from numpy.typing import ArrayLike

from cattn._types import Array

def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    mask: ArrayLike | None,
    bias: ArrayLike | None,
    causal: bool,
    causal_offset: ArrayLike | None,
    scale: float | None,
    layout: str,
    return_lse: bool,
    return_weights: bool,
    out: Array | None,
    num_threads: int | None,
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
    want_q: bool,
    want_k: bool,
    want_v: bool,
    want_bias: bool,
    mask: ArrayLike | None,
    bias: ArrayLike | None,
    causal: bool,
    causal_offset: ArrayLike | None,
    scale: float | None,
    layout: str,
    num_threads: int | None,
    /,
) -> tuple[Array | None, Array | None, Array | None, Array | None]: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def version() -> str: ...
def isa() -> str: ...
def set_isa(name: str, /) -> None: ...
def available_isas() -> list[str]: ...
