"""What the figures were measured on: processor, cores, instruction sets, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from environment import allowed_cores

_PACKAGES = ("cattn", "numpy", "torch", "openvino", "onnxruntime", "jax")


def describe(isas: list[str]) -> dict[str, Any]:
    """Describe the machine in words and numbers that go into a results file."""
    return {
        "cpu": cpu_model(),
        "cores": len(allowed_cores()),
        "isas": isas,
        "load": round(os.getloadavg()[0], 1),
        "memory_gb": round(total_memory() / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: v for name in _PACKAGES if (v := _version(name)) is not None},
    }


def text(machine: dict[str, Any]) -> str:
    """Put a description in two lines, and a third if the machine was busy."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{', '.join(machine['isas'])}; {machine['system']}",
        f"Python {machine['python']}; {versions}",
    ]
    if machine["load"] > 0.5:
        lines.append(f"Not quiet: load {machine['load']} when it began. Other programs took time.")
    return "\n".join(lines)


def file_name(machine: dict[str, Any]) -> str:
    """Name a results file after the processor: ``amd-epyc-7763-2-cores.json``."""
    model = re.sub(r"\((R|TM)\)|CPU|Processor|@.*", " ", machine["cpu"], flags=re.IGNORECASE)
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{slug}-{machine['cores']}-cores.json"


def cpu_model() -> str:
    """Return the processor's name for itself, with family and model where the name is vague."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    if re.search(r"\d", name):
        return name
    return f"{name} family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"


def total_memory() -> int:
    """Return the bytes of memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
