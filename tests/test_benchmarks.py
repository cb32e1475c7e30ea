"""The benchmarks run, judge a run by its goals, and write what a results file says.

They are scripts with plain module names, so each runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import ROOT, assert_ran, run_python

BENCHMARKS = ROOT / "benchmarks"

# A machine with a peak of 100 GFLOP/s for two threads, on which every case is as fast as all the
# goals ask for.
SYNTHETIC = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cases import CASES, select, select_comparisons
from results import Result, Run, Timing

def timing(seconds):
    return Timing(seconds, 0.99 * seconds, 1.01 * seconds, 5, 1, 0.0)

isas = ["generic", "avx2", "avx512"]
machine = {"cpu": "Some CPU 1", "cores": 2, "isas": isas, "load": 0.0, "memory_gb": 8.0,
           "system": "Linux", "python": "3", "versions": {"torch": "2.13.0", "openvino": "2026.4"}}
run = Run(machine, "2026-01-01")

def result(case, ratios):
    seconds = case.flops / 45e9 / case.threads
    timings = {name: timing(seconds * ratio) for name, ratio in ratios.items()}
    return Result(case, timings, {}, 50e9 * case.threads)

for case in select(CASES, isas=isas, threads=2):
    ratios = {"cattn": 1.0, "torch": 3.0, "openvino": 2.0}
    if case.direction == "backward":
        del ratios["openvino"]
    run.results.append(result(case, ratios))
for cases in select_comparisons(lambda case: True, isas=isas, threads=2):
    run.comparisons.append([result(case, {"cattn": 1.0}) for case in cases])
run.save(Path(sys.argv[2]))
"""


def benchmark(script, *arguments):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def ideal(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmarks") / "ideal.json"
    assert_ran(run_python(SYNTHETIC, str(BENCHMARKS), str(path)))
    return path


class Changed:
    """A copy of the ideal run, with some cases changed."""

    def __init__(self, ideal, path):
        self.path = path
        self.data = json.loads(ideal.read_text())

    def found(self, results, isa="avx512", threads=2, direction="forward", **fields):
        """The float32 results of highest precision with these fields."""
        fields = {
            "causal": False, "batch": 1, "kv_heads": None, "queries": None, "mask": False,
            "bias": False, "dtype": "float32", "precision": "highest", "isa": isa,
            "threads": threads, "direction": direction, **fields,
        }  # fmt: skip
        return [
            result
            for result in results
            if all(result["case"][name] == value for name, value in fields.items())
        ]

    def result(self, **fields):
        (found,) = self.found(self.data["results"], **fields)
        return found

    def slow_down(self, factor, library="cattn", **fields):
        self._slow_down([self.result(**fields)], factor, library)

    def slow_down_beside_itself(self, factor, **fields):
        results = [result for results in self.data["comparisons"] for result in results]
        self._slow_down(self.found(results, **fields), factor, "cattn")

    @staticmethod
    def _slow_down(results, factor, library):
        assert results
        for result in results:
            for name in ("median", "low", "high"):
                result["timings"][library][name] *= factor

    def rows(self):
        """Rows of the goals' tables by (work, instruction set): the other cells."""
        self.path.write_text(json.dumps(self.data))
        process = benchmark("report.py", self.path)
        assert_ran(process)
        lines = process.stdout.partition("### Goals")[2].splitlines()
        cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if line[:1] == "|"]
        return {(work, isa): rest for work, isa, *rest in cells if isa not in ("on", "--:")}


@pytest.fixture
def changed(ideal, tmp_path):
    return Changed(ideal, tmp_path / "changed.json")


def verdicts(rows):
    return {key: cells[-1] for key, cells in rows.items() if "---" not in key[0]}


MAIN = {"heads": 8, "length": 2048, "head_dim": 64}


def test_all_goals_are_met(changed):
    found = verdicts(changed.rows())
    assert set(found.values()) == {"yes"}
    assert len(found) >= 30
    process = benchmark("report.py", changed.path)
    assert f"{len(found)} of {len(found)} goals are met, 0 are not." in process.stdout


def test_a_share_of_peak_below_its_floor(changed):
    changed.slow_down(0.9 / 0.7996, **MAIN)
    rows = changed.rows()
    cells = rows["forward H8 L2048 D64", "avx512"]
    assert cells[0] == "79.9% (≥ 80%)"  # not 80.0%
    assert cells[-1] == "no"
    assert rows["forward H8 L2048 D64", "avx2"][-1] == "yes"


def test_a_peer_that_is_nearer_than_its_floor(changed):
    changed.slow_down(1.4 / 3, "torch", **MAIN)
    cells = changed.rows()["forward H8 L2048 D64", "avx512"]
    assert cells[1] == "2.00× (≥ 1.15×)"
    # At 0.9 of the peak and 1.4 times as fast as the peer, 1.5 times as fast is 0.964 of the peak.
    assert cells[2] == "1.40× (≥ 1.50×)"
    assert cells[-1] == "no"


def test_a_ratio_beyond_the_peak_says_so(changed):
    changed.slow_down(1.2 / 3, "torch", **MAIN)
    cells = changed.rows()["forward H8 L2048 D64", "avx512"]
    assert cells[2] == f"1.20× (≥ 1.50×, would be {0.9 / 1.2 * 1.5:.1%} of peak)"
    assert cells[-1] == "no"


def test_what_was_not_measured(changed):
    changed.data["results"].remove(changed.result(**MAIN))
    del changed.result(**MAIN, causal=True)["timings"]["torch"]
    for results in changed.data["comparisons"]:
        results[:] = [result for result in results if result["case"]["threads"] != 1]
    found = verdicts(changed.rows())
    missing = {work for (work, isa), verdict in found.items() if verdict == "not measured"}
    assert {"forward H8 L2048 D64", "forward H8 L2048 D64 causal"} <= missing
    assert "forward H8 L2048 D64: speed-up of two threads over one" in missing
    assert found["forward H8 L2048 D64", "avx2"] == "yes"
    assert "no" not in found.values()


@pytest.mark.parametrize(
    ("fields", "factor", "work"),
    [
        ({"heads": 1, "length": 8192}, 1.2, "forward H1 L8192 D64: rate over that of H8 L2048"),
        (
            {"heads": 1, "length": 8192, "direction": "backward"},
            1.2,
            "backward H1 L8192 D64: rate over that of H8 L2048",
        ),
        (
            {**MAIN, "threads": 1},
            0.9,
            "forward H8 L2048 D64: speed-up of two threads over one",
        ),
        (
            {"heads": 2, "length": 65536},
            1.2,
            "L1024 to L65536: longest time per score over the shortest",
        ),
        ({**MAIN, "head_dim": 40}, 1.2, "forward H8 L2048 D40: rate over that of D32"),
        ({**MAIN, "head_dim": 256}, 1.2, "forward H8 L2048 D256: rate over that of D128"),
    ],
)
def test_a_relation_that_does_not_hold(changed, fields, factor, work):
    changed.slow_down_beside_itself(factor, **fields)
    found = verdicts(changed.rows())
    assert found[work, "avx512"] == "no"
    assert list(found.values()).count("no") == 1


def test_relations_are_of_what_was_measured_in_turn(changed):
    size = {**MAIN, "head_dim": 40}
    changed.slow_down(2.0, **size)  # minutes away from the others
    work = "forward H8 L2048 D40: rate over that of D32"
    assert changed.rows()[work, "avx512"] == ["1.00 (≥ 0.85)", "yes"]
    changed.data["comparisons"] = []  # nothing better is known
    assert changed.rows()[work, "avx512"] == ["0.50 (≥ 0.85)", "no"]
    assert changed.rows()[work, "avx2"] == ["– (≥ 0.85)", "not measured"]
    del changed.data["comparisons"]
    assert changed.rows()[work, "avx512"] == ["0.50 (≥ 0.85)", "no"]


def test_what_is_related_is_measured_in_turn():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from cases import COMPARISONS
from floors import RELATIONS

assert RELATIONS
for relation in RELATIONS:
    wanted = {replace(case, isa=relation.isa).key for case in relation.cases}
    assert any(wanted <= {case.key for case in cases} for cases in COMPARISONS), relation
"""
    assert_ran(run_python(code, str(BENCHMARKS)))


def test_a_head_size_between_two_is_held_to_the_slower(changed):
    changed.slow_down_beside_itself(1.8, **{**MAIN, "head_dim": 128})
    changed.slow_down_beside_itself(2.0, **{**MAIN, "head_dim": 96})
    work = "forward H8 L2048 D96: rate over that of the slower of D64 and D128"
    assert changed.rows()[work, "avx512"] == ["0.90 (≥ 0.85)", "yes"]


def test_a_small_run(tmp_path):
    out = tmp_path / "run.json"
    options = ["--only", "H1 L16", "--peers", "numpy", "--seconds", 0.1, "--out", out]
    process = benchmark("run.py", "--quick", *options)
    assert_ran(process)
    assert "| forward H1 L16 D64 |" in process.stdout
    assert "[1/1, " in process.stderr
    (result,) = json.loads(out.read_text())["results"]
    assert set(result["timings"]) == {"cattn", "numpy"}
    assert all(0 < timing["median"] < 1 for timing in result["timings"].values())
    assert result["timings"]["numpy"]["difference"] < 1e-5


def test_cases_in_turn(tmp_path):
    cases, results = tmp_path / "cases", tmp_path / "results"
    fields = {"direction": "forward", "heads": 1, "head_dim": 64}
    lines = [{**fields, "length": length, "threads": n} for length, n in ((64, 2), (128, 1))]
    cases.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert_ran(benchmark("measure.py", cases, results, "--in-turn", "--seconds", 0.1))
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [result["case"]["length"] for result in found] == [64, 128]
    timings = [result["timings"]["cattn"] for result in found]
    assert timings[0]["rounds"] == timings[1]["rounds"] >= 3
    assert 0 < timings[0]["median"] < timings[1]["median"] < 1


@pytest.mark.parametrize("given", [{"mask": True}, {"bias": True}, {"mask": True, "bias": True}])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_peers_mask_and_add_as_we_do(tmp_path, given, direction):
    cases, results = tmp_path / "cases", tmp_path / "results"
    fields = {"direction": direction, "heads": 4, "kv_heads": 2, "length": 48, "head_dim": 16}
    lines = [{**fields, **given, "queries": 40, "threads": 1, "isa": "generic"}]
    lines.append({**lines[0], "causal": True})
    cases.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--peers", "numpy", "--seconds", 0.01]
    assert_ran(benchmark("measure.py", cases, results, *options))
    for line in results.read_text().splitlines():
        timings = json.loads(line)["timings"]
        assert timings["numpy"]["difference"] < 1e-5


def test_no_case_fits():
    process = benchmark("run.py", "--quick", "--only", "no such case")
    assert process.returncode == 2
    assert "no case fits" in process.stderr


def test_peers_are_given_a_budget():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from budget import Budget
from cases import Case
from peers.base import Unsupported, require_memory

def refusal(check, *arguments):
    try:
        check(*arguments)
    except Unsupported as reason:
        return str(reason)

budget, short, long = Budget(1.0), Case("forward", 2, 1024, 64), Case("forward", 2, 8192, 64)
assert refusal(budget.require_time, "peer", long) is None  # nothing is known of it
budget.record("cattn", short, 0.1)
budget.record("peer", short, 0.1)
assert abs(budget.predict("peer", long) - 6.4) < 1e-9
assert refusal(budget.require_time, "peer", long) == "would take 6.40 s a call"
assert refusal(budget.require_time, "peer", short) is None
assert refusal(budget.require_time, "cattn", long) is None
assert budget.is_slow("peer", 0.2) and not budget.is_slow("peer", 0.05)
assert not budget.is_slow("cattn", 0.2)
backward = Case("backward", 2, 8192, 64)
assert refusal(budget.require_time, "peer", backward) is None  # of which nothing is known
assert abs(budget.expect([short]) - (1.0 + 2 * 0.2)) < 1e-9
assert abs(budget.expect([long]) - 5 * 6.4) < 1e-9  # of cattn, without the peer
huge = Case("forward", 2, 2**20, 64)
assert refusal(require_memory, huge, 1) == "would need 8796 GB for its scores"
assert refusal(require_memory, short, 1) is None
"""
    assert_ran(run_python(code, str(BENCHMARKS)))


def test_the_environment_of_what_is_measured():
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
from environment import variables

os.environ.update(OPENBLAS_CORETYPE="Prescott", OPENBLAS_L2_SIZE="1", KEPT="yes")
best = variables(2, None)  # OpenBLAS chooses its kernels itself
assert best["KEPT"] == "yes" and best["OPENBLAS_NUM_THREADS"] == "2"
assert not {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "ATEN_CPU_CAPABILITY"} & set(best)
held = variables(1, "avx2")
assert held["OPENBLAS_CORETYPE"] == "Haswell" and held["CATTN_ISA"] == "avx2"
assert "OPENBLAS_L2_SIZE" not in held
"""
    assert_ran(run_python(code, str(BENCHMARKS)))


def test_the_readme_is_written_from_a_file(ideal, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
    readme.write_text(f"# Before\n{begin}\nold\n{end}\nafter\n")
    images = tmp_path / "docs" / "images"
    process = benchmark("report.py", ideal, "--plots", images, "--readme", readme)
    assert_ran(process)
    text = readme.read_text()
    assert text.startswith(f"# Before\n{begin}\n| case ")
    assert text.endswith(f"{end}\nafter\n")
    assert "\nold\n" not in text
    assert "| backward H32/8 L2048 D128 causal |" in text
    assert "PyTorch 2.13 and OpenVINO 2026.4" in text
    for name in ("time_against_length.png", "speedup.png"):
        assert f'src="docs/images/{name}"' in text
        assert (images / name).read_bytes()[1:4] == b"PNG"
    assert "memory_against_length" not in text  # there is no such file
    page = ideal.with_suffix(".md").read_text()
    assert "### avx2, 2 threads" in page
    assert "### cattn beside itself: avx2" in page

    readme.write_text("no markers\n")
    assert benchmark("report.py", ideal, "--readme", readme).returncode != 0
    assert readme.read_text() == "no markers\n"


def test_before_and_after(ideal, changed):
    changed.slow_down(0.5, **MAIN)
    changed.slow_down(1.25, **MAIN, causal=True)
    changed.slow_down(1.005, **MAIN, direction="backward")
    changed.slow_down(0.995, **MAIN, direction="backward", causal=True)
    changed.rows()
    process = benchmark("compare.py", ideal, changed.path)
    assert_ran(process)
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in process.stdout.splitlines()]
    found = {(row[0], row[1]): (row[4], row[5]) for row in rows}
    on = "avx512, 2 threads"
    assert found["forward H8 L2048 D64", on] == ("2.00×", "faster")
    assert found["forward H8 L2048 D64 causal", on] == ("0.80×", "slower")
    assert found["backward H8 L2048 D64", on] == ("1.00×", "")  # within the spread
    assert found["backward H8 L2048 D64 causal", on] == ("1.01×", "")
    assert found["forward H8 L2048 D64", "avx2, 2 threads"] == ("1.00×", "")
    assert not process.stdout.startswith("Different machines")

    changed.data["machine"]["cpu"] = "Another"
    changed.rows()
    process = benchmark("compare.py", ideal, changed.path)
    assert process.stdout.startswith("Different machines: Some CPU 1 and Another")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's high-water mark")
def test_memory(tmp_path):
    out, plot = tmp_path / "memory.json", tmp_path / "memory.png"
    options = ["--peers", "cattn,numpy", "--lengths", "1024,2048"]
    process = benchmark("memory.py", *options, "--out", out, "--plot", plot)
    assert_ran(process)
    peaks = {
        (one["case"]["direction"], one["case"]["length"]): one["peak_bytes"]
        for one in json.loads(out.read_text())["peaks"]
    }
    for direction in ("forward", "backward"):
        longer, shorter = peaks[direction, 2048], peaks[direction, 1024]
        assert longer["numpy"] > 8 * 2048**2 * 4  # whole matrices of scores
        assert 3 < longer["numpy"] / shorter["numpy"] < 5
        assert longer["cattn"] < longer["numpy"] / 2
    assert plot.read_bytes()[1:4] == b"PNG"
    assert benchmark("memory.py", "--load", out).stdout.count("\n| forward H8 ") == 2


def test_calls_after_pauses():
    process = benchmark("pauses.py", "--calls", "3", "--length", "40", "--peers", "cattn,nothing")
    assert_ran(process)
    head, _, cattn, nothing = (line.split("|") for line in process.stdout.splitlines())
    assert head[1].strip() == "forward H1 L40 D64"
    assert all("s" in cell for cell in cattn[2:-1])
    assert all(cell.strip() == "–" for cell in nothing[2:-1])
