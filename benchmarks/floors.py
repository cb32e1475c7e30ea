"""The goals as data: what each piece of work must reach at least, and whether a run reaches it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cases import BESIDE_ITSELF, BEST, HEAD_SIZES, LENGTHS, MAIN, SMALL, Case
from results import Result, Run
from table import format_ratio, markdown


@dataclass(frozen=True)
class Floor:
    """How near to the FMA peak a case must come, and how far ahead of which peers."""

    case: Case
    isa: str
    share: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    """A peer's time over cattn's, by name of the peer, which is held to the same `isa`."""


@dataclass(frozen=True)
class Relation:
    """What must hold between the times of cattn in several cases."""

    text: str
    isa: str
    cases: Sequence[Case]
    measure: Callable[[Sequence[Result]], float]
    """Of the results of these cases."""
    least: float = 0.0
    most: float = math.inf


(
    _DENSE, _CAUSAL, _SHORT, _GROUPED, _MANY, _LONG,
    _DENSE_BACK, _CAUSAL_BACK, _GROUPED_BACK, _MANY_BACK, _LONG_BACK,
) = MAIN  # fmt: skip
_ONE_CALL, _TINY_CALL, _BATCH_CALL = SMALL

FLOORS = [
    Floor(_DENSE, "avx512", 0.80, {"openvino": 1.15, "torch": 1.5}),
    Floor(_CAUSAL, "avx512", 0.75, {"torch": 1.8}),
    Floor(_SHORT, "avx512", 0.65),
    Floor(_GROUPED, "avx512", 0.80, {"torch": 1.7}),
    Floor(_DENSE_BACK, "avx512", 0.75, {"torch": 1.5}),
    Floor(_CAUSAL_BACK, "avx512", 0.70, {"torch": 1.7}),
    Floor(_GROUPED_BACK, "avx512", 0.75),
    Floor(_MANY, "avx512", None, {"torch": 2.0}),
    Floor(_MANY_BACK, "avx512", None, {"torch": 2.0}),
    Floor(_DENSE, "avx2", 0.80, {"torch": 1.05}),
    Floor(_CAUSAL, "avx2", 0.75, {"torch": 1.25}),
    Floor(_SHORT, "avx2", 0.65),
    Floor(_GROUPED, "avx2", 0.78),
    Floor(_DENSE_BACK, "avx2", 0.72),
    Floor(_CAUSAL_BACK, "avx2", 0.68),
    Floor(_GROUPED_BACK, "avx2", 0.72),
    Floor(_MANY, "avx2", None, {"torch": 1.6}),
    Floor(_MANY_BACK, "avx2", None, {"torch": 1.6}),
    # At most 0.7, 1.0 and 0.5 of the peer's time.
    Floor(_ONE_CALL, BEST, None, {"torch": 1 / 0.7}),
    Floor(_TINY_CALL, BEST, None, {"torch": 1.0}),
    Floor(_BATCH_CALL, BEST, None, {"torch": 1 / 0.5}),
]

#: Those of which there is a floor.
_PEERS = list(dict.fromkeys(peer for floor in FLOORS for peer in floor.ratios))


def _rate_over_slowest(results: Sequence[Result]) -> float:
    """The rate of the last case over that of the slowest of the others."""
    return results[-1].rate / min(result.rate for result in results[:-1])


def _speedup(results: Sequence[Result]) -> float:
    """How many times longer the last case takes than the first."""
    return results[-1].cattn.median / results[0].cattn.median


def _unevenness(results: Sequence[Result]) -> float:
    """The longest time per score over the shortest."""
    times = [result.cattn.median / result.case.scores for result in results]
    return max(times) / min(times)


def _head_size_relation(case: Case, powers: list[Case], isa: str) -> Relation:
    """Against the nearest power of two, or the slower one of two that are equally near."""

    def distance(power: Case) -> int:
        return abs(power.head_dim - case.head_dim)

    others = [power for power in powers if power != case]
    nearest = [p for p in others if distance(p) == min(map(distance, others))]
    sizes = " and ".join(f"D{p.head_dim}" for p in nearest)
    against = f"the slower of {sizes}" if len(nearest) > 1 else sizes
    text = f"{case.name}: rate over that of {against}"
    return Relation(text, isa, [*nearest, case], _rate_over_slowest, least=0.85)


def _head_size_relations(isa: str) -> list[Relation]:
    cases = sorted([_DENSE, *HEAD_SIZES], key=lambda case: case.head_dim)
    powers = [case for case in cases if case.head_dim in (32, 64, 128, 256)]
    sizes = (40, 72, 80, 96, 192, 256)
    return [_head_size_relation(c, powers, isa) for c in cases if c.head_dim in sizes]


RELATIONS = [
    *(
        Relation(
            f"{long.name}: rate over that of H8 L2048",
            isa,
            [many, long],
            _rate_over_slowest,
            least=0.9,
        )
        for isa in ("avx512", "avx2")
        for many, long in ((_DENSE, _LONG), (_DENSE_BACK, _LONG_BACK))
    ),
    *(
        Relation(
            f"{case.name}: speed-up of two threads over one",
            BEST,
            [replace(case, threads=2), replace(case, threads=1)],
            _speedup,
            least=1.9,
        )
        for case in (_DENSE, _DENSE_BACK)
    ),
    *(
        Relation(
            f"L{LENGTHS[0].length} to L{LENGTHS[-1].length}: "
            "longest time per score over the shortest",
            isa,
            LENGTHS,
            _unevenness,
            most=1.1,
        )
        for isa in BESIDE_ITSELF
    ),
    *(relation for isa in BESIDE_ITSELF for relation in _head_size_relations(isa)),
]


def goals(run: Run) -> str:
    """Tables of all goals on the instruction sets that the machine has."""
    header = ["work", "on", "of peak", *(f"vs {peer}" for peer in _PEERS), "met?"]
    work, beside = _rows(run)
    return "\n\n".join(
        [
            markdown(header, work),
            markdown(["cattn beside itself", "on", "measured", "met?"], beside),
            f"{summary(run)}. Floors stand in brackets.",
        ]
    )


def summary(run: Run) -> str:
    """How many of the goals are met."""
    work, beside = _rows(run)
    verdicts = [row[-1] for row in work + beside]
    met, missed, unknown = (verdicts.count(word) for word in (_MET, _MISSED, _UNKNOWN))
    text = f"{met} of {len(verdicts)} goals are met, {missed} are not"
    return text + (f", {unknown} were not measured" if unknown else "")


def _rows(run: Run) -> tuple[list[list[str]], list[list[str]]]:
    floors = [floor for floor in FLOORS if _applies(run, floor.isa)]
    # The best instruction set may be one that has relations of its own.
    relations = {
        (relation.text, _isa(run, relation.isa)): relation
        for relation in RELATIONS
        if _applies(run, relation.isa)
    }
    return (
        [_floor_row(run, floor) for floor in floors],
        [_relation_row(run, relation) for relation in relations.values()],
    )


_MET, _MISSED, _UNKNOWN = "yes", "no", "not measured"


def _verdict(met: list[bool | None]) -> str:
    """One missed goal is enough for "no"; "yes" takes a figure for each."""
    if False in met:
        return _MISSED
    return _UNKNOWN if None in met else _MET


def _floor_row(run: Run, floor: Floor) -> list[str]:
    result = _find(run, floor.case, floor.isa, run.results)
    share = run.share_of_peak(result) if result else None
    cells: list[str] = []
    met: list[bool | None] = []
    if floor.share is None:
        cells.append("")
    else:
        met.append(None if share is None else share >= floor.share)
        cells.append(f"{_percent(share, floor.share)} (≥ {floor.share:.0%})")
    for peer in _PEERS:
        least = floor.ratios.get(peer)
        if least is None:
            cells.append("")
            continue
        ratio = result.speedup(peer) if result else None
        met.append(None if ratio is None else ratio >= least)
        cells.append(f"{_times(ratio, least)} (≥ {least:.2f}×{_beyond(share, ratio, least)})")
    return [floor.case.name, _isa(run, floor.isa), *cells, _verdict(met)]


def _beyond(share: float | None, ratio: float | None, least: float) -> str:
    """A remark if `least` times the peer's own share of the peak is more than there is."""
    if share is None or ratio is None or share / ratio * least <= 1:
        return ""
    return f", would be {share / ratio * least:.1%} of peak"


def _relation_row(run: Run, relation: Relation) -> list[str]:
    results = _together(run, relation.cases, relation.isa)
    value = relation.measure(results) if results else None
    met = None if value is None else relation.least <= value <= relation.most
    below = relation.most < math.inf
    limit = relation.most if below else relation.least
    cell = "–"
    if value is not None:
        shown = -_shown(-value, -limit, 2) if below else _shown(value, limit, 2)
        cell = f"{shown:.2f}"
    floor = f"({'≤' if below else '≥'} {limit:.2f})"
    return [relation.text, _isa(run, relation.isa), f"{cell} {floor}", _verdict([met])]


def _together(run: Run, cases: Sequence[Case], isa: str) -> list[Result] | None:
    """Results of cases that had their turns in the same rounds; of a run without such, any."""
    for results in run.comparisons or [run.results]:
        found = [result for case in cases if (result := _find(run, case, isa, results))]
        if len(found) == len(cases):
            return found
    return None


def _find(run: Run, case: Case, isa: str, results: Sequence[Result]) -> Result | None:
    """The result of a case on an instruction set, with all cores unless it has its threads."""
    named = _isa(run, isa)
    teams = [r.case.threads or 0 for r in results if r.case.isa == named]
    wanted = case.name, named, case.threads or max(teams, default=0)
    return next((r for r in results if r.case.key == wanted), None)


def _isa(run: Run, isa: str) -> str:
    """The name of an instruction set; the best is that of the first results."""
    return run.groups()[0][0] if isa == BEST else isa


def _applies(run: Run, isa: str) -> bool:
    return isa == BEST or isa in run.machine["isas"]


def _percent(share: float | None, least: float) -> str:
    return "–" if share is None else f"{_shown(100 * share, 100 * least, 1):.1f}%"


def _times(ratio: float | None, least: float) -> str:
    return "–" if ratio is None else format_ratio(_shown(ratio, least, 2))


def _shown(value: float, least: float, digits: int) -> float:
    """Rounded, unless what misses its floor would then look as if it met it."""
    rounded = round(value, digits)
    return rounded - 10.0**-digits if value < least <= rounded else rounded
