"""ONNX models of recurrent nodes with random weights, for tests of reading and writing."""

import os
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxgru
import peers
from cases import HIDDEN, INPUT

onnx = peers.peer("onnx")
ort = peers.peer("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper


#: Eight ulp, for two float32 evaluations of a network over a few steps, with numbers of order one.
TOL = 1e-6
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
ROLES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


class Node(NamedTuple):
    op: str
    arrays: dict[str, Any]
    attributes: dict[str, Any]
    name: str = ""
    outputs: tuple[str, ...] = ("Y", "Y_h", "Y_c")


def draw_node(op, seed=0, bias=True, batch=None, **attributes):
    """A node with random weights. With a batch it also has random initial states and lengths."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return peers.random(rng, shape).astype("float32")

    sides = 2 if attributes.get("direction") == "bidirectional" else 1
    width = GATES[op] * HIDDEN
    arrays = {"W": normal(sides, width, INPUT), "R": normal(sides, width, HIDDEN)}
    if bias:
        arrays["B"] = normal(sides, 2 * width)
    if batch is not None:
        arrays["sequence_lens"] = np.asarray(rng.integers(1, 7, batch), "int32")
        for state in ("initial_h", "initial_c")[: 1 + (op == "LSTM")]:
            arrays[state] = normal(sides, batch, HIDDEN)
    return Node(op, arrays, {"hidden_size": HIDDEN, **attributes})


def model_of(*nodes, fed=(), held=None):
    """An ONNX model. Arrays are initializers named like `W0`, unless their roles are fed."""
    graph_nodes, inputs, outputs, tensors = [], [], [], []
    for k, node in enumerate(nodes):
        kind = helper.np_dtype_to_tensor_dtype(node.arrays["W"].dtype)
        names = [f"{role}{k}" if role in ("X", *node.arrays) else "" for role in ROLES]
        ys = [f"{y}{k}" for y in node.outputs[: 2 + (node.op == "LSTM")]]
        inputs.append(helper.make_tensor_value_info(f"X{k}", kind, [None, None, INPUT]))
        outputs += [helper.make_tensor_value_info(y, kind, None) for y in ys]
        for role, array in node.arrays.items():
            tensor = numpy_helper.from_array(array, f"{role}{k}")
            if role in fed:
                shape = [None] * array.ndim
                inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
            else:
                tensors.append(tensor)
        while not names[-1]:
            names.pop()
        graph_nodes.append(helper.make_node(node.op, names, ys, name=node.name, **node.attributes))
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in held or []]
    tensors = [t for t in tensors if t.name not in {t.name for t in held or []}]
    graph = helper.make_graph([*constants, *graph_nodes], "test", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def session(model):
    """A session of onnxruntime for a model or a file. It must load without a warning."""
    source = model.SerializeToString() if hasattr(model, "SerializeToString") else str(model)
    stderr = os.dup(2)  # onnxruntime writes there from C++
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            made = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        log.seek(0)
        said = log.read().decode()
    assert not said, said
    return made


def run_node(found, xs, layout=0, carry=None, length=None):
    """Compute with `scan` what a node returns: Y `[T, D, N, H]`, Y_h and for an LSTM Y_c `[D, N,
    H]`.

    With layout 1 the batch axis is the first one.
    """
    batch = xs.shape[1 - layout]
    like = jaxgru.initial_carry(found.params)
    carry = found.carry if carry is None else carry
    if carry is None:
        carry = jax.tree.map(lambda a: jnp.zeros((batch, *a.shape), a.dtype), like)
    length = found.length if length is None else length
    length = np.full(batch, xs.shape[layout]) if length is None else length

    def run(xs, carry, length):
        return jaxgru.scan(found.params, xs, carry, length=length, reverse=found.reverse)

    axis = 1 - layout
    last, ys = jax.vmap(run, in_axes=(axis, 0, 0), out_axes=(0, axis))(xs, carry, length)
    both = isinstance(found.params, jaxgru.Bidirectional)
    sides = last if both else (last,)
    ys = np.stack(np.split(np.asarray(ys), len(sides), axis=-1), axis=2 if layout else 1)
    ends = [jax.tree.leaves(side) for side in sides]
    axis = 1 if layout else 0
    return [ys, *(np.stack(state, axis) for state in zip(*ends, strict=True))]


def random_xs(steps, batch, seed=1):
    return np.random.default_rng(seed).standard_normal((steps, batch, INPUT)).astype("float32")


def held_elsewhere(where, folder):
    """One GRU node that keeps its weights in different ways, as a source for from_onnx."""
    node = draw_node("GRU")
    model = model_of(node)
    path = folder / "model.onnx"
    if where == "a Constant node":
        return model_of(node, held=list(model.graph.initializer))
    if where == "behind Identity":
        for tensor in model.graph.initializer:
            for k in range(2):
                name = f"{tensor.name}{'_' * k}"
                model.graph.node.append(helper.make_node("Identity", [f"{name}_"], [name]))
            tensor.name += "__"
    if where == "bytes":
        return model.SerializeToString()
    if where == "external data":
        onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    elif where in ("a path", "a string"):
        path.write_bytes(model.SerializeToString())
    else:
        return model
    return str(path) if where == "a string" else path


def described(name, kind="float32", shape=(None, None, INPUT)):
    """An input or output of a graph. The shape None stands for any."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return helper.make_tensor_value_info(name, element, shape)


def whole(nodes, inputs, outputs, tensors=(), opset=22, functions=()):
    """A model of a graph. tensors are arrays by name."""
    held = [numpy_helper.from_array(np.asarray(a), name) for name, a in dict(tensors).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, held)
    opsets = [helper.make_opsetid(domain, 1) for domain in sorted({f.domain for f in functions})]
    opsets += [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
