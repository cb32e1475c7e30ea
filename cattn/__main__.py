"""``python -m cattn``."""

from __future__ import annotations

import sys

from cattn.cli import main

if __name__ == "__main__":
    sys.exit(main())
