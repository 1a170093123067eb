"""Writes networks as ONNX models, with one native node of onnxruntime for each layer."""

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

# These are the newest versions for onnxruntime 1.20, the oldest release that our extra allows.
OPSET, IR_VERSION = 21, 10
OPS: dict[Form, str] = {form: op for op, forms in FORMS.items() for form in forms}


def to_onnx(
    params: Params,
    path: str | os.PathLike[str],
    *,
    reverse: bool = False,
    length: bool = False,
    carry: bool = False,
) -> None:
    """Write a network as an ONNX model of whole sequences.

        outputs, *last = session.run(None, {"xs": xs, "length": length, "carry": carry})

    This call computes what `jaxgru.scan` computes under `jax.vmap` over axis 1 of xs and outputs. A
    cell becomes one node: GRU, LSTM or RNN. A Bidirectional of two cells of one kind and size also
    becomes one node. A Stack becomes a chain of nodes.

    | value | shape | |
    | --- | --- | --- |
    | xs | `[T, N, I]` | any T and N > 0; T = 0 only in onnxruntime 1.26 or later |
    | length | int32 `[N]`, or `[1]` for all | an input if length=True, else T; clipped to [0, T] |
    | carry | `[N, H]`, or `[1, H]` for all | an input with carry=True, else zeros |
    | outputs | `[T, N, H]` | zeros in the padding |
    | last | `[N, H]` | the carry after the last real step, or the initial one at length 0 |

    N = 0 crashes onnxruntime, and so does T = 0 in older releases.

    The names of carry and last tell their places in the carry of params. A GRU has carry, and an
    LSTM has carry_h and carry_c. An LSTM that is layer 1 of a Stack has carry_1_h and carry_1_c. A
    Bidirectional has carry_0 and carry_1. The nodes are named in the same way, GRU or LSTM_1.

    Args:
        params: GRUParams, LSTMParams, ElmanParams, or any Bidirectional or Stack of them, of
            float32 or float16.
        path: the file to write.
        reverse: whether to run from the last real step to the first, as in `scan`.
        length: whether the model has the input "length". Every call must then give it.
        carry: whether the model has inputs for the carry. Every call must then give them.

    Raises:
        TypeError, ValueError: params are of another kind, such as MinGRUParams, or of a dtype that
            onnxruntime does not run.

    Example:
        >>> import jax, jaxgru, numpy as np, onnxruntime, pathlib, tempfile
        >>> params = jaxgru.stack_init(jax.random.key(0), 3, 4, num_layers=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "gru.onnx")
        ...     jaxgru.interop.to_onnx(params, path)
        ...     session = onnxruntime.InferenceSession(path)
        >>> [value.name for value in session.get_outputs()]
        ['outputs', 'last_0', 'last_1']
        >>> session.run(["outputs"], {"xs": np.ones((20, 5, 3), "float32")})[0].shape
        (20, 5, 4)

    Source: the operators GRU, LSTM and RNN in the documentation of ONNX.
    """
    dtype = _check("to_onnx", params, path)
    for name, flag in (("reverse", reverse), ("length", length), ("carry", carry)):
        checks.flag("to_onnx", name, flag)
    size, width = layers.sizes(params)
    graph = _Graph("to_onnx", dtype, carry, "last")
    graph.input("xs", dtype, "T", "N", size)
    graph.output("outputs", "T", "N", width)
    steps = graph.value("Shape", "xs", start=0, end=1)
    lengths = graph.value("Cast", steps, to=_element_type(np.int32))
    batch = graph.value("Shape", "xs", start=1, end=2)
    if length:
        graph.input("length", np.int32, "N_or_1")
        positive = graph.value("Max", "length", graph.constant(np.array([0], np.int32)))
        lengths = graph.value("Min", positive, lengths)
    # The model always has lengths. Without them T = 0 crashes onnxruntime.
    graph.lengths = graph.value("Expand", lengths, batch)
    if carry:
        second = graph.constant(np.array([1]))
        graph.column = graph.value("Concat", batch, second, axis=0)
        none = graph.value("Equal", graph.lengths, graph.constant(np.array([0], np.int32)))
        graph.empty = graph.value("Unsqueeze", none, second)
    graph.node("Identity", [_run(graph, params, "xs", (), reverse)], ["outputs"])
    graph.write(path)


def to_onnx_step(params: Params, path: str | os.PathLike[str]) -> None:
    """Write one time step of a network as an ONNX model, for streaming.

        y, *carry = session.run(None, {"x": x, "carry": carry})

    This call computes what `jaxgru.step` computes under `jax.vmap` over x `[N, I]` and the carry. N
    may be any size except 0, which crashes onnxruntime. The carry is an input. Pass zeros at
    the start. The next carry is an output. Pass it to the next call. y `[N, H]` is the h of the
    last layer. The parts of the carry have the same names as in `to_onnx`, with next in place of
    last: `carry_0_h` is an input and `next_0_h` the output. They have the same order in inputs and
    outputs.

    In this model a carry always has N rows. The model does not accept one row `[1, H]` for all.

    Args:
        params: GRUParams, LSTMParams, ElmanParams, or any Stack of them, of float32 or float16.
        path: the file to write.

    Raises:
        TypeError, ValueError: params are of another kind, contain a Bidirectional, which needs the
            whole sequence, or have a dtype that onnxruntime does not run.

    Example:
        >>> import jax, jaxgru, numpy as np, onnxruntime, pathlib, tempfile
        >>> params = jaxgru.lstm_init(jax.random.key(0), 3, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "lstm.onnx")
        ...     jaxgru.interop.to_onnx_step(params, path)
        ...     session = onnxruntime.InferenceSession(path)
        >>> names = [value.name for value in session.get_inputs()]
        >>> names
        ['x', 'carry_h', 'carry_c']
        >>> carry = [np.zeros((1, 4), "float32")] * 2
        >>> for x in np.ones((20, 1, 3), "float32"):
        ...     y, *carry = session.run(None, dict(zip(names, [x, *carry])))
        >>> y.shape
        (1, 4)

    Source: the operators GRU, LSTM and RNN in the documentation of ONNX.
    """
    dtype = _check("to_onnx_step", params, path)
    fix = "A backward direction needs the whole sequence: use to_onnx."
    layers.check_forward("to_onnx_step", params, fix)
    size, width = layers.sizes(params)
    graph = _Graph("to_onnx_step", dtype, True, "next")
    graph.input("x", dtype, "N", size)
    graph.output("y", "N", width)
    first = graph.constant(np.array([0]))
    xs = graph.value("Unsqueeze", "x", first)  # a sequence of one step
    ys = _run(graph, params, xs, (), False)
    graph.node("Squeeze", [ys, first], ["y"])
    graph.write(path)


def _check(caller: str, params: Params, path: Any) -> np.dtype:
    """Check the arguments, and return the dtype of params."""
    layers.check(caller, params)
    dtype = np.dtype(layers.dtype(params))
    if dtype not in (np.float32, np.float16):
        fix = "Cast them: jax.tree.map(lambda w: w.astype('float32'), params)."
        expected = "of float32 or float16, which onnxruntime can run"
        raise checks.error(TypeError, caller, "params", expected, dtype.name, fix)
    if not isinstance(path, str | os.PathLike):
        raise checks.error(TypeError, caller, "path", "a path", checks.describe(path))
    return dtype


class _Graph:
    """A graph that is being built. Its values are referred to by name, or by "" for no value."""

    def __init__(self, caller: str, dtype: np.dtype, carry: bool, after: str) -> None:
        self.caller, self.dtype, self.carry, self.after = caller, dtype, carry, after
        self.lengths = ""
        """The lengths, int32 `[N]`. There are none if every sequence is one step."""
        self.column = ""
        """The shape (N, 1), to which carries are expanded."""
        self.empty = ""
        """bool `[N, 1]`: True where the length is 0, and the carry stays. None without a carry."""
        self._nodes, self._held, self._inputs, self._outputs = [], [], [], []

    def node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Add a node. Each has a name, since onnxruntime 1.20 gives two nodes the same one."""
        from onnx import helper

        named = {"name": outputs[0], **attributes}
        self._nodes.append(helper.make_node(op, inputs, outputs, **named))

    def value(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and return the name of the output."""
        name = f"{op.lower()}_{len(self._nodes)}"
        self.node(op, list(inputs), [name], **attributes)
        return name

    def constant(self, value: Any, name: str = "") -> str:
        """Add an array to the model, and return its name."""
        from onnx import numpy_helper

        name = name or f"constant_{len(self._held)}"
        self._held.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def input(self, name: str, dtype: Any, *shape: int | str) -> None:
        """Add an input of the model."""
        self._inputs.append(_described(name, dtype, shape))

    def output(self, name: str, *shape: int | str) -> None:
        """Add an output of the model."""
        self._outputs.append(_described(name, self.dtype, shape))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file."""
        from onnx import helper

        graph = helper.make_graph(self._nodes, "jaxgru", self._inputs, self._outputs, self._held)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, producer_name="jaxgru", opset_imports=[opset], ir_version=IR_VERSION
        )
        Path(path).write_bytes(model.SerializeToString())


def _described(name: str, dtype: Any, shape: tuple[int | str, ...]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, _element_type(dtype), shape)


def _element_type(dtype: Any) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _run(graph: _Graph, params: Params, xs: str, path: tuple[int, ...], reverse: bool) -> str:
    """Add params over xs, and return the outputs. path is the place of their carry in the whole."""
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
    """Whether one node can hold both cells."""
    if not (is_cell(one) and type(one) is type(other)):  # the comparison of JAX ignores types
        return False
    same = jax.tree.structure(one) == jax.tree.structure(other)
    return same and layers.sizes(one) == layers.sizes(other)


def _node(graph: _Graph, cells: list[Any], xs: str, path: tuple[int, ...], direction: str) -> str:
    """Add a node that holds one cell for each direction, and return its outputs."""
    form = form_of(graph.caller, OPS, cells[0])
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
    starts = [_start(graph, paths, part, width) for part in parts] if graph.carry else []
    attributes: dict[str, Any] = {"hidden_size": width, "direction": direction, "name": name}
    if op == "GRU":
        attributes["linear_before_reset"] = int(bool(form.reset_after))
    ys, *ends = (f"{name}_{output}" for output in ("Y", "Y_h", "Y_c")[: 1 + len(parts)])
    graph.node(op, [xs, w, r, b, graph.lengths, *starts], [ys, *ends], **attributes)

    if graph.empty:  # onnxruntime returns zeros as the last carry where length is 0
        pairs = zip(starts, ends, strict=True)
        ends = [graph.value("Where", graph.empty, *pair) for pair in pairs]
    for side, place in enumerate(paths):
        for part, end in zip(parts, ends, strict=True):
            one = _named(graph.after, place, part)
            graph.output(one, "N", width)
            graph.node("Gather", [end, graph.constant(np.array(side))], [one], axis=0)
    if len(cells) == 1:
        return graph.value("Squeeze", ys, graph.constant(np.array([1])))
    turned = graph.value("Transpose", ys, perm=[0, 2, 1, 3])  # [T, D, N, H] -> [T, N, D, H]
    return graph.value("Reshape", turned, graph.constant(np.array([0, 0, 2 * width])))


def _start(graph: _Graph, paths: list[tuple[int, ...]], part: str, width: int) -> str:
    """Add the inputs for the initial carry of a node, `[D, N, H]`."""
    sides = []
    for path in paths:
        start = _named("carry", path, part)
        graph.input(start, graph.dtype, "N_or_1" if graph.column else "N", width)
        if graph.column:
            start = graph.value("Expand", start, graph.column)
        sides.append(graph.value("Unsqueeze", start, graph.constant(np.array([0]))))
    return sides[0] if len(sides) == 1 else graph.value("Concat", *sides, axis=0)


def _named(what: str, path: tuple[int, ...], part: str = "") -> str:
    return "_".join([what, *map(str, path), *filter(None, [part])])
