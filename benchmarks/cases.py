"""The table of cases: what is computed, on what shapes, and which of them a quick run measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Direction = Literal["forward", "backward"]

#: The fastest instruction set of the machine, whichever that is.
BEST = "best"


@dataclass(frozen=True)
class Case:
    """One attention call: self-attention of `batch` × `heads` heads over `length` positions.

    With `queries` there are fewer of those than keys, as where a text is continued.
    """

    direction: Direction
    heads: int
    length: int
    head_dim: int
    causal: bool = False
    kv_heads: int | None = None
    """Heads of keys and values; None is as many as `heads`."""
    batch: int = 1
    queries: int | None = None
    """Of each head; None is as many as `length`."""
    mask: bool = False
    """A bool mask of queries and keys, one for all heads, that lets most pairs through."""
    bias: bool = False
    """Numbers to add to the scores, some for each head."""
    dtype: str = "float32"
    precision: str = "highest"
    """Of float32 products; peers have only the highest."""
    isa: str = BEST
    threads: int | None = None
    """None is all the cores that the run may use."""
    quick: bool = False
    """Part of the quick run too, not of the full one only."""

    @property
    def name(self) -> str:
        """What tables call it; instruction set and threads stand above the table."""
        words: list[str] = [self.direction]
        if self.batch > 1:
            words.append(f"B{self.batch}")
        grouped = self.kv_heads not in (None, self.heads)
        words.append(f"H{self.heads}/{self.kv_heads}" if grouped else f"H{self.heads}")
        few = [] if self.queries is None else [f"Q{self.queries}"]
        words += [*few, f"L{self.length}", f"D{self.head_dim}"]
        if self.causal:
            words.append("causal")
        if self.mask:
            words.append("mask")
        if self.bias:
            words.append("bias")
        if self.dtype != "float32":
            words.append(self.dtype)
        if self.precision != "highest":
            words.append(self.precision)
        return " ".join(words)

    @property
    def query_length(self) -> int:
        """How many queries each head has."""
        return self.length if self.queries is None else self.queries

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What makes two measurements comparable."""
        return self.name, self.isa, self.threads

    @property
    def scores(self) -> int:
        """How many query-key pairs there are, masked or not."""
        return self.batch * self.heads * self.query_length * self.length

    @property
    def flops(self) -> float:
        """Two products of 2·D operations per score forward, five backward; half if causal."""
        forward = 4.0 * self.scores * self.head_dim * (0.5 if self.causal else 1.0)
        return forward if self.direction == "forward" else 2.5 * forward


#: The work that every comparison starts from, forward and backward.
MAIN = [
    Case("forward", 8, 2048, 64, quick=True),
    Case("forward", 8, 2048, 64, causal=True, quick=True),
    Case("forward", 8, 512, 64, causal=True, quick=True),
    Case("forward", 32, 2048, 128, causal=True, kv_heads=8, quick=True),
    Case("forward", 8, 128, 32, batch=32, quick=True),
    Case("forward", 1, 8192, 64, quick=True),
    Case("backward", 8, 2048, 64, quick=True),
    Case("backward", 8, 2048, 64, causal=True, quick=True),
    Case("backward", 32, 2048, 128, causal=True, kv_heads=8),
    Case("backward", 8, 128, 32, batch=32, quick=True),
    Case("backward", 1, 8192, 64),
]

#: Calls so short that everything around the arithmetic counts.
SMALL = [
    Case("forward", 1, 64, 64, quick=True),
    Case("forward", 1, 16, 64, quick=True),
    Case("forward", 4, 32, 32, batch=256, quick=True),
]

#: One query of each head against what came before it, as for every word of a text that is written:
#: keys and values pass by once, so memory counts more than arithmetic. Or some, as where words are
#: guessed ahead.
DECODE = [
    Case("forward", 8, 512, 64, queries=1, quick=True),
    Case("forward", 8, 4096, 64, queries=1),
    Case("forward", 32, 2048, 128, kv_heads=8, queries=1),
    Case("forward", 1, 65536, 64, queries=1),
    Case("forward", 4, 128, 32, batch=16, queries=1),
    Case("forward", 8, 4096, 64, queries=16),
    Case("forward", 1, 16384, 64, queries=32),
]

#: Scores that are not products alone, as of sequences of different lengths or of relative places.
MASKED = [
    Case(direction, 8, 2048, 64, mask=mask, bias=not mask)
    for direction in ("forward", "backward")
    for mask in (True, False)
]

#: The time per score should not depend on the length.
LENGTHS = [Case("forward", 2, 1024 * 2**i, 64) for i in range(7)]

#: Head sizes beside the powers of two that they are held against.
HEAD_SIZES = [Case("forward", 8, 2048, size) for size in (32, 40, 72, 80, 96, 128, 192, 256)]

#: The rest: longer causal work, double precision, one thread.
OTHERS = [
    Case("forward", 8, 8192, 64, causal=True),
    Case("forward", 8, 2048, 64, dtype="float64"),
    Case("backward", 8, 2048, 64, dtype="float64"),
    Case("forward", 8, 2048, 64, threads=1),
    Case("backward", 8, 2048, 64, threads=1),
]


def _reduced(dtype: str, precision: str = "highest") -> list[Case]:
    """Cases of a type of fewer bits, or of products from fewer bits."""
    shapes = [MAIN[0], MAIN[1], MAIN[6], MAIN[7]]
    if dtype == "bfloat16":
        shapes += [MAIN[3], Case("forward", 8, 8192, 64, causal=True), MAIN[4], MAIN[8], MAIN[9]]
    return [replace(case, dtype=dtype, precision=precision, quick=False) for case in shapes]


#: Where matrix units for bfloat16 help, if the machine has some.
REDUCED = [
    *_reduced("bfloat16"),
    *_reduced("float16"),
    *_reduced("float32", "high"),
    *_reduced("float32", "medium"),
]

#: Instruction sets that add kernels for some types to another's: the rest is measured as that one.
SAME_BUT_FOR = {
    "avx512bf16": ("avx512", ("bfloat16", "medium")),
    "amx_fp16": ("amx", ("float16",)),
}

CASES: list[Case] = [
    *MAIN,
    *SMALL,
    *DECODE,
    *MASKED,
    *LENGTHS,
    *HEAD_SIZES,
    *OTHERS,
    *REDUCED,
    *(replace(case, isa=isa, quick=False) for isa in ("avx512", "avx2") for case in MAIN),
]


#: Instruction sets on which cattn is held against itself.
BESIDE_ITSELF = (BEST, "avx512", "avx2")


def _on(isa: str, cases: Iterable[Case]) -> list[Case]:
    return [replace(case, isa=isa, quick=False) for case in cases]


#: Cases whose times stand beside each other: measured in turn, cattn alone. What is measured
#: minutes apart tells them less well apart than the machine's moods.
COMPARISONS: list[list[Case]] = [
    *(
        [replace(case, threads=2, quick=False), replace(case, threads=1, quick=False)]
        for case in (MAIN[0], MAIN[6])
    ),
    *(_on(isa, (MAIN[0], *HEAD_SIZES)) for isa in BESIDE_ITSELF),
    *(
        _on(isa, (MAIN[many], MAIN[one]))
        for isa in ("avx512", "avx2")
        for many, one in ((0, 5), (6, 10))
    ),
    *(_on(isa, LENGTHS) for isa in BESIDE_ITSELF),
]


def _best(case: Case, isas: Sequence[str]) -> str:
    """The fastest instruction set, by the name of the one that has its kernels."""
    best = isas[-1]
    other, own = SAME_BUT_FOR.get(best, (best, ()))
    return best if case.dtype in own or case.precision in own else other


def select(
    cases: Iterable[Case], *, isas: Sequence[str], threads: int, isa: str | None = None
) -> list[Case]:
    """Cases that this machine can run, with instruction set and threads filled in, each once.

    `isas` are those that the machine has, slowest first; `isa` replaces that of every case.
    """
    chosen: dict[tuple[str, str, int | None], Case] = {}
    for case in cases:
        named = isa or (_best(case, isas) if case.isa == BEST else case.isa)
        team = case.threads or threads
        filled = replace(case, isa=named, threads=team)
        if named in isas and team <= threads:
            chosen.setdefault(filled.key, filled)
    return list(chosen.values())


def select_comparisons(
    wanted: Callable[[Case], bool], *, isas: Sequence[str], threads: int, isa: str | None = None
) -> list[list[Case]]:
    """Comparisons all of whose cases are wanted and can be run, filled in, each once."""
    chosen: dict[tuple[tuple[str, str, int | None], ...], list[Case]] = {}
    for comparison in COMPARISONS:
        cases = select(filter(wanted, comparison), isas=isas, threads=threads, isa=isa)
        if len(cases) == len(comparison):
            chosen.setdefault(tuple(case.key for case in cases), cases)
    return list(chosen.values())
