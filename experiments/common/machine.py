"""A description of the machine on which numbers were measured."""

import os
import platform
from pathlib import Path

import jax


def surroundings() -> dict[str, str]:
    """The description of machine and software in every record."""
    return {"machine": machine(), "jax": jax.__version__, "python": platform.python_version()}


def machine() -> str:
    """Processor, cores and accelerator, in words."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        processor = names[0].strip() if names else processor
    devices = jax.devices()
    accelerator = "" if devices[0].platform == "cpu" else f", {devices[0].device_kind}"
    return f"{processor}, {os.cpu_count()} cores{accelerator}"
