"""Gradients and tangents in float64 against differences of the output, over random options.

Each input in turn moves along random directions. A central difference with step h is off by some
h² for the curvature and some 2⁻⁵³ / h for rounding, both times the size of what is differenced: at
h = 1e-5 some 1e-10 of it, and 1e-7 leaves room for third derivatives that exceed 1.
"""

import numpy as np
import pytest
from option_sets import draw

STEP = 1e-5
TOLERANCE = 1e-7


def differenced(f, arrays, moves):
    """The central difference of f as the named arrays move."""

    def at(step):
        return f({**arrays, **{n: arrays[n] + step * move for n, move in moves.items()}})

    return (at(STEP) - at(-STEP)) / (2 * STEP)


@pytest.mark.parametrize("seed", range(1000, 1150))
def test_gradients(module, seed):
    case = draw(seed, np.float64)
    result = case.attention(module, return_lse=True)
    finite = np.isfinite(result.lse)
    dlse = np.where(finite, case.dlse, 0)
    gradients = module.attention_backward(
        case.dout, out=result.out, lse=result.lse, dlse=dlse, grads=list(case.arrays),
        **case.arrays, **case.options,
    )  # fmt: skip

    def loss(arrays):
        out, lse, _ = module.attention(**arrays, **case.options, return_lse=True)
        return (case.dout * out).sum() + (dlse * np.where(finite, lse, 0)).sum()

    rng = np.random.default_rng(seed)
    for name, array in case.arrays.items():
        gradient = getattr(gradients, f"d{name}")
        assert gradient.shape == array.shape
        for _ in range(3):
            move = np.where(np.isfinite(array), rng.standard_normal(array.shape), 0)
            expected = differenced(loss, case.arrays, {name: move})
            size = np.abs(gradient * move).sum() + np.abs(case.dout).sum() + np.abs(dlse).sum()
            assert abs((gradient * move).sum() - expected) <= TOLERANCE * size, name


@pytest.mark.parametrize("seed", range(1000, 1150))
def test_tangents(module, seed):
    case = draw(seed, np.float64)
    rng = np.random.default_rng(seed)
    moves = {name: rng.standard_normal(case.arrays[name].shape) for name in "qkv"}
    out, dout = module.attention_jvp(
        *(case.arrays[name] for name in "qkv"), *moves.values(), **case.rest()
    )
    np.testing.assert_allclose(out, case.attention(module), rtol=1e-12, atol=1e-13)
    expected = differenced(
        lambda arrays: module.attention(**arrays, **case.options), case.arrays, moves
    )
    size = 1 + np.abs(dout).max(initial=0)
    np.testing.assert_allclose(dout, expected, rtol=0, atol=TOLERANCE * size)
