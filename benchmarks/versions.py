"""The versions of the contestants."""

from importlib import metadata

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


def versions() -> dict[str, str]:
    """The installed versions of all contestants."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
