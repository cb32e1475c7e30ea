"""Threads that take whole windows each.

A step's matrix products are too short for a BLAS to share well: its threads wait for each other
after every one of them, and much longer where other programs want the cores too. Windows are
independent, so threads that take some each meet once a step.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from cattn import get_num_threads

Map = Callable[..., Iterator[Any]]  #: like the built-in `map`


@contextmanager
def parallel_map() -> Iterator[Map]:
    """Provide a `map` on as many threads as `cattn.get_num_threads` says; results come in order.

    Meanwhile the BLAS, in the whole process, keeps to the thread that calls it. Without the
    threadpoolctl package it cannot be told to: then it has its own threads, and this is `map`.

    Examples
    --------
    >>> from cattn.lm.parallel import parallel_map
    >>> with parallel_map() as map:
    ...     list(map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    try:
        limits = importlib.import_module("threadpoolctl").threadpool_limits
    except ImportError:
        yield map
        return
    # What NumPy says of overflow is each thread's own setting; the caller looks at the results.
    pool = ThreadPoolExecutor(get_num_threads(), initializer=partial(np.seterr, all="ignore"))
    with limits(1, user_api="blas"), pool:
        yield pool.map
