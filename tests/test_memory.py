"""Memory is O(L·D): a sequence whose scores would take 17 GB needs some tens of megabytes."""

import sys

import pytest
from support import assert_ran, run_python

CODE = """
import resource, numpy as np, cattn
cattn.set_num_threads(2)
length, size = 65536, 16
q, k, v, dout = np.random.default_rng(0).standard_normal((4, length, size), dtype=np.float32)
one = q.nbytes / 1024  # ru_maxrss counts kilobytes
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
options = {"window": (31, 0), "softcap": 9.0, "dropout": 0.1, "seed": 1}
out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True)
forward = (peak() - before) / one
cattn.attention_backward(dout, q, k, v, out, lse, **options)
backward = (peak() - before) / one
# Forward: out, keys and values packed (to panels of 32 columns), lse. Backward: also dq, dk, dv,
# both sides packed twice over and the accumulators of dq.
assert forward < 8, forward
assert backward < 32, backward
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's high-water mark")
def test_peak_of_a_long_sequence():
    assert_ran(run_python(CODE))
