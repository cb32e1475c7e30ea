"""What the tests of the language model share."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from cattn.cli import main
from cattn.lm import ModelConfig, NextWordModel


class Outcome(NamedTuple):
    """What a command returned and printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command of ``python -m cattn`` in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse
            code = int(exit_.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start Python in a process of its own, outside the source tree, where cattn is installed."""

    def start(*arguments: object, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} | env,
        )

    return start


@pytest.fixture
def story() -> str:
    """Sentences whose last word follows from the first, which a bigram does not see."""
    rng = random.Random(0)
    people = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal"]
    things = ["apple", "book", "coin", "drum", "egg", "fork", "glove", "hat"]
    verbs = ["found", "has", "likes", "lost"]
    pairs = rng.choices(list(zip(people, things, strict=True)), k=1200)
    return "\n".join(f"{person} {rng.choice(verbs)} the {thing}!" for person, thing in pairs)


@pytest.fixture
def text_file(tmp_path: Path, story: str) -> Path:
    """The story as a file."""
    path = tmp_path / "story.txt"
    path.write_text(story, encoding="utf-8")
    return path


@pytest.fixture
def tiny_model() -> NextWordModel:
    """A float64 model with two blocks, small enough for finite differences."""
    config = ModelConfig(
        vocab_size=11, context=6, width=8, heads=2, blocks=2, hidden=12, dropout=0.0,
        dtype="float64",
    )  # fmt: skip
    model = NextWordModel(config, seed=3)
    rng = np.random.default_rng(5)
    for name, p in model.params.items():
        if p.ndim == 1:  # gains of 1 and a bias of 0 would hide mistakes
            p += 0.3 * rng.standard_normal(p.shape)
        assert p.dtype == np.float64, name
    return model
