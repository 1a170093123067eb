"""`import jaxgru` imports jax and no other library."""

import subprocess
import sys

LIBRARIES = ("equinox", "flax", "haiku", "keras", "matplotlib", "onnx", "onnxruntime", "optax")
LIBRARIES += ("msgpack", "orbax", "safetensors", "tensorflow", "torch")


def test_nothing_else_is_imported():
    code = "import sys, jaxgru.interop; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "jaxgru" in found
    assert not set(found) & set(LIBRARIES)
