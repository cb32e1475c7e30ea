"""Memory is O(L·D): a sequence whose scores would take 17 GB needs some tens of megabytes.
And that of large results is kept for the next ones, never while somebody can see it."""

import gc
import sys
import threading

import numpy as np
import pytest
from support import assert_ran, run_python

import cattn
from cattn import _core

#: Bytes of one result of `attend`.
RESULT = 4 << 20

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
# the query side packed twice over and the accumulators of dq.
assert forward < 8, forward
assert backward < 20, backward
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's high-water mark")
def test_peak_of_a_long_sequence():
    assert_ran(run_python(CODE))


PADDING = """
import resource, numpy as np, cattn
length = 500_000
q = np.ones((1, length, 8), np.float32)
padding = np.arange(length) < length - 1000
out = np.empty_like(q)
def peak_with(**options):
    cattn.attention(q, q, q, window=(64, 0), out=out, num_threads=1, **options)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
without = peak_with()
more = peak_with(mask=padding) - without
# A byte for each block of scores would be 13 MB, or 77 with small blocks.
assert more < 4, more
assert (out[0, -900:] == 0).all() and np.allclose(out[0, :-1000], 1)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's high-water mark")
@pytest.mark.parametrize("isa", _core.available_isas())
def test_a_mask_of_keys_takes_no_memory_for_all_pairs(isa):
    assert_ran(run_python(PADDING, env={"CATTN_ISA": isa}))


def attend(number, rows=RESULT // 256):
    """A new array (rows, 64) of this number, made by attention to one key."""
    q = np.zeros((rows, 64), np.float32)
    return cattn.attention(q, q[:1], np.full((1, 64), number, np.float32))


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_of_a_dead_result_serves_the_next():
    attend(1)
    gc.collect()
    places = set()
    for number in range(4):
        result = attend(number)
        assert (result == number).all()
        places.add(address(result))
        del result
    assert len(places) == 1


def test_living_results_have_their_own_memory():
    """Whatever keeps a result alive, a part of it for instance, keeps its memory."""
    results = [attend(number) for number in range(3)]
    parts = [attend(number)[5:, ::2].T for number in range(3, 6)]
    whole = [memoryview(attend(number)) for number in range(6, 9)]
    attend(99)
    for number, array in enumerate([*results, *parts, *map(np.asarray, whole)]):
        assert (array == number).all()


def test_results_are_ordinary_arrays():
    for rows in (1, RESULT // 256):
        result = attend(3, rows)
        assert result.flags.writeable
        assert result.flags.c_contiguous
        assert result.flags.aligned
        result += 1
        assert (result == 4).all()


def test_memory_fits_what_takes_it():
    """A much smaller result does not hold a large block."""
    large = attend(1, 16 * RESULT // 256)
    place = range(address(large), address(large) + large.nbytes)
    del large
    assert address(attend(2)) not in place


def test_threads_do_not_share_results():
    failures = []

    def work(number):
        for turn in range(8):
            mine = attend(8 * number + turn)
            if not (mine == 8 * number + turn).all():
                failures.append((number, turn))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


KEPT = """
import numpy as np, cattn
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
def attend(megabytes):
    q = np.zeros((megabytes << 12, 64), np.float32)
    return cattn.attention(q, q[:1], q[:1], num_threads=1)
attend(4)
before = resident()
results = [attend(8) for _ in range(40)]
assert resident() - before > 300e6
del results
assert resident() - before < 110e6, resident() - before  # 64 MiB are kept
del before
large = attend(100)
before = resident()
del large
assert before - resident() > 100e6
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_little_memory_is_kept():
    assert_ran(run_python(KEPT))


FORK = """
import os, threading, numpy as np, cattn
q = np.zeros((1 << 14, 64), np.float32)
def work():
    while True:
        cattn.attention(q, q[:1], q[:1], num_threads=1)
threading.Thread(target=work, daemon=True).start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        for _ in range(2):
            cattn.attention(q, q[:1], q[:1], num_threads=1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_fork_while_results_are_made():
    assert_ran(run_python(FORK))
