"""Functions that read and write the weights of other libraries.

A library is imported only when a function needs it. `jaxgru.interop.flax` has modules for models in
Flax. This package does not import that file, since the file imports flax.
"""

from jaxgru.interop.equinox import from_equinox, to_equinox
from jaxgru.interop.haiku import from_haiku, to_haiku
from jaxgru.interop.keras import from_keras, to_keras
from jaxgru.interop.linen import from_linen, to_linen
from jaxgru.interop.nnx import from_nnx, to_nnx
from jaxgru.interop.onnx import OnnxNode, from_onnx
from jaxgru.interop.onnx_model import onnx_nodes
from jaxgru.interop.onnx_write import to_onnx, to_onnx_step
from jaxgru.interop.torch import from_torch, to_torch

__all__ = [
    "OnnxNode",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_nnx",
    "from_onnx",
    "from_torch",
    "onnx_nodes",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_nnx",
    "to_onnx",
    "to_onnx_step",
    "to_torch",
]
