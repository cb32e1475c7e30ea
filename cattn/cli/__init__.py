"""The command line: one module per command, each imported when it runs."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "train": "train a next-word model on a text",
    "generate": "continue a text with a trained model",
    "show": "draw which words a word attends to",
    "demo": "train, generate, draw and time, on the embedded text, in a minute or two",
    "bench": "time attention against plain NumPy",
    "info": "print the version, the instruction set and the number of threads",
}

_EPILOG = """\
examples:
  python -m cattn demo
  python -m cattn train book.txt
  python -m cattn generate --prompt "Once upon a time"
  python -m cattn show "Once upon a time there was" --output attention.png

python -m cattn COMMAND --help says more about a command.
"""

DEFAULT_MODEL = "model.safetensors"

USER_ERROR = 2  #: exit code for what the person who typed the command can mend
INTERRUPTED = 130  #: exit code after Ctrl-C
CLOSED = 141  #: exit code when the output is no longer read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default ``sys.argv[1:]``.

    Examples
    --------
    >>> from cattn.cli import main
    >>> main(["generate", "--model", "no_such.safetensors"])
    2
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a word that the terminal lacks prints as ?
    from cattn.lm.errors import InputError

    try:
        options = _parser(arguments).parse_args(arguments)
        module = importlib.import_module(f"cattn.cli.{options.command}")
        code: int = module.run(options)
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"cattn: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("cattn: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads the output has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
        return CLOSED


def to_type(*arguments: object) -> str:
    """Return what to type for another command, the program named as it was this time.

    Beside the sources, ``python -m cattn`` finds them and not what is installed.

    Examples
    --------
    >>> from cattn.cli import to_type
    >>> to_type("generate", "--prompt", "Once upon")
    "python -m cattn generate --prompt 'Once upon'"
    """
    installed = Path(sys.argv[0]).name == "cattn"
    program = [sys.argv[0]] if installed else ["python", "-m", "cattn"]
    return shlex.join([*program, *map(str, arguments)])


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; of the commands' modules only the one that is asked for is imported."""
    parser = argparse.ArgumentParser(
        prog="cattn",
        description="Attention on the CPU, and a next-word model trained on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in arguments if word in COMMANDS), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == asked:
            importlib.import_module(f"cattn.cli.{name}").configure(command)
    return parser
