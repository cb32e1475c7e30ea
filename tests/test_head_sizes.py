"""Head sizes shortly behind a multiple of 32, whose parts share the last steps."""

import numpy as np
import pytest
from cases import Case, check_backward, check_forward

HEADS = {"hq": 2, "hkv": 1}


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("precision", ["highest", "high", None])
@pytest.mark.parametrize(
    ("head_dim", "value_dim"),
    [(33, 64), (40, 41), (45, 48), (48, 40), (49, 33), (72, 80), (80, 72), (104, 16), (16, 140)],
)
def test_results_are_within_the_bound(record, precision, head_dim, value_dim):
    """Enough queries and keys for tiles; `None` is float16."""
    dtype = np.dtype(np.float16 if precision is None else np.float32)
    for lq, lk, causal in ((130, 161, False), (140, 140, True)):
        case = Case(
            lq, lk, head_dim, value_dim, causal=causal, precision=precision or "highest", **HEADS
        )
        check_forward(case, dtype, record)
        check_backward(case, dtype, record)
