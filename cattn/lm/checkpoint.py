"""Checkpoints: one safetensors file with weights, words, settings and the state of training.

Tensors: ``model/*``, the best weights so far (what is used); ``last/*`` and ``optimizer/*``, where
training goes on. Metadata: the format's name and version, and the rest as JSON under ``state``.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cattn._types import Array
from cattn.lm.errors import InputError
from cattn.lm.extras import require
from cattn.lm.model import ModelConfig, NextWordModel, Params
from cattn.lm.tokenizer import WordTokenizer

FORMAT = "cattn.lm"
VERSION = "1"


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    Parameters
    ----------
    config : ModelConfig
    tokenizer : WordTokenizer
    model : dict of str to ndarray
        The parameters to use.
    last, optimizer : dict of str to ndarray
        The parameters and the optimiser's state where training stopped.
    training : dict
        JSON values that the trainer needs to go on.
    """

    config: ModelConfig
    tokenizer: WordTokenizer
    model: Params
    last: Params = field(default_factory=dict)
    optimizer: Params = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint beside `path` and rename it: whatever happens, `path` stays whole.

    Raises
    ------
    InputError
        The safetensors package is not installed, or the file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cattn.lm import (
    ...     Checkpoint, ModelConfig, NextWordModel, WordTokenizer, load_model, save_checkpoint)
    >>> tokenizer = WordTokenizer(["<unk>", "a", "b"])
    >>> config = ModelConfig(len(tokenizer), context=4, width=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.safetensors"
    ...     save_checkpoint(path, Checkpoint(config, tokenizer, NextWordModel(config).params))
    ...     load_model(path)[1].words
    ['<unk>', 'a', 'b']
    """
    safetensors = require("safetensors.numpy", "saving a checkpoint")
    path = Path(path)
    state = {
        "config": asdict(checkpoint.config),
        "words": checkpoint.tokenizer.words,
        "training": checkpoint.training,
    }
    tensors = {
        f"{group}/{name}": np.ascontiguousarray(array)
        for group in ("model", "last", "optimizer")
        for name, array in getattr(checkpoint, group).items()
    }
    metadata = {"format": FORMAT, "version": VERSION, "state": json.dumps(state)}
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(safetensors.save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote.

    Raises
    ------
    InputError
        A file that is missing, unreadable, truncated, or of another format.

    Examples
    --------
    >>> from cattn.lm import load_checkpoint
    >>> load_checkpoint("no_such.safetensors")
    Traceback (most recent call last):
        ...
    cattn.lm.errors.InputError: no_such.safetensors: no such checkpoint
    """
    safetensors = require("safetensors", "reading a checkpoint")
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise InputError(f"{path}: not a file")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except safetensors.SafetensorError:
        raise InputError(f"{path}: not a checkpoint, or a truncated one") from None
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: a safetensors file, but not a checkpoint of cattn.lm")
    if metadata.get("version") != VERSION:
        version = metadata.get("version")
        raise InputError(f"{path}: format version {version}, this cattn reads version {VERSION}")
    try:
        state = json.loads(metadata["state"])
        checkpoint = Checkpoint(
            ModelConfig(**state["config"]), WordTokenizer(state["words"]), {}, {}, {},
            state["training"],
        )  # fmt: skip
        for name, array in tensors.items():
            group, _, rest = name.partition("/")
            getattr(checkpoint, group)[rest] = array
        _check_shapes(checkpoint)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: a damaged checkpoint ({error})") from None
    return checkpoint


def _check_shapes(checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    if len(checkpoint.tokenizer) != config.vocab_size:
        raise ValueError(f"{len(checkpoint.tokenizer)} words for {config.vocab_size} rows")
    expected = NextWordModel.shapes(config)
    for group in (checkpoint.model, checkpoint.last):
        found = {name: array.shape for name, array in group.items()}
        if found != expected and (group or group is checkpoint.model):
            raise ValueError("its tensors are not those of its settings")


def load_model(path: str | Path) -> tuple[NextWordModel, WordTokenizer]:
    """Return the trained model of a checkpoint and its tokenizer.

    Raises
    ------
    InputError
        As `load_checkpoint`.
    """
    checkpoint = load_checkpoint(path)
    model = NextWordModel(checkpoint.config)
    copy_into(model.params, checkpoint.model)
    return model, checkpoint.tokenizer


def copy_into(params: Params, source: dict[str, Array]) -> None:
    """Overwrite parameters in place."""
    for name, p in params.items():
        p[...] = source[name]
