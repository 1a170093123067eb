"""What the numbers were measured on, and with."""

import os
import platform
from importlib import metadata
from pathlib import Path

import jax

LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "dm-haiku",
    "equinox",
    "keras",
    "torch",
    "onnxruntime",
)


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


def versions() -> dict[str, str]:
    """The installed versions of all contestants."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
