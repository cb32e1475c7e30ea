"""Fail if an object file defines a weak symbol: check_weak_symbols.py NM STAMP OBJECT..."""

import pathlib
import subprocess
import sys

nm, stamp, *objects = sys.argv[1:]
weak = []
for path in objects:
    listing = subprocess.run([nm, path], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        kind, name = line.split()[-2:]
        # W and V are weak functions and objects, u is a unique global. Lower-case w and v are
        # references without a definition (sanitizers have some).
        if kind in "WVu":
            weak.append(f"{path}: weak symbol {name}")
if weak:
    sys.exit("\n".join(weak))
pathlib.Path(stamp).touch()
