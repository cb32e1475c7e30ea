"""Does the next-word model learn more than a bigram model? Train on texts and print a table.

    python benchmarks/learn.py [TEXT ...]

Every text, and first of all the one that every Python carries, is trained on with the settings
that ``python -m cattn train`` has by default. Losses are in nats a word, on the last tenth of each.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cattn.cli.train import new_trainer
from cattn.lm import InputError, Trainer, read_text

COLUMNS = (
    "text", "words", "vocabulary", "steps", "seconds", "tok/s", "unigram", "bigram", "model",
    "below the bigram",
)  # fmt: skip


def train(text: str) -> Trainer:
    """Return a trainer that has done its work; its checkpoint is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = new_trainer(text, Path(folder) / "model.safetensors", {})
        trainer.run()
    return trainer


def row(name: str, trainer: Trainer) -> tuple[str, ...]:
    """Return the table's row of a text."""
    best, ngrams = trainer.best(), trainer.ngrams
    assert best is not None
    assert ngrams is not None
    return (
        name,
        f"{len(trainer.data.train) + len(trainer.data.held_out):,}",
        f"{len(trainer.tokenizer):,}",
        f"{trainer.step:,}",
        f"{trainer.seconds:.0f}",
        f"{trainer.tokens_per_second:,.0f}",
        f"{ngrams.unigram:.3f}",
        f"{ngrams.bigram:.3f}",
        f"{best.held_out:.3f}",
        f"{ngrams.bigram - best.held_out:.3f}",
    )


def main() -> None:
    """Train on each text and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="UTF-8 file or folder")
    options = parser.parse_args()
    rows = []
    try:
        for name, sources in [("default", []), *((Path(t).stem, [t]) for t in options.texts)]:
            rows.append(row(name, train(read_text(sources))))
    except InputError as error:
        parser.error(str(error))
    print(f"\n| {' | '.join(COLUMNS)} |")
    print(f"| --- |{' ---: |' * (len(COLUMNS) - 1)}")
    for values in rows:
        print(f"| {' | '.join(values)} |")


if __name__ == "__main__":
    main()
