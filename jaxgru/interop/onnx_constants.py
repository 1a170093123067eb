"""Values of an ONNX model that depend on constants only, computed by the evaluator of ONNX."""

from typing import Any

import numpy as np

from jaxgru import checks
from jaxgru.interop.onnx_model import STANDARD, Model, Place, allowance

# Operators that exporters put between a weight and its node. None makes more numbers than it gets.
COMPUTED = (
    "Cast", "Concat", "Constant", "DequantizeLinear", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
DTYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT16", "UINT16", "INT32",
          "INT64")  # fmt: skip
MOST_OPERATORS = 1000  # for one value. Exporters need about twelve, and each takes 0.3 ms.
FOLD = "Export the model with constant folding."


class Constants:
    """The values that a node can see and that do not depend on an input of the model."""

    def __init__(self, model: Model, place: Place) -> None:
        self._model = model
        self._graphs = [_Graph(graph) for graph in place.graphs]
        self._arrays: dict[tuple[int, str], np.ndarray] = {}  # by the level of a graph, and a name
        self._read = self._made = 0  # bytes

    def lacks(self, name: str) -> tuple[str, str] | None:
        """Why this value cannot be computed, and the fix. None if it can be computed."""
        return self._trace(name)[1]

    def array(self, label: str, name: str) -> np.ndarray:
        """Return the value of this name, which can be computed. label is its name in errors."""
        for level, index in self._trace(name)[0]:
            self._compute(label, level, self._graphs[level].nodes[index])
        return self._value(label, len(self._graphs) - 1, name)

    def _level(self, level: int, name: str) -> int:
        """The level of the graph that defines a name which this level sees, or -1 if none does."""
        while level >= 0 and name not in self._graphs[level]:
            level -= 1
        return level

    def _trace(self, wanted: str) -> tuple[list[tuple[int, int]], tuple[str, str] | None]:
        """Return the nodes that compute a value, in a valid order, and the result of `lacks`."""
        order: list[tuple[int, int]] = []
        inputs, faults, operators = [], [], []
        entered, left = set[tuple[int, int]](), set[tuple[int, int]]()
        todo: list[tuple[int, str | int]] = [(len(self._graphs) - 1, wanted)]
        while todo:
            level, name = todo.pop()
            if isinstance(name, int):  # a node whose inputs all come before it now
                left.add((level, name))
                order.append((level, name))
                continue
            level = self._level(level, name)
            graph = self._graphs[level]
            if level < 0:
                faults.append(f"{name!r}, which no node makes")
            elif name in graph.others:
                inputs.append(graph.others[name])
            elif name in graph.makers:
                spot = level, graph.makers[name]
                if spot in entered:
                    faults += [] if spot in left else ["itself"]
                    continue
                entered.add(spot)
                node = graph.nodes[spot[1]]
                if node.op_type not in COMPUTED or node.domain not in STANDARD:
                    operators.append(f"{node.op_type} {node.name or name!r}")
                todo += [spot, *((level, part) for part in node.input if part)]
        if inputs or faults:
            return order, (f"a value that depends on {(inputs or faults)[-1]}", "")
        if operators:
            fix = f"from_onnx computes only {', '.join(COMPUTED)}. {FOLD}"
            return order, (f"the result of {operators[-1]}", fix)
        if len(order) > MOST_OPERATORS:
            return order, (f"the result of more than {MOST_OPERATORS} operators", FOLD)
        return order, None

    def _value(self, label: str, level: int, name: str) -> np.ndarray:
        """Return a tensor of the model, or a value that was computed before."""
        spot = self._level(level, name), name
        if spot not in self._arrays:
            self._arrays[spot] = self._load(label, self._graphs[spot[0]].tensors[name])
        return self._arrays[spot]

    def _load(self, label: str, tensor: Any) -> np.ndarray:
        from onnx import TensorProto, numpy_helper

        folder = self._model.folder
        if tensor.data_location == TensorProto.EXTERNAL and folder is None:
            got = "data in an external file"
            fix = "Pass the path of the model, or load the model with onnx.load."
            raise checks.error(ValueError, "from_onnx", label, "in the model", got, fix)
        if tensor.data_type not in _types():  # others would be unpacked to any declared size
            got = f"a tensor of the data type {tensor.data_type}"
            raise checks.error(
                ValueError, "from_onnx", label, f"of one of the data types {', '.join(DTYPES)}", got
            )
        try:
            array = numpy_helper.to_array(tensor, str(folder or ""))
        except Exception as reason:  # a file may be missing, cut short or outside the folder
            expected, got = f"readable, of shape {list(tensor.dims)}", f"{reason}".rstrip(".")
            raise checks.error(ValueError, "from_onnx", label, expected, got) from reason
        self._read += array.nbytes
        return array

    def _compute(self, label: str, level: int, node: Any) -> None:
        """Compute and keep the outputs of a node, after a check of their size."""
        from onnx import ValueInfoProto, helper
        from onnx.reference import ReferenceEvaluator

        if all((level, name) in self._arrays for name in node.output if name):
            return
        values = {name: self._value(label, level, name) for name in node.input if name}
        given = [values.get(name) for name in node.input]
        computed = f"computed by {node.op_type} {node.name or node.output[0]!r}"
        size = 8 * sum(value.size for value in given if value is not None)  # no dtype is wider
        self._made += size
        if self._made > allowance(self._read):
            got = f"{size} bytes or more, computed from {self._read} bytes of constants"
            raise checks.error(
                ValueError, "from_onnx", label, f"{computed}, and of a reasonable size", got
            )
        # The evaluator has this operator from version 19 on. It computes the same as before.
        opset = max(self._model.opset, 19 if node.op_type == "DequantizeLinear" else 1)
        sources = [ValueInfoProto(name=name) for name in values]
        names = [name for name in node.output if name]
        results = [ValueInfoProto(name=name) for name in names]
        try:
            _check_size(node, given)
            graph = helper.make_graph([node], "constant", sources, results)
            with np.errstate(all="ignore"):  # inf and NaN are valid values
                made = ReferenceEvaluator(graph, opsets={"": opset}).run(None, values)
        except Exception as reason:  # NumPy raises many kinds for wrong shapes and axes
            got = f"{reason}".rstrip(".")
            raise checks.error(ValueError, "from_onnx", label, computed, got) from reason
        self._arrays |= {
            (level, name): np.asarray(one) for name, one in zip(names, made, strict=True)
        }


def _check_size(node: Any, given: list[Any]) -> None:
    """Raise an error if a node would make more numbers than it gets, or an unsupported type."""
    from onnx import helper

    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    types = _types()
    allowed: dict[tuple[str, str], Any] = {
        ("Cast", "to"): types,
        ("Constant", "sparse_value"): (),
        ("Constant", "value_string"): (),
        ("Constant", "value_strings"): (),
        ("DequantizeLinear", "block_size"): (0,),
        ("DequantizeLinear", "output_dtype"): (0, *types),
        ("Split", "num_outputs"): (len(node.output),),
    }
    for name, value in found.items():
        if value not in allowed.get((node.op_type, name), (value,)):
            raise ValueError(f"{name}={checks.shown(value)}, which is not supported")
    if node.op_type == "DequantizeLinear":
        x, *others = given
        axis = found.get("axis", 1)
        sizes = (1, x.shape[axis] if -x.ndim <= axis < x.ndim else 1)
        for other in others:
            if other is not None and (other.ndim > 1 or other.size not in sizes):
                x, other = checks.describe(x), checks.describe(other)
                raise ValueError(f"{other} as the scale or zero point of {x} along axis {axis}")


def _types() -> tuple[int, ...]:
    from onnx import TensorProto

    return tuple(TensorProto.DataType.Value(name) for name in DTYPES)


class _Graph:
    """The values of one graph by name."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.makers: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            held = [a.t for a in node.attribute if a.name == "value" and a.HasField("t")]
            if node.op_type == "Constant" and held and node.output:
                self.tensors[node.output[0]] = held[0]
            else:
                self.makers |= {name: index for name in node.output if name}
        self.others = {
            **{value.name: f"the input {value.name!r}" for value in graph.input},
            **{
                one.values.name: f"the sparse {one.values.name!r}"
                for one in graph.sparse_initializer
            },
        }
        for name in self.tensors:  # an input may have a default, which is a tensor
            self.others.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.makers or name in self.others
