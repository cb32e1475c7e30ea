"""The options that all attention functions share."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict, TypeVar, get_type_hints

from numpy.typing import ArrayLike

Layout = Literal["bhld", "blhd"]
Precision = Literal["highest", "high", "medium"]
Window = Sequence[int | None]


class Options(TypedDict, total=False):
    """Keyword arguments as `attention` documents them."""

    mask: ArrayLike | None
    bias: ArrayLike | None
    causal: bool
    causal_offset: ArrayLike | None
    window: Window | None
    scale: float | None
    softcap: float | None
    alibi_slopes: ArrayLike | None
    sinks: ArrayLike | None
    kv_lengths: ArrayLike | None
    dropout: float
    seed: int | None
    precision: Precision
    layout: Layout
    num_threads: int | None


#: Of those that are not None by default.
DEFAULTS: Options = {"causal": False, "dropout": 0.0, "precision": "highest", "layout": "bhld"}

_KINDS = get_type_hints(Options)
_PARAMETERS = [
    inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=DEFAULTS.get(name),
        annotation=getattr(kind, "__forward_arg__", kind),
    )
    for name, kind in Options.__annotations__.items()
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def show_options(*, without: Sequence[str] = ()) -> Callable[[_Function], _Function]:
    """Let `help` and `inspect.signature` show each of a function's ``**options``.

    The function itself takes them as a dict, since CPython looks up the default of every keyword
    argument that a call leaves out: half a microsecond for all of these.
    """
    options = [p for p in _PARAMETERS if p.name not in without]

    def show(function: _Function) -> _Function:
        own = inspect.signature(function)
        named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        first = next((i for i, p in enumerate(named) if p.kind is p.KEYWORD_ONLY), len(named))
        parameters = [*named[:first], *options, *named[first:]]
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        # For `typing.get_type_hints`: Unpack is known to type checkers only.
        del function.__annotations__["options"]
        function.__annotations__ |= {p.name: _KINDS[p.name] for p in options}
        return function

    return show


def as_integer(name: str, number: object) -> int:
    """Read an argument that is to be an integer of any type but bool."""
    try:
        if isinstance(number, bool):
            raise TypeError
        return operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: is {number!r}, expected an integer") from None


#: What `attention_backward` can differentiate by.
GRADIENTS = ("q", "k", "v", "bias", "sinks")


def wanted_gradients(grads: Sequence[str]) -> set[str]:
    """Check the words of `grads`."""
    if not isinstance(grads, Iterable):
        raise TypeError(f"grads: is {grads!r}, expected words out of {list(GRADIENTS)}")
    words = [grads] if isinstance(grads, str) else list(grads)
    for word in words:
        if not isinstance(word, str) or word not in GRADIENTS:
            raise ValueError(f"grads: contains {word!r}, expected some of {list(GRADIENTS)}")
    return set(words)
