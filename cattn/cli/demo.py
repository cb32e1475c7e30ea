"""``cattn demo``: everything once, on the embedded text."""

from __future__ import annotations

import argparse
from pathlib import Path

_EPILOG = """\
Trains a next-word model on the text that every Python carries, prints what it writes, draws what
it attends to, and times attention beside plain NumPy. A minute or two on two cores.

example:
  python -m cattn demo
"""

PROMPTS = ("The value of the expression", "If the object is", "A class definition")
SENTENCE = "If the object is not found, an exception is raised and the name is not bound."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EPILOG
    # fmt: off
    parser.add_argument("--folder", default="results", metavar="FOLDER",
                        help="where demo.safetensors and demo.png go (default: results)")
    parser.add_argument("--steps", type=int, metavar="INT", default=1000,
                        help="training steps (default: %(default)s, about five passes)")
    parser.add_argument("--plain", action="store_true", help="a plain line for a progress bar")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Run the demo."""
    from cattn.cli import INTERRUPTED, bench, show, to_type, train
    from cattn.lm import default_text, generate

    folder = Path(options.folder)
    path = folder / "demo.safetensors"

    _heading("a next-word model, trained on Python's language reference")
    given = {"steps": options.steps}
    trainer = train.new_trainer(default_text(), path, given, plain=options.plain)
    train.begin(trainer, path)
    outcome = trainer.run()
    if outcome == "interrupted":
        print(f"interrupted; go on with: {to_type('train', '--resume', path)}")
        return INTERRUPTED
    train.report(trainer, outcome)

    _heading("what it writes")
    for seed, prompt in enumerate(PROMPTS):
        text = generate(trainer.model, trainer.tokenizer, prompt, words=50, temperature=0.7,
                        top_p=0.95, seed=seed)  # fmt: skip
        print(f"[{prompt}]{text.removeprefix(prompt)}\n")

    _heading("what it attends to")
    show.show(trainer.model, trainer.tokenizer, SENTENCE, str(folder / "demo.png"))

    _heading("attention beside plain NumPy")
    bench.print_table([bench.Case(8, n, 64, c) for n in (128, 1024) for c in (False, True)])
    print(f"\nthe model is in {path}; try: {to_type('generate', '--model', path)}")
    return 0


def _heading(text: str) -> None:
    print(f"\n== {text} ==\n", flush=True)
