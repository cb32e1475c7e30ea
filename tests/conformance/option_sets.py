"""Random shapes and sets of options, each from its seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class OptionSet(NamedTuple):
    arrays: dict[str, Any]  # q, k, v and, if drawn, bias and sinks: what has a gradient
    options: dict[str, Any]
    dout: Any  # in the layout of the output
    dlse: Any  # (..., Hq, Lq)

    def attention(self, module: Any, **more: Any) -> Any:
        return module.attention(**self.arrays, **self.options, **more)

    def rest(self) -> dict[str, Any]:
        """All options but q, k and v, the differentiable ones too."""
        return {n: a for n, a in self.arrays.items() if n not in "qkv"} | self.options


def draw(seed: int, dtype: Any) -> OptionSet:
    """Every option is in about a third of the sets, several together in most of them."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    def chance(p: float = 1 / 3) -> bool:
        return bool(rng.random() < p)

    batch = [(), (1,), (2,), (3,), (2, 3)][rng.integers(5)]
    kv_heads, group = (int(n) for n in rng.integers(1, 4, 2))
    heads = kv_heads * group
    lq, lk = (int(n) for n in rng.integers(1, 9 if chance(0.8) else 70, 2))
    d, dv = (int(n) for n in rng.integers(1, 9 if chance(0.8) else 40, 2))
    pairs = (*batch, heads, lq, lk)
    arrays = {
        "q": normal(*batch, heads, lq, d),
        "k": normal(*batch, kv_heads, lk, d),
        "v": normal(*batch, kv_heads, lk, dv),
    }
    if batch and chance(0.2):
        arrays["k"], arrays["v"] = arrays["k"][:1].copy(), arrays["v"][:1].copy()

    def plane() -> tuple[int, ...]:
        """A shape that broadcasts to the pairs."""
        shape = tuple(1 if chance() else n for n in pairs)
        return shape[rng.integers(len(pairs)) :] if chance() else shape

    options: dict[str, Any] = {}
    if chance():
        options["mask"] = rng.random(plane()) < 0.7
    if chance():
        bias = normal(*plane())
        arrays["bias"] = np.where(rng.random(bias.shape) < 0.1, -np.inf, bias).astype(dtype)
    if chance():
        options["causal"] = True
    if chance():
        sides = [None, -1, 0, 1, 3, 20]
        options["window"] = tuple(sides[rng.integers(len(sides))] for _ in range(2))
    if chance():
        options["alibi_slopes"] = normal(*(batch if chance(0.5) else ()), heads)
    if chance():
        options["kv_lengths"] = (
            rng.integers(0, lk + 1, batch) if batch else int(rng.integers(lk + 1))
        )
    bounded = any(side is not None and side >= 0 for side in options.get("window", ()))
    if chance(0.5) and (bounded or options.keys() & {"causal", "alibi_slopes"}):
        options["causal_offset"] = (
            rng.integers(-2, lk + 1, batch)
            if batch and chance(0.5)
            else int(rng.integers(-2, lk + 1))
        )
    if chance():
        options["scale"] = float(rng.choice([0.0, 0.5, -1.0, 2.0]))
    if chance():
        options["softcap"] = float(rng.choice([0.5, 2.0, 30.0]))
    if chance():
        sinks = normal(heads)
        arrays["sinks"] = np.where(rng.random(heads) < 0.1, -np.inf, sinks).astype(dtype)
    if chance():
        options["dropout"], options["seed"] = float(rng.uniform(0.1, 0.9)), int(rng.integers(2**63))
    dout, dlse = normal(*batch, heads, lq, dv), normal(*batch, heads, lq)
    if chance():
        options["layout"] = "blhd"
        arrays |= {name: arrays[name].swapaxes(-2, -3) for name in "qkv"}
        dout = dout.swapaxes(-2, -3)
    return OptionSet(arrays, options, dout, dlse)
