"""``cattn show``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from cattn.cli import DEFAULT_MODEL

if TYPE_CHECKING:
    from cattn.lm import NextWordModel, WordTokenizer

_EPILOG = """\
A row is a word that reads, a column a word that is read; the darker, the more. The last words of
a text longer than the context are shown.

examples:
  python -m cattn show "Some objects have a value that can change"
  python -m cattn show "Some objects have a value" --output heads.png --head all
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = _EPILOG
    # fmt: off
    parser.add_argument("text", metavar="TEXT", help="the words to look at")
    parser.add_argument("-m", "--model", default=DEFAULT_MODEL, metavar="FILE",
                        help=f"a checkpoint that train wrote (default: {DEFAULT_MODEL})")
    parser.add_argument("-o", "--output", metavar="FILE",
                        help="also draw a picture (.png, .svg, .pdf)")
    parser.add_argument("--block", type=int, metavar="INT",
                        help="which block, from 1 (default: the last)")
    parser.add_argument("--head", default="mean", metavar="HEAD",
                        help="a number from 1, mean, or all: a panel each (default: mean)")
    # fmt: on


def run(options: argparse.Namespace) -> int:
    """Draw."""
    from cattn.lm import InputError, load_model

    model, tokenizer = load_model(options.model)
    config = model.config
    block = config.blocks if options.block is None else options.block
    if not 1 <= block <= config.blocks:
        raise InputError(f"block: is {block}, expected 1 to {config.blocks}")
    heads: dict[str, Any] = {"mean": None, "all": "all"}
    heads |= {str(i + 1): i for i in range(config.heads)}
    if options.head not in heads:
        raise InputError(f"head: is {options.head}, expected 1 to {config.heads}, mean or all")
    show(model, tokenizer, options.text, options.output, block - 1, heads[options.head])
    return 0


def show(
    model: NextWordModel,
    tokenizer: WordTokenizer,
    text: str,
    output: str | None,
    block: int = -1,
    head: int | str | None = None,
) -> None:
    """Draw the attention of one block over a text; `head` is an index, None (mean) or "all"."""
    from cattn.lm import InputError, draw_attention, print_attention
    from cattn.lm.tokenizer import split

    words = split(text)[-model.config.context :]
    if not words:
        raise InputError("the text is empty")
    weights = model.attention_weights(tokenizer.encode_tokens(words))[block]
    one = weights[head] if isinstance(head, int) else weights.mean(axis=0)
    print_attention(words, one, sys.stdout)
    if output is None:
        return
    if draw_attention(words, weights if head == "all" else one, output):
        print(f"drawn into {output}")
    else:
        print(f"drawn into {output}: no installed font has all these characters, so the picture "
              "numbers the words as above (for Chinese, install fonts-noto-cjk)")  # fmt: skip
