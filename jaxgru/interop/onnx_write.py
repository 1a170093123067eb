"""Networks as ONNX models that onnxruntime runs: one native node a layer."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgru import checks, layers
from jaxgru.cell import Params, is_cell
from jaxgru.interop.onnx import FORMS
from jaxgru.interop.weights import Form, form_of, to_packed
from jaxgru.layers import Bidirectional, Stack
from jaxgru.lstm import LSTMParams

OPSET, IR_VERSION = 17, 8  # what onnxruntime has run since 1.12
OPS: dict[Form, str] = {form: op for op, forms in FORMS.items() for form in forms}


def to_onnx(params: Params, path: str | os.PathLike[str], *, reverse: bool = False) -> None:
    """Write a network as an ONNX model.

        outputs, *last = session.run(None, {"xs": xs, "length": length, "carry": carry})

    is a `jaxgru.scan` vmapped over axis 1 of xs and outputs. A cell is one node, GRU, LSTM or RNN,
    and so is a Bidirectional of two cells of one kind and size; a Stack is a chain.

    | value | shape | |
    | --- | --- | --- |
    | xs | `[T, N, I]` | any T and N, but for N = 0, which onnxruntime does not survive |
    | length | int32 `[N]`, or `[1]` for all | may be left out: T. Clipped to [0, T] |
    | carry | `[N, H]`, or `[1, H]` for all | may be left out: zeros |
    | outputs | `[T, N, H]` | zeros in the padding |
    | last | `[N, H]` | the carry after the last real step; the given one at length 0 |

    carry and last are named by their places in the carry of params: carry of a GRU; carry_h and
    carry_c of an LSTM; carry_1_h of an LSTM that is layer 1 of a Stack; carry_0 and carry_1 of a
    Bidirectional. The nodes are named likewise, GRU or LSTM_1. onnxruntime warns that what may be
    left out is not treated as a constant, which is what is wanted.

    Args:
        params: GRUParams, LSTMParams, ElmanParams, or any Bidirectional or Stack of them, of
            float32 or float16.
        path: the file to write.
        reverse: as for `scan`: from the last real step to the first.

    Raises:
        TypeError, ValueError: params of another kind, or of a dtype that onnxruntime does not run.

    Example:
        >>> import jax, jaxgru, numpy as np, onnxruntime, pathlib, tempfile
        >>> params = jaxgru.stack_init(jax.random.key(0), 3, 4, num_layers=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "gru.onnx")
        ...     jaxgru.interop.to_onnx(params, path)
        ...     options = onnxruntime.SessionOptions()
        ...     options.log_severity_level = 3
        ...     session = onnxruntime.InferenceSession(path, options)
        >>> [value.name for value in session.get_outputs()]
        ['outputs', 'last_0', 'last_1']
        >>> session.run(["outputs"], {"xs": np.ones((20, 5, 3), "float32")})[0].shape
        (20, 5, 4)

    Source: the operators GRU, LSTM and RNN in the documentation of ONNX.
    """
    layers.check("to_onnx", params)
    checks.flag("to_onnx", "reverse", reverse)
    dtype = np.dtype(layers.dtype(params))
    if dtype not in (np.float32, np.float16):
        fix = "Cast them: jax.tree.map(lambda w: w.astype('float32'), params)."
        expected = "of float32 or float16, which onnxruntime runs"
        raise checks.error(TypeError, "to_onnx", "params", expected, dtype.name, fix)
    if not isinstance(path, str | os.PathLike):
        raise checks.error(TypeError, "to_onnx", "path", "a path", checks.describe(path))
    size, width = layers.sizes(params)
    graph = _Graph(dtype, size)
    graph.output("outputs", "T", "N", width)
    ys = _run(graph, params, "xs", (), reverse)
    graph.node("Identity", [ys], ["outputs"])
    Path(path).write_bytes(graph.model().SerializeToString())


class _Graph:
    """A graph in the making. Values go by their names."""

    def __init__(self, dtype: np.dtype, size: int) -> None:
        from onnx import TensorProto

        self.dtype = dtype
        self._nodes, self._held, self._inputs, self._outputs = [], [], [], []

        self.input("xs", dtype, "T", "N", size)
        self.first, self.second = self.constant(np.array([0])), self.constant(np.array([1]))
        steps = self.value("Cast", self.value("Shape", "xs", start=0, end=1), to=TensorProto.INT32)
        batch = self.value("Shape", "xs", start=1, end=2)
        self.column = self.value("Concat", batch, self.second, axis=0)  # (N, 1)

        self.input("length", np.int32, "N_or_1", default=[np.iinfo(np.int32).max])
        zero = self.constant(np.array([0], np.int32))
        clipped = self.value("Min", self.value("Max", "length", zero), steps)
        self.length = self.value("Expand", clipped, batch)
        self.empty = self.value("Unsqueeze", self.value("Equal", self.length, zero), self.second)

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Any node."""
        from onnx import helper

        self._nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    def value(self, op: str, *inputs: str, **attributes: Any) -> str:
        """The output of a node that has one."""
        name = f"{op.lower()}_{len(self._nodes)}"
        self.node(op, list(inputs), [name], **attributes)
        return name

    def constant(self, value: Any, name: str = "") -> str:
        """An array that the model holds."""
        from onnx import numpy_helper

        name = name or f"constant_{len(self._held)}"
        self._held.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, name: str, dtype: Any, *shape: int | str, default: Any = None) -> None:
        """An input of the model, which may be left out if it has a default."""
        self._inputs.append(_described(name, dtype, shape))
        if default is not None:
            self.constant(np.asarray(default, dtype), name)

    def output(self, name: str, *shape: int | str) -> None:
        """An output of the model."""
        self._outputs.append(_described(name, self.dtype, shape))

    def model(self) -> Any:
        """The whole, an `onnx.ModelProto`."""
        from onnx import helper

        graph = helper.make_graph(self._nodes, "jaxgru", self._inputs, self._outputs, self._held)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            graph, producer_name="jaxgru", opset_imports=[opset], ir_version=IR_VERSION
        )


def _described(name: str, dtype: Any, shape: tuple[int | str, ...]) -> Any:
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)


def _run(graph: _Graph, params: Params, xs: str, path: tuple[int, ...], reverse: bool) -> str:
    """The outputs of params over xs; path is the place of their carry in the whole carry."""
    if isinstance(params, Stack):
        for k, layer in enumerate(params.layers):
            xs = _run(graph, layer, xs, (*path, k), reverse)
        return xs
    if isinstance(params, Bidirectional):
        one, other = params.forward, params.backward
        if _alike(one, other) and not reverse:
            return _node(graph, [one, other], xs, path, "bidirectional")
        ys = _run(graph, one, xs, (*path, 0), reverse)
        zs = _run(graph, other, xs, (*path, 1), not reverse)
        return graph.value("Concat", ys, zs, axis=2)
    return _node(graph, [params], xs, path, "reverse" if reverse else "forward")


def _alike(one: Params, other: Params) -> bool:
    """Whether one node can hold both."""
    if not (is_cell(one) and type(one) is type(other)):  # JAX compares no types
        return False
    same = jax.tree.structure(one) == jax.tree.structure(other)
    return same and layers.sizes(one) == layers.sizes(other)


def _node(graph: _Graph, cells: list[Any], xs: str, path: tuple[int, ...], direction: str) -> str:
    """The outputs of a node that holds these cells, one a direction."""
    form = form_of("to_onnx", OPS, cells[0])
    op, width = OPS[form], layers.sizes(cells[0])[1]
    name = _named(op, path)
    packed = [to_packed(form, cell) for cell in cells]
    w = graph.constant(np.stack([one.w_ih.T for one in packed]), f"{name}_W")
    r = graph.constant(np.stack([one.w_hh.T for one in packed]), f"{name}_R")
    b = ""
    if packed[0].b_ih is not None:
        both = [np.ravel([np.asarray(one.b_ih), np.asarray(one.b_hh)]) for one in packed]
        b = graph.constant(np.stack(both), f"{name}_B")

    paths = [path] if len(cells) == 1 else [(*path, side) for side in range(2)]
    parts = ("h", "c") if form.params_type is LSTMParams else ("",)
    starts = [_start(graph, paths, part, width) for part in parts]
    attributes: dict[str, Any] = {"hidden_size": width, "direction": direction, "name": name}
    if op == "GRU":
        attributes["linear_before_reset"] = int(bool(form.reset_after))
    ys, *ends = (f"{name}_{output}" for output in ("Y", "Y_h", "Y_c")[: 1 + len(parts)])
    graph.node(op, [xs, w, r, b, graph.length, *starts], [ys, *ends], **attributes)

    # onnxruntime ends in zeros where length is 0
    lasts = [graph.value("Where", graph.empty, *pair) for pair in zip(starts, ends, strict=True)]
    for side, place in enumerate(paths):
        for part, last in zip(parts, lasts, strict=True):
            one = _named("last", place, part)
            graph.output(one, "N", width)
            graph.node("Gather", [last, graph.constant(np.array(side))], [one], axis=0)
    if len(cells) == 1:
        return graph.value("Squeeze", ys, graph.second)
    turned = graph.value("Transpose", ys, perm=[0, 2, 1, 3])  # [T, D, N, H] -> [T, N, D, H]
    return graph.value("Reshape", turned, graph.constant(np.array([0, 0, 2 * width])))


def _start(graph: _Graph, paths: list[tuple[int, ...]], part: str, width: int) -> str:
    """Where a node starts, `[D, N, H]`."""
    sides = []
    for path in paths:
        name = _named("carry", path, part)
        graph.input(name, graph.dtype, "N_or_1", width, default=np.zeros((1, width)))
        start = graph.value("Expand", name, graph.column)
        sides.append(graph.value("Unsqueeze", start, graph.first))
    return sides[0] if len(sides) == 1 else graph.value("Concat", *sides, axis=0)


def _named(what: str, path: tuple[int, ...], part: str = "") -> str:
    return "_".join([what, *map(str, path), *filter(None, [part])])
