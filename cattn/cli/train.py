"""``cattn train``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cattn.lm import Trainer

_EPILOG = """\
TEXT is a UTF-8 file, a folder of .txt, .md, .rst and .text files, or - for standard input.
Without TEXT, the model learns from the text that every Python carries: its language reference.

The last tenth of the text is held out: the model never trains on it. Its loss there is shown
beside those of a unigram and of a bigram model of the same words; lower is better (nats a word).
Training stops early when the held-out loss no longer falls, and the best weights are kept.

Ctrl-C saves and says how to go on; --resume goes on to the same result, to the last bit.

examples:
  python -m cattn train
  python -m cattn train book.txt -o book.safetensors
  cat *.txt | python -m cattn train - -o all.safetensors --steps 4000
  python -m cattn train book.txt --resume book.safetensors
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from cattn.cli import DEFAULT_MODEL
    from cattn.lm import ModelConfig, TrainSettings

    parser.epilog = _EPILOG
    # fmt: off
    parser.add_argument("text", nargs="*", metavar="TEXT", help="file, folder or -")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", metavar="FILE",
                       help=f"where the checkpoint goes (default: {DEFAULT_MODEL})")
    where.add_argument("--resume", metavar="FILE",
                       help="go on from this checkpoint, with its settings")
    parser.add_argument("--overwrite", action="store_true",
                        help="replace an existing FILE; the old one is kept as FILE.bak")
    parser.add_argument("--plain", action="store_true", help="a plain line for a progress bar")
    # fmt: on

    # Left out of the namespace unless given, so that --resume can refuse them.
    def option(group: Any, name: str, kind: Any, default: Any, text: str, **more: Any) -> None:
        group.add_argument(
            f"--{name}",
            type=kind,
            default=argparse.SUPPRESS,
            help=f"{text} (default: {default})",
            **({"metavar": kind.__name__.upper()} | more),
        )

    m = {f.name: f.default for f in fields(ModelConfig)}
    model = parser.add_argument_group("the model")
    option(model, "context", int, m["context"], "words that the model sees at once")
    option(model, "width", int, m["width"], "width of the residual stream")
    option(model, "heads", int, m["heads"], "attention heads; they divide the width")
    option(model, "blocks", int, m["blocks"], "blocks of attention and MLP")
    option(model, "hidden", int, "4 × width", "width inside the MLP")
    option(model, "dropout", float, m["dropout"], "dropout rate while training")
    model.add_argument(
        "--untied",
        dest="tied",
        action="store_false",
        default=argparse.SUPPRESS,
        help="give the output layer a table of its own",
    )

    t = {f.name: f.default for f in fields(TrainSettings)}
    training = parser.add_argument_group("the training")
    option(training, "steps", int, "12 passes, at most a minute or two", "steps in all")
    option(training, "batch", int, t["batch"], "windows of one context per step")
    option(training, "optimizer", str, t["optimizer"], "sgd or adam", metavar="NAME")
    option(training, "lr", float, t["lr"], "highest learning rate; for adam try 0.003")
    option(training, "momentum", float, t["momentum"], "momentum of sgd")
    option(training, "weight-decay", float, t["weight_decay"], "weight decay of the matrices")
    option(training, "clip", float, t["clip"], "highest length of the gradient")
    option(training, "warmup", int, t["warmup"], "steps over which the learning rate rises")
    option(training, "evaluations", int, t["evaluations"], "how often to measure and save")
    option(training, "patience", int, t["patience"], "evaluations without progress before a stop")
    option(training, "seed", int, t["seed"], "seed of everything random")

    words = parser.add_argument_group("the words")
    option(words, "held-out", float, 0.1, "share of the text, at its end, to test on")
    option(words, "min-count", int, "2, or 1 for a short text", "rarer words become <unk>")
    option(words, "vocabulary", int, "all", "keep so many words at most")


def run(options: argparse.Namespace) -> int:
    """Train."""
    from cattn.cli import DEFAULT_MODEL, INTERRUPTED, to_type
    from cattn.lm import InputError, Trainer, load_checkpoint, read_text

    given = _given(options)
    if options.resume is not None:
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise InputError(f"--resume takes its settings from the checkpoint: leave out {names}")
        path = Path(options.resume)
        load_checkpoint(path)  # complains before standard input is waited for
        trainer = Trainer.resume(path, read_text(options.text), show=True, plain=options.plain)
        describe(trainer)
    else:
        path = Path(options.output or DEFAULT_MODEL)
        if path.exists() and not options.overwrite:
            raise InputError(
                f"{path} exists: go on with --resume {path}, "
                "choose another with --output, or replace it with --overwrite"
            )
        trainer = new_trainer(read_text(options.text), path, given, plain=options.plain)
        begin(trainer, path)

    outcome = trainer.run()
    if outcome == "interrupted":
        print(f"interrupted at step {trainer.step} of {trainer.settings.steps}, saved to {path}")
        print(f"go on with: {to_type('train', *options.text, '--resume', path)}")
        return INTERRUPTED
    report(trainer, outcome)
    print(f"saved to {path}; try: {to_type('generate', '--model', path)}")
    return 0


def begin(trainer: Trainer, path: Path) -> None:
    """Rename a checkpoint that is about to be replaced, and write the new one for the first time.

    Written now, because a place that cannot be written is better known before the work than after.
    """
    from cattn.lm import InputError

    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file")
    if path.exists():
        path.replace(path.with_name(path.name + ".bak"))
    trainer.save()
    describe(trainer)


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were typed."""
    own = {"command", "text", "output", "resume", "overwrite", "plain"}
    return {name: value for name, value in vars(options).items() if name not in own}


def new_trainer(text: str, path: Path, given: dict[str, Any], *, plain: bool = False) -> Trainer:
    """Return the trainer of a new model; `given` holds settings that differ from the defaults."""
    from cattn.lm import (
        ModelConfig,
        NextWordModel,
        Trainer,
        TrainSettings,
        prepare,
        suggested_steps,
    )
    from cattn.lm.extras import require

    require("safetensors.numpy", "saving a checkpoint")  # before the work, not after it
    given = dict(given)
    tokenizer, data = prepare(
        text,
        held_out=given.pop("held_out", 0.1),
        min_count=given.pop("min_count", None),
        max_size=given.pop("vocabulary", None),
    )
    sizes = {f.name: given.pop(f.name) for f in fields(ModelConfig) if f.name in given}
    config = ModelConfig(len(tokenizer), **sizes)
    settings = TrainSettings(**given)
    if "steps" not in given:
        size = NextWordModel.count(config)
        steps = suggested_steps(len(data.train), size, settings.batch * config.context)
        settings = replace(settings, steps=steps)
    return Trainer.new(config, tokenizer, data, settings, path, show=True, plain=plain)


def describe(trainer: Trainer) -> None:
    """Say what is trained on what."""
    train, held_out = trainer.data
    config = trainer.model.config
    print(
        f"{len(train):,} words to train on, {len(held_out):,} held out, "
        f"vocabulary {config.vocab_size:,}\n"
        f"{trainer.model.count(config):,} parameters: width {config.width}, {config.heads} heads, "
        f"{config.blocks} block{'s' * (config.blocks > 1)}, context {config.context}"
    )
    sys.stdout.flush()


def report(trainer: Trainer, outcome: str) -> None:
    """Say how it went: the model's held-out loss beside what it must beat."""
    best = trainer.best()
    print(
        f"{outcome} at step {trainer.step} in {trainer.seconds:.0f} s, "
        f"{trainer.tokens_per_second:,.0f} tok/s with evaluations"
    )
    if trainer.ngrams is None or best is None:
        print(f"training loss {best.train:.3f} nats a word" if best else "nothing to do")
        return
    unigram, bigram, weight = trainer.ngrams
    print("held-out loss, nats a word:")
    print(f"  unigram            {unigram:.3f}")
    print(f"  bigram             {bigram:.3f}  (interpolated, weight {weight:.2f})")
    at = f"step {best.step}; training {best.train:.3f}"
    print(f"  this model         {best.held_out:.3f}  ({at})")
    margin = bigram - best.held_out
    verdict = "the model beats the bigram" if margin > 0 else "the bigram is NOT beaten"
    print(f"  below the bigram   {margin:.3f}  ({verdict})")
