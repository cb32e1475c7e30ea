"""``cattn generate``."""

from __future__ import annotations

import argparse

from cattn.cli import DEFAULT_MODEL

_EPILOG = """\
examples:
  python -m cattn generate --prompt "The value of"
  python -m cattn generate --prompt "The value of" --temperature 0
  python -m cattn generate --model book.safetensors --top-p 0.9 --samples 3 --seed 7
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EPILOG
    # fmt: off
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, metavar="FILE",
                        help=f"a checkpoint that train wrote (default: {DEFAULT_MODEL})")
    parser.add_argument("-p", "--prompt", default="", metavar="TEXT",
                        help="the text to continue (default: a new line)")
    parser.add_argument("--words", type=int, default=60, metavar="INT",
                        help="how many words to add (default: 60)")
    parser.add_argument("--temperature", type=float, default=0.8, metavar="FLOAT",
                        help="0: always the likeliest word; 1: as learnt (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="INT",
                        help="draw from the likeliest INT words only")
    parser.add_argument("--top-p", type=float, metavar="FLOAT",
                        help="draw from the likeliest words that sum to this probability")
    parser.add_argument("--samples", type=int, default=1, metavar="INT",
                        help="how many continuations (default: 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="INT",
                        help="seed of the first sample (default: 0)")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Print continuations."""
    from cattn.lm import InputError, generate, load_model

    if options.seed < 0:
        raise InputError(f"seed: is {options.seed}, expected at least 0")
    model, tokenizer = load_model(options.model)
    for i in range(options.samples):
        if i:
            print("-" * 40)
        print(
            generate(
                model,
                tokenizer,
                options.prompt,
                words=options.words,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                seed=options.seed + i,
            )
        )
    return 0
