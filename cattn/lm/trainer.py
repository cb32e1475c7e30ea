"""Training: batches, steps, held-out losses, early stopping, and going on where one stopped."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cattn._types import Array
from cattn.lm.checkpoint import Checkpoint, copy_into, load_checkpoint, save_checkpoint
from cattn.lm.data import DROPOUT, Batches, scored_windows, stream
from cattn.lm.errors import InputError
from cattn.lm.model import ModelConfig, NextWordModel
from cattn.lm.ngram import NgramLosses, ngram_losses
from cattn.lm.optim import clip_by_global_norm, learning_rate, make_optimizer
from cattn.lm.parallel import Map, parallel_map
from cattn.lm.progress import NoProgress, Progress, progress_bar
from cattn.lm.tokenizer import WordTokenizer, split

# Tokens that a thread takes at a time. The parts of a batch and the order of their sum depend on
# its shape alone, so that the number of threads does not show in the result.
PART_TOKENS = 256

OPERATIONS = 6e12  #: what two cores do in a minute or two; see `suggested_steps`


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Parameters
    ----------
    steps, batch : int
        Steps in all (see `suggested_steps`), windows per step.
    optimizer : {"sgd", "adam"}
    lr, momentum, weight_decay : float
        The highest learning rate; momentum is SGD's.
    clip : float
        Highest joint length of the gradients.
    warmup : int
        Steps over which the learning rate rises; it falls along a cosine afterwards.
    evaluations : int
        How often the held-out loss is measured (and the checkpoint written).
    patience : int
        Stop after so many evaluations in a row without a lower held-out loss.
    seed : int
        Of the initial weights, the order of the text and the dropout.

    Raises
    ------
    InputError
        A number out of range.

    Examples
    --------
    >>> from cattn.lm import TrainSettings
    >>> TrainSettings(steps=100, evaluations=4).evaluate_every
    25
    """

    steps: int = 3000
    batch: int = 16
    optimizer: str = "sgd"
    lr: float = 0.5
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: int = 100
    evaluations: int = 10
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "evaluations", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: is {getattr(self, name)}, expected at least 1")
        for name in ("momentum", "weight_decay", "warmup", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name}: is {getattr(self, name)}, expected at least 0")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: is {getattr(self, name)}, expected more than 0")
        if self.optimizer not in ("sgd", "adam"):
            raise InputError(f"optimizer: is {self.optimizer}, expected sgd or adam")

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""
        return -(-self.steps // self.evaluations)


def suggested_steps(tokens: int, parameters: int, tokens_per_step: int) -> int:
    """Return twelve passes over a text in steps: at least 200, at most a minute or two's work.

    Many more passes than that over a small text are spent on overfitting; the schedule's low
    learning rates, where the held-out loss falls most, should come before it starts. The time is
    that of two cores, by the usual count of operations.

    References
    ----------
    Kaplan et al., "Scaling Laws for Neural Language Models" (2020), section 2.1: a parameter takes
    six operations per token.

    Examples
    --------
    >>> from cattn.lm import suggested_steps
    >>> [suggested_steps(tokens, 500_000, 512) for tokens in (1000, 100_000, 1_000_000)]
    [200, 2343, 3906]
    """
    passes = 12 * tokens // tokens_per_step
    affordable = int(OPERATIONS / (6 * parameters * tokens_per_step))
    return max(200, min(passes, affordable))


class Record(NamedTuple):
    """One evaluation: mean losses in nats."""

    step: int
    train: float  #: over the steps since the last evaluation, with dropout
    held_out: float  #: nan without a held-out part


class Dataset(NamedTuple):
    """A text as ids: the head to train on, the tail to test on."""

    train: Array
    held_out: Array


def prepare(
    text: str, *, held_out: float = 0.1, min_count: int | None = None, max_size: int | None = None
) -> tuple[WordTokenizer, Dataset]:
    """Split a text into words, hold out its end, and make the vocabulary of the rest.

    Parameters
    ----------
    text : str
    held_out : float
        The share of the tokens, at the end of the text, that is kept for testing.
    min_count, max_size
        See `WordTokenizer.from_tokens`.

    Raises
    ------
    InputError
        A share outside [0, 1), or nothing left to train on.

    Examples
    --------
    >>> from cattn.lm import prepare
    >>> tokenizer, data = prepare("one two three four five six seven eight nine ten")
    >>> len(tokenizer), len(data.train), data.held_out
    (10, 9, array([0], dtype=int32))
    """
    if not 0 <= held_out < 1:
        raise InputError(f"held_out: is {held_out}, expected at least 0 and less than 1")
    tokens = split(text)
    cut = len(tokens) - int(len(tokens) * held_out)
    tokenizer = WordTokenizer.from_tokens(tokens[:cut], min_count=min_count, max_size=max_size)
    ids = tokenizer.encode_tokens(tokens)
    return tokenizer, Dataset(ids[:cut], ids[cut:])


class Trainer:
    """Trains a model on one text.

    Every random number is a function of the seed and the step (see `cattn.lm.data`), so that the
    step, the parameters and the optimiser's state are all there is to save, and a run that was
    broken off goes on with the losses of an unbroken one, to the last bit.

    Parameters
    ----------
    model : NextWordModel
    tokenizer : WordTokenizer
    data : Dataset
    settings : TrainSettings
    path : str or Path, optional
        Where the checkpoint goes; None keeps nothing.
    show, plain : bool
        Show a progress bar; a plain one even if tqdm is installed.

    Attributes
    ----------
    step : int
        Steps done.
    history : list of Record
    ngrams : NgramLosses or None
        The unigram's and the bigram's held-out losses; None without a held-out part.
    seconds, tokens_per_second : float
        Of the last `run`, evaluations included.

    Raises
    ------
    InputError
        A text shorter than one window.

    Examples
    --------
    >>> from cattn.lm import ModelConfig, NextWordModel, Trainer, TrainSettings, prepare
    >>> tokenizer, data = prepare("one two three four " * 20, held_out=0.1)
    >>> model = NextWordModel(ModelConfig(len(tokenizer), context=8, width=16, dropout=0.0))
    >>> settings = TrainSettings(steps=60, batch=4, warmup=5, evaluations=2)
    >>> trainer = Trainer(model, tokenizer, data, settings)
    >>> trainer.run()
    'finished'
    >>> trainer.history[-1].held_out < trainer.ngrams.unigram
    True
    """

    def __init__(
        self,
        model: NextWordModel,
        tokenizer: WordTokenizer,
        data: Dataset,
        settings: TrainSettings,
        path: str | Path | None = None,
        *,
        show: bool = False,
        plain: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.data = model, tokenizer, data
        self.settings, self.path = settings, path
        self.show, self.plain = show, plain
        self.batches = Batches(data.train, model.config.context, settings.batch, settings.seed)
        self.optimizer = make_optimizer(
            settings.optimizer,
            model.params,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.ngrams: NgramLosses | None = None
        if len(data.held_out):
            self.ngrams = ngram_losses(data.train, data.held_out, model.config.vocab_size)
        self.step = 0
        self.history: list[Record] = []
        self.seconds = self.tokens_per_second = 0.0
        self._loss_sum = 0.0  # of the steps since the last evaluation
        self._loss_count = 0
        self._best = _copy(model.params)
        self._stopping = False
        self._map: Map = map

    @classmethod
    def new(
        cls,
        config: ModelConfig,
        tokenizer: WordTokenizer,
        data: Dataset,
        settings: TrainSettings,
        path: str | Path | None = None,
        *,
        show: bool = False,
        plain: bool = False,
    ) -> Trainer:
        """Return a trainer of a new model whose output bias holds the words' frequencies."""
        model = NextWordModel(config, settings.seed)
        model.set_bias(np.bincount(data.train, minlength=config.vocab_size))
        return cls(model, tokenizer, data, settings, path, show=show, plain=plain)

    @classmethod
    def resume(
        cls, path: str | Path, text: str, *, show: bool = False, plain: bool = False
    ) -> Trainer:
        """Go on from a checkpoint with the text that it was trained on.

        Raises
        ------
        InputError
            As `load_checkpoint`; another text; a checkpoint without the state of training.
        """
        checkpoint = load_checkpoint(path)
        state = checkpoint.training
        if not checkpoint.last or not state:
            raise InputError(f"{path}: holds a model, but not the state of its training")
        ids = checkpoint.tokenizer.encode(text)
        data = Dataset(ids[: state["train_tokens"]], ids[state["train_tokens"] :])
        if _digest(data) != state["digest"]:
            raise InputError(f"{path}: was trained on another text; give the same text to go on")
        settings = TrainSettings(**state["settings"])
        model = NextWordModel(checkpoint.config, settings.seed)
        copy_into(model.params, checkpoint.last)
        trainer = cls(model, checkpoint.tokenizer, data, settings, path, show=show, plain=plain)
        copy_into(trainer.optimizer.state, checkpoint.optimizer)
        copy_into(trainer._best, checkpoint.model)
        trainer.step = state["step"]
        trainer.history = [Record(*record) for record in state["history"]]
        trainer._loss_sum, trainer._loss_count = state["loss_sum"], state["loss_count"]
        return trainer

    def save(self) -> None:
        """Write the checkpoint, if there is a path."""
        if self.path is None:
            return
        training = {
            "settings": asdict(self.settings),
            "train_tokens": len(self.data.train),
            "digest": _digest(self.data),
            "step": self.step,
            "history": self.history,
            "loss_sum": self._loss_sum,
            "loss_count": self._loss_count,
        }
        save_checkpoint(
            self.path,
            Checkpoint(self.model.config, self.tokenizer, self._best, self.model.params,
                       self.optimizer.state, training),
        )  # fmt: skip

    def train_step(self) -> float:
        """Make one step and return the loss before it.

        Raises
        ------
        InputError
            The loss is not finite: training has diverged.
        """
        s = self.settings
        batch = self.batches.at(self.step)
        starts = range(0, s.batch, self._part)
        parts = self._map(lambda start: self._part_of_step(batch, start), starts)
        loss: float
        loss, grads = next(parts)
        for part_loss, part_grads in parts:
            loss += part_loss
            for name, g in grads.items():
                g += part_grads[name]
        self._check_finite(loss)
        clip_by_global_norm(grads, s.clip)
        lr = learning_rate(self.step, s.steps, s.lr, s.warmup)
        self.optimizer.update(grads, lr, self.step)
        self.step += 1
        self._loss_sum += loss
        self._loss_count += 1
        return loss

    @property
    def _part(self) -> int:
        """Windows that a thread takes at a time."""
        return max(1, PART_TOKENS // self.model.config.context)

    def _part_of_step(self, batch: Array, start: int) -> tuple[float, dict[str, Array]]:
        """Return what the windows from `start` add to the batch's loss and gradients."""
        windows = batch[start : start + self._part]
        rng = stream(self.settings.seed, DROPOUT, self.step, start)
        return self.model.loss_and_grads(windows, rng, len(windows) / len(batch))

    def held_out_loss(self) -> float:
        """Return the mean loss over every token of the held-out part.

        Windows overlap by half and reach back into the training part, so that each token is
        scored once, with at least half a context of tokens before it.
        """
        train, held_out = self.data
        if not len(held_out):
            return float("nan")
        context = self.model.config.context
        parts = scored_windows(train, held_out, context, self._part)
        return sum(self._map(lambda part: self._total_loss(*part), parts)) / len(held_out)

    def _total_loss(self, windows: Array, scored: int) -> float:
        return float(self.model.losses(windows)[:, -scored:].sum(dtype=np.float64))

    def run(self, until: int | None = None) -> str:
        """Train up to step `until` (default: all steps), leaving the best weights in the model.

        Ctrl-C lets the step under way finish; a second one does not wait.

        Returns
        -------
        {"finished", "stopped early", "interrupted", "paused"}
            Paused: `until` is reached. The checkpoint has been written in each case.

        Raises
        ------
        InputError
            Training has diverged, or the checkpoint cannot be written. The last one is whole.
        """
        s = self.settings
        end = s.steps if until is None else min(until, s.steps)
        per_step = s.batch * self.model.config.context
        bar: Progress = NoProgress()
        if self.show:
            bar = progress_bar(s.steps * per_step, self.step * per_step, plain=self.plain)
        start_time, start_step = time.perf_counter(), self.step
        self._stopping = False
        try:
            # Overflow shows in the loss, which is checked.
            with self._ctrl_c(), self._threads(), np.errstate(all="ignore"):
                while self.step < end and not self._is_overfitting() and not self._stopping:
                    self.train_step()
                    if self.step % s.evaluate_every == 0 or self.step == s.steps:
                        self._evaluate(bar)
                        self.save()
                    bar.advance(per_step, self._note())
                self.save()
        finally:
            bar.close()
        self.seconds = max(time.perf_counter() - start_time, 1e-9)
        self.tokens_per_second = (self.step - start_step) * per_step / self.seconds
        if self.step == s.steps or self._is_overfitting():
            copy_into(self.model.params, self._best)
        if self._is_overfitting():
            return "stopped early"
        if self.step == s.steps:
            return "finished"
        return "interrupted" if self._stopping else "paused"

    def best(self) -> Record | None:
        """Return the evaluation with the lowest held-out loss, or without one the last."""
        if not self.history:
            return None
        if self.ngrams is None:
            return self.history[-1]
        return min(self.history, key=lambda record: record.held_out)

    def _evaluate(self, bar: Progress) -> None:
        record = Record(self.step, self._loss_sum / self._loss_count, self.held_out_loss())
        if self.ngrams is not None:
            self._check_finite(record.held_out)
        self._loss_sum, self._loss_count = 0.0, 0
        self.history.append(record)
        if self.best() is record:
            copy_into(self._best, self.model.params)
        bar.say(f"step {self.step:>6}  {_losses_text(record, self.ngrams)}")

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"training diverged at step {self.step}: the loss is {loss}; "
                f"a learning rate below {self.settings.lr} may help"
            )

    def _is_overfitting(self) -> bool:
        best = self.best()
        if best is None or self.ngrams is None:
            return False
        return len(self.history) - 1 - self.history.index(best) >= self.settings.patience

    def _note(self) -> str:
        if self._loss_count:
            return f"train {self._loss_sum / self._loss_count:.3f}"
        return f"train {self.history[-1].train:.3f}"

    @contextmanager
    def _threads(self) -> Iterator[None]:
        """Share the windows of a step among threads."""
        with parallel_map() as self._map:
            self.model.num_threads = 1
            try:
                yield
            finally:
                self._map, self.model.num_threads = map, None

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """Turn the first Ctrl-C into a wish to stop, so that no step is torn."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals are the main thread's
            return

        def wish(number: int, frame: Any) -> None:
            self._stopping = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, wish)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _losses_text(record: Record, ngrams: NgramLosses | None) -> str:
    text = f"train {record.train:.3f}"
    if ngrams is None:
        return text
    return (
        f"{text}  held-out {record.held_out:.3f}"
        f"  (unigram {ngrams.unigram:.3f}, bigram {ngrams.bigram:.3f})"
    )


def _digest(data: Dataset) -> str:
    """Identify a text by its ids, and by where it is cut."""
    digest = hashlib.sha256(str(len(data.train)).encode())
    for ids in data:
        digest.update(ids.astype("<i4").tobytes())
    return digest.hexdigest()


def _copy(params: dict[str, Array]) -> dict[str, Array]:
    return {name: p.copy() for name, p in params.items()}
