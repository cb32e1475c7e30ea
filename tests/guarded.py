"""Run as a script: attention on arrays that touch unreadable pages, on one instruction set.

Every array lies right before or right after a page without access, so reading or writing a byte
outside of it ends the process. The case is printed before it runs: the last line tells which one it
was. Arguments: the instruction set, the side of the page, and kinds of numbers: "dtype" or
"dtype:precision". With "overrun" for a side the script itself reads past the end of such an array.
"""

import ctypes
import faulthandler
import itertools
import mmap
import sys

import numpy as np

import cattn
from cattn import _core

PAGE = mmap.PAGESIZE
PROT_NONE = 0
libc = ctypes.CDLL(None, use_errno=True)
keep = []  # the memory of the arrays of one case


def guarded(array, side):
    """A copy of `array` that ends at an unreadable page, or begins after one."""
    array = np.asarray(array, order="C")
    pages = -(-array.nbytes // PAGE)
    region = mmap.mmap(-1, (pages + 2) * PAGE)
    keep.append(region)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for start in (address, address + (pages + 1) * PAGE):
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE if side == "after" else (pages + 1) * PAGE - array.nbytes
    copy = np.frombuffer(region, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy


def release():
    """Gives the pages of a case back, once its arrays are gone."""
    for region in keep:
        region.close()
    keep.clear()


def cases():
    # Around vectors, register tiles and blocks, and lengths that are no multiple of anything.
    lengths = [(1, 1), (3, 2), (5, 9), (13, 17), (8, 16), (33, 31), (49, 65), (145, 129), (7, 260)]
    lengths += [(1, 300), (2, 1100)]  # few queries: with more keys than one part has
    sizes = [(1, 1), (3, 5), (8, 4), (17, 16), (33, 7), (64, 65)]
    options = ["dense", "causal", "mask", "bias", "columns", "heads", "lengths"]
    for i, ((lq, lk), (d, dv), option) in enumerate(itertools.product(lengths, sizes, options)):
        yield i, lq, lk, d, dv, option


def named(name):
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def run(side, kind):
    name, _, precision = kind.partition(":")
    dtype, count = named(name), 0
    for seed, lq, lk, d, dv, option in cases():
        print(side, kind, (lq, lk), (d, dv), option, flush=True)
        rng = np.random.default_rng(seed)

        def draw(*shape, rng=rng):
            return rng.standard_normal(shape).astype(dtype)

        def number(*shape, rng=rng):
            return rng.random(shape).astype(np.float32)

        q, k, v, dout = draw(2, lq, d), draw(1, lk, d), draw(1, lk, dv), draw(2, lq, dv)
        options = {
            "dense": {},
            "causal": {"causal": True, "causal_offset": np.asarray(lk // 2)},
            "mask": {"mask": rng.random((2, lq, lk)) < 0.7},
            "bias": {"bias": draw(lq, lk)},
            "columns": {"mask": rng.random(lk) < 0.7, "bias": draw(lq, 1)},
            "heads": {"alibi_slopes": number(2), "sinks": number(2), "softcap": 3.0},
            "lengths": {"kv_lengths": np.asarray(lk // 2), "dropout": 0.3, "seed": seed},
        }[option]
        if precision:
            options["precision"] = precision
        grads = ["q", "k", "v", *({"bias", "sinks"} & options.keys())]
        expected = cattn.attention(q, k, v, **options, return_lse=True, return_weights=True)
        dlse = dout[..., 0].astype(expected.lse.dtype)
        gradients = cattn.attention_backward(
            dout, q, k, v, *expected[:2], dlse=dlse, grads=grads, **options
        )

        safe = {
            name: guarded(option, side) if isinstance(option, np.ndarray) else option
            for name, option in options.items()
        }
        q, k, v, dout, out, lse, dlse = (
            guarded(a, side) for a in (q, k, v, dout, *expected[:2], dlse)
        )
        target = guarded(np.full_like(out, np.nan), side)
        alone = cattn.attention(q, k, v, **safe)  # of few queries with kernels of their own
        assert np.allclose(alone.astype("f8"), expected.out.astype("f8"), atol=0.05), "alone"
        actual = cattn.attention(q, k, v, **safe, return_lse=True, return_weights=True, out=target)
        again = cattn.attention_backward(dout, q, k, v, out, lse, dlse=dlse, grads=grads, **safe)
        for a, e in zip((*actual, *again), (*expected, *gradients), strict=True):
            assert e is None or a.tobytes() == e.tobytes(), "differs from unguarded arrays"
        count += 1
        del q, k, v, dout, out, lse, dlse, target, alone, actual, again, safe
        release()
    return count


def main(isa, side, *kinds):
    faulthandler.enable()
    _core.set_isa(isa)
    if side == "overrun":
        array = guarded(np.ones(10, np.float32), "before")
        print("reading past the end", flush=True)
        print(np.lib.stride_tricks.as_strided(array, (11,), (4,)).sum())
        return
    print("completed", sum(run(side, kind) for kind in kinds))


if __name__ == "__main__":
    main(*sys.argv[1:])
