"""``cattn info``."""

from __future__ import annotations

import argparse

import cattn


def configure(parser: argparse.ArgumentParser) -> None:
    """Take no arguments."""


def run(options: argparse.Namespace) -> int:
    """Print the configuration."""
    cattn.show_config()
    return 0
