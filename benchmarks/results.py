"""What was measured, and its JSON files: a run's times, and peaks of memory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cases import Case


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and quartiles over rounds of `repeats` calls each."""

    median: float
    low: float
    high: float
    rounds: int
    repeats: int
    difference: float
    """Largest absolute difference from cattn's result."""

    @property
    def spread(self) -> float:
        """Half the distance of the quartiles, relative to the median."""
        return (self.high - self.low) / 2 / self.median


@dataclass(frozen=True)
class Result:
    """One case, measured: timings by library, and why others are missing."""

    case: Case
    timings: dict[str, Timing]
    skipped: dict[str, str]
    fma_peak: float | None
    """The most float32 operations per second in any of the rounds; None without a compiler."""

    @property
    def cattn(self) -> Timing:
        """Return cattn's own timing."""
        return self.timings["cattn"]

    @property
    def rate(self) -> float:
        """Return cattn's floating-point operations per second."""
        return self.case.flops / self.cattn.median

    def speedup(self, peer: str) -> float | None:
        """How many times faster cattn is, if the peer was measured."""
        timing = self.timings.get(peer)
        return None if timing is None else timing.median / self.cattn.median

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Result:
        """Read what `dataclasses.asdict` wrote."""
        timings = {name: Timing(**timing) for name, timing in data["timings"].items()}
        return Result(Case(**data["case"]), timings, data["skipped"], data["fma_peak"])


@dataclass
class Run:
    """All results of one run on one machine."""

    machine: dict[str, Any]
    date: str
    import_seconds: float | None = None
    results: list[Result] = field(default_factory=list)
    comparisons: list[list[Result]] = field(default_factory=list)
    """Of cattn alone: cases that had their turns in the same rounds."""

    @property
    def peers(self) -> list[str]:
        """Libraries that have at least one timing, cattn aside, in the order of measurement."""
        seen = {name: None for result in self.results for name in result.timings}
        return [name for name in seen if name != "cattn"]

    def groups(self) -> list[tuple[str, int]]:
        """Instruction sets and numbers of threads that were measured."""
        return list({(r.case.isa, r.case.threads or 0): None for r in self.results})

    def in_group(self, isa: str, threads: int) -> list[Result]:
        """Results of one instruction set and number of threads."""
        return [r for r in self.results if (r.case.isa, r.case.threads) == (isa, threads)]

    def fma_peaks(self, isa: str, threads: int) -> list[float]:
        """Return the float32 peaks seen beside the cases, lowest first: equal if all is quiet."""
        peaks = (result.fma_peak for result in self.in_group(isa, threads))
        return sorted(peak for peak in peaks if peak is not None)

    def share_of_peak(self, result: Result) -> float | None:
        """Return cattn's rate as a share of the highest peak; float64 has half the lanes.

        Products of bfloat16 are not multiply-adds: they have no share.
        """
        if result.case.dtype == "bfloat16" or result.case.precision != "highest":
            return None
        peaks = self.fma_peaks(result.case.isa, result.case.threads or 0)
        if not peaks:
            return None
        return result.rate / (peaks[-1] / 2 if result.case.dtype == "float64" else peaks[-1])

    def save(self, path: Path) -> None:
        """Write the run as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Run:
        """Read a run that `save` wrote."""
        data = json.loads(path.read_text())
        results = [Result.from_dict(result) for result in data.pop("results")]
        comparisons = [
            [Result.from_dict(result) for result in comparison]
            for comparison in data.pop("comparisons", [])
        ]
        return Run(**data, results=results, comparisons=comparisons)


@dataclass(frozen=True)
class Peaks:
    """Peak memory beyond the inputs in one case, by library, and why others are missing."""

    case: Case
    peak_bytes: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class Memory:
    """Peaks of memory of all cases on one machine."""

    machine: dict[str, Any]
    peaks: list[Peaks] = field(default_factory=list)

    @property
    def libraries(self) -> list[str]:
        """Libraries in the order of measurement, also those that were skipped."""
        return list({n: None for p in self.peaks for n in (*p.peak_bytes, *p.skipped)})

    def save(self, path: Path) -> None:
        """Write the peaks as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Memory:
        """Read what `save` wrote."""
        data = json.loads(path.read_text())
        peaks = [Peaks(**{**one, "case": Case(**one["case"])}) for one in data["peaks"]]
        return Memory(data["machine"], peaks)
