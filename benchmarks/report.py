"""Turns a results file into Markdown tables, charts, and the README's part about speed.

python benchmarks/report.py                              the tables of this machine's full run
python benchmarks/report.py FILE.json                    of another
python benchmarks/report.py --plots docs/images          and charts as PNG
python benchmarks/report.py --readme README.md           and what the README says
"""

from __future__ import annotations

import argparse
from pathlib import Path

import machine
from pages import page, update_readme
from results import Run


def main() -> None:
    """Print the tables; draw and write what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    own = Path(__file__).parent / "results" / machine.file_name(machine.describe([]))
    parser.add_argument("results", type=Path, nargs="?", default=own, help=f"default: {own.name}")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw PNG files into it")
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="replace what is between its benchmarks markers, and write FILE.md beside FILE.json",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="whose charts the README shows (default: that of --plots, or docs/images beside it)",
    )
    arguments = parser.parse_args()
    if not arguments.results.exists():
        parser.error(f"{arguments.results}: no such file; run.py --full writes one")
    run = Run.load(arguments.results)
    print(page(run))
    written = []
    if arguments.plots:
        from charts import draw  # only charts need Matplotlib

        written += draw(run, arguments.plots)
    if arguments.readme:
        beside = arguments.readme.parent / "docs" / "images"
        images = arguments.images or arguments.plots or beside
        written += [update_readme(arguments.readme, run, arguments.results, images)]
        written += [arguments.readme]
    if written:
        print("", *written, sep="\n")


if __name__ == "__main__":
    main()
