"""Many threads at once, fork after use, the GIL released, no floating-point state changed."""

import ctypes
import ctypes.util
import sys
import threading
import time

import numpy as np
import pytest
from cases import Case, problem
from support import assert_ran, assert_same, normal, run_python

import cattn

posix = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")


@pytest.mark.usefixtures("isa")
def test_python_threads_at_once(dtype):
    """Each of several threads gets its own result, as if it were alone."""
    cases = [Case(150 + 10 * i, 200, 16, 16, hq=2, hkv=1, causal=i % 2 == 0) for i in range(4)]

    def compute(case):
        q, k, v, options, dout, _ = problem(case, dtype)
        out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True, num_threads=2)
        gradients = cattn.attention_backward(dout, q, k, v, out, lse, **options, num_threads=2)
        return (out, lse, *gradients)

    expected = [compute(case) for case in cases]
    results: list = [[] for _ in cases]
    barrier = threading.Barrier(len(cases))

    def work(i):
        barrier.wait()
        for _ in range(5):
            results[i].append(compute(cases[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, one in zip(results, expected, strict=True):
        assert len(result) == 5
        for again in result:
            assert_same(again, one)


@pytest.mark.usefixtures("isa")
def test_errors_in_threads_stay_apart(dtype):
    """Each thread gets the message of its own mistake."""
    q = normal(5, 4, dtype=dtype)
    messages: dict[int, set[str]] = {}

    def work(size):
        messages[size] = set()
        for _ in range(200):
            try:
                cattn.attention(q, np.ones((5, size), dtype), q)
            except ValueError as error:
                messages[size].add(str(error))

    threads = [threading.Thread(target=work, args=(size,)) for size in (11, 22, 33)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for size, texts in messages.items():
        assert len(texts) == 1
        assert f"(5, {size})" in texts.pop()


def test_the_gil_is_released(dtype):
    """Another Python thread goes on while one long call runs."""
    ticks: list[float] = []
    stop = threading.Event()

    def tick():
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        for direction in ("forward", "backward"):
            length, taken = 256, 0.0
            while taken < 0.3:
                length *= 2
                q = normal(length, 64, dtype=dtype)
                if direction == "backward":
                    out, lse, _ = cattn.attention(q, q, q, return_lse=True, num_threads=1)
                start = time.perf_counter()
                if direction == "forward":
                    cattn.attention(q, q, q, num_threads=1)
                else:
                    cattn.attention_backward(q, q, q, q, out, lse, num_threads=1)
                end = time.perf_counter()
                taken = end - start
            # The middle of the call: neither the work before the kernel nor after it.
            inside = sum(start + 0.25 * taken < t < end - 0.25 * taken for t in list(ticks))
            assert inside >= 5, f"{inside} ticks in the middle of {taken:.2f} s of {direction}"
    finally:
        stop.set()
        thread.join()


OTHERS_TEAM = """
import ctypes, os, signal, sys
import numpy as np
if sys.argv[1] == "before":
    import cattn
gomp = ctypes.CDLL("libgomp.so.1")
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda data: None)
gomp.GOMP_parallel(region, None, 2, 0)
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    import cattn
    q = np.random.default_rng(0).standard_normal((4, 300, 32), dtype=np.float32)
    for _ in range(3):
        ok = (cattn.attention(q, q, q, num_threads=2) == cattn.attention(q, q, q)).all()
    grandchild = os.fork()
    if grandchild == 0:
        signal.alarm(10)
        cattn.attention(q, q, q, num_threads=2)
        os._exit(0)
    ok = ok and os.waitpid(grandchild, 0)[1] == 0
    os._exit(0 if ok else 1)
print(os.waitpid(pid, 0)[1])
"""


@posix
@pytest.mark.skipif(
    not ctypes.util.find_library("gomp"), reason="another library's OpenMP is GCC's"
)
@pytest.mark.parametrize("imported", ["before", "after"])
def test_a_child_of_a_process_in_which_others_used_openmp(imported):
    """Whether the library was loaded when it forked or not."""
    process = run_python(OTHERS_TEAM, imported)
    assert_ran(process)
    assert process.stdout.split() == ["0"]


FEW_THREADS = """
import resource, numpy as np, cattn
q = np.random.default_rng(0).standard_normal((1, 64, 512, 64), dtype=np.float32)
expected = cattn.attention(q, q, q, num_threads=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
for _ in range(2):
    assert (cattn.attention(q, q, q, num_threads=64) == expected).all()
print("alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux counts it")
def test_threads_that_cannot_be_had():
    """libgomp ends a process whose threads the system does not start."""
    process = run_python(FEW_THREADS)
    assert_ran(process)
    assert process.stdout.split() == ["alive"]


FORK = """
import os, signal, sys, time
import numpy as np
import cattn

def compute(seed):
    q, k, v = np.random.default_rng(seed).standard_normal((3, 4, 300, 32), dtype=np.float32)
    out, lse, _ = cattn.attention(q, k, v, return_lse=True, num_threads=3)
    return (out, lse, *cattn.attention_backward(out, q, k, v, out, lse, num_threads=3)[:3])

def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))

def in_child(work):
    pid = os.fork()
    if pid == 0:
        ok = False
        try:
            ok = work()
        finally:
            os._exit(0 if ok else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hangs"

expected = compute(0)
"""


@posix
def test_fork_after_use():
    """A child may call, and so may its child, a thread of it, and the parent afterwards."""
    code = (
        FORK
        + """
import threading

def in_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(same(compute(0), expected)))
    thread.start()
    thread.join()
    return results == [True]

def in_both():
    return same(compute(0), expected) and same(compute(0), expected) and in_thread()

for name, work in {
    "child": in_both,
    "grandchild": lambda: in_child(in_both) == 0 and in_both(),
    "thread of a child": in_thread,
}.items():
    code = in_child(work)
    assert code == 0, f"{name}: {code}"
assert same(compute(0), expected)
"""
    )
    assert_ran(run_python(code))


@posix
def test_fork_before_use():
    code = (
        FORK.replace("expected = compute(0)", "expected = None")
        + """
assert in_child(lambda: same(compute(1), compute(1))) == 0
expected = compute(0)
assert in_child(lambda: same(compute(0), expected)) == 0
"""
    )
    assert_ran(run_python(code))


@posix
def test_fork_while_another_thread_computes():
    """The child starts from one thread of many; what the others held does not block it."""
    code = (
        FORK
        + """
import threading

stop = threading.Event()

def busy():
    while not stop.is_set():
        compute(1)

threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads:
    thread.start()
try:
    for _ in range(5):
        code = in_child(lambda: same(compute(0), expected))
        assert code == 0, code
finally:
    stop.set()
    for thread in threads:
        thread.join()
"""
    )
    assert_ran(run_python(code))


@posix
def test_multiprocessing_by_fork():
    code = (
        FORK
        + """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    results = pool.map_async(compute, [0, 1, 0]).get(timeout=60)
assert same(results[0], expected) and same(results[2], expected)
"""
    )
    assert_ran(run_python(code))


@pytest.mark.usefixtures("isa")
def test_floating_point_state_is_left_alone(dtype):
    """Subnormals, rounding and NumPy's error settings are what they were."""
    tiny = np.finfo(dtype).smallest_subnormal
    q, k, v, options, dout, _ = problem(Case(130, 260, 16, 16, causal=True), dtype)
    mode = ctypes.CDLL(ctypes.util.find_library("m")).fegetround
    rounding, settings = mode(), np.geterr()
    q = q * dtype.type(1e3)  # exponentials underflow
    for threads in (1, 2):
        with np.errstate(all="raise"):
            during = np.geterr()
            out, lse, _ = cattn.attention(q, k, v, **options, return_lse=True, num_threads=threads)
            cattn.attention_backward(dout, q, k, v, out, lse, **options, num_threads=threads)
            assert np.geterr() == during
            assert (np.ones(8, dtype) + np.ones(8, dtype) == 2).all()  # raises on a stale flag
        assert mode() == rounding
        assert np.geterr() == settings
        subnormal = np.full(16, tiny * 8, dtype)
        assert (subnormal / dtype.type(2) == tiny * 4).all()
        assert (subnormal + subnormal == tiny * 16).all()


@pytest.mark.usefixtures("isa")
def test_subnormal_values(dtype):
    """Subnormal values are averaged, not flushed to zero."""
    tiny = np.finfo(dtype).smallest_subnormal
    v = np.full((40, 8), tiny * 1024, dtype)
    q = np.zeros((3, 4), dtype)
    out = cattn.attention(q, np.zeros((40, 4), dtype), v)
    np.testing.assert_allclose(out / tiny, 1024, rtol=0.05)


@pytest.mark.parametrize("busy_with", ["forward", "backward", "copied input", "copied output"])
def test_interpreter_exit_amid_calls(busy_with):
    """The interpreter ends while daemon threads compute: no crash, no message, no hang."""
    code = """
import sys, threading
import numpy as np, cattn

q = np.zeros((1, 256, 64), np.float32)
out, lse, _ = cattn.attention(q, q, q, return_lse=True)
many = np.zeros((2**14, 64), np.float32)
columns = np.zeros((64, 2**14), np.float32).T  # the last axis is not contiguous
one = np.zeros((1, 64), np.float32)
calls = {
    "forward": lambda: cattn.attention(q, q, q, num_threads=1),
    "backward": lambda: cattn.attention_backward(q, q, q, q, out, lse, num_threads=1),
    "copied input": lambda: cattn.attention(columns, one, one, num_threads=1),
    "copied output": lambda: cattn.attention(many, one, one, out=many, num_threads=1),
}
call, started = calls[sys.argv[1]], threading.Barrier(5)

def work():
    call()
    started.wait()
    while True:
        call()

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
started.wait()
"""
    for _ in range(5):
        process = run_python(code, busy_with)
        assert_ran(process)
        assert process.stdout == process.stderr == ""


def test_nothing_is_printed():
    code = """
import numpy as np, cattn
q = np.ones((2, 300, 16), np.float32)
out, lse, _ = cattn.attention(q, q, q, return_lse=True, num_threads=2)
cattn.attention_backward(out, q, q, q, out, lse, num_threads=2)
try:
    cattn.attention(q, q[..., :3], q)
except ValueError:
    pass
"""
    process = run_python(code)
    assert_ran(process)
    assert process.stdout == process.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_memory_does_not_grow_with_the_scores(direction):
    """At L = 16384 the scores would take 1 GiB; the peak grows by some arrays of L x D."""
    code = """
import sys
import numpy as np, cattn

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

length = 16384
q, k, v = np.random.default_rng(0).standard_normal((3, length, 16), dtype=np.float32)
out, lse, _ = cattn.attention(q[:300], k[:300], v[:300], return_lse=True)
cattn.attention_backward(out, q[:300], k[:300], v[:300], out, lse)
if sys.argv[1] == "backward":
    out, lse = np.zeros_like(v), np.full(length, 10, np.float32)
before = peak()
if sys.argv[1] == "forward":
    cattn.attention(q, k, v, causal=True, return_lse=True)
else:
    cattn.attention_backward(v, q, k, v, out, lse, causal=True)
print(peak() - before)
"""
    process = run_python(code, direction)
    assert_ran(process)
    kilobytes = int(process.stdout)
    assert kilobytes < 128 * 1024, f"{kilobytes} KiB"
