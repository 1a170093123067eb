"""A model of ONNX as a file: its recurrent nodes and its constants, by name. Nothing is run."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxgru import checks

KINDS = ("GRU", "LSTM", "RNN")


def load(source: Any) -> tuple[Any, str, Path | None]:
    """(the model, what to call it, where its external files are)."""
    import onnx
    from google.protobuf.message import DecodeError

    if isinstance(source, onnx.ModelProto):
        return source, "source", None
    if isinstance(source, bytes):
        data, where, folder = source, "source", None
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        data, where, folder = path.read_bytes(), f"the file {str(path)!r}", path.parent
    else:
        expected = "a path, bytes or an onnx.ModelProto"
        raise checks.error(TypeError, "from_onnx", "source", expected, checks.describe(source))
    fix = "It may be cut off, or of another format."
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        got = f"{len(data)} bytes that cannot be decoded"
        raise checks.error(ValueError, "from_onnx", where, "an ONNX model", got, fix) from None
    if not (model.HasField("graph") and model.opset_import):  # written last
        got = f"{len(data)} bytes without an end"
        raise checks.error(ValueError, "from_onnx", where, "an ONNX model", got, fix)
    return model, where, folder


def find(nodes: Iterable[Any], where: str, wanted: str | None) -> Any:
    """The recurrent node of this name, or the only one."""
    found = [n for n in nodes if n.op_type in KINDS and n.domain in ("", "ai.onnx")]
    if not found:
        kinds = ", ".join(sorted({f"{n.op_type}" for n in nodes})) or "none"
        expected = "a model with a GRU, LSTM or RNN node in its main graph"
        raise checks.error(ValueError, "from_onnx", where, expected, f"nodes: {kinds}")
    if wanted is not None and not isinstance(wanted, str):
        raise checks.error(TypeError, "from_onnx", "node", "a name", checks.describe(wanted))
    fits = [n for n in found if wanted is None or (wanted and wanted in (n.name, *n.output))]
    if len(fits) == 1:
        return fits[0]
    if fits and wanted is not None:
        outputs = " or ".join(repr(next(filter(None, n.output), "")) for n in fits)
        expected, got = "the name of one node", f"{wanted!r}, which {len(fits)} nodes have"
        fix = f"The names of outputs tell them apart: {outputs}."
        raise checks.error(ValueError, "from_onnx", "node", expected, got, fix)
    expected = f"one of {', '.join(repr(name_of(n)) for n in found)}"
    fix = "A chain of layers is read one node at a time." if wanted is None else ""
    raise checks.error(ValueError, "from_onnx", "node", expected, repr(wanted), fix)


def name_of(node: Any) -> str:
    """What to call a node, which need not have a name: else by an output."""
    return node.name or next(filter(None, node.output), "")


class Constants:
    """The values that a model holds: initializers and Constant nodes, also through Identity."""

    def __init__(self, graph: Any, folder: Path | None) -> None:
        self._folder = folder
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._same = {}
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._tensors[node.output[0]] = attribute.t
            elif node.op_type == "Identity":
                self._same[node.output[0]] = node.input[0]

    def __contains__(self, name: str) -> bool:
        return self._origin(name) in self._tensors

    def _origin(self, name: str) -> str:
        for _ in self._same:  # at most so many, in a ring of them too
            name = self._same.get(name, name)
        return name

    def array(self, label: str, name: str) -> np.ndarray:
        """The value of this name, which is a constant; label is what to call it in an error."""
        from onnx import TensorProto, numpy_helper

        tensor = self._tensors[self._origin(name)]
        if tensor.data_location == TensorProto.EXTERNAL and self._folder is None:
            got = "data in an external file"
            fix = "Give the path of the model, or load it by onnx.load."
            raise checks.error(ValueError, "from_onnx", label, "in the model", got, fix)
        try:
            return numpy_helper.to_array(tensor, str(self._folder or ""))
        except Exception as reason:  # of many kinds: a file missing, cut off or outside the folder
            expected, got = f"readable, of shape {list(tensor.dims)}", f"{reason}".rstrip(".")
            raise checks.error(ValueError, "from_onnx", label, expected, got) from reason
