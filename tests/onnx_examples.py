"""ONNX models with recurrent nodes and weights in every place that `from_onnx` reads."""

import itertools

import numpy as np

from cases import HIDDEN
from onnx_models import described, draw_node, helper, numpy_helper, whole

# Computed weights.


class Making:
    """Nodes that make values, and the arrays that they use."""

    def __init__(self):
        self.nodes, self.arrays, self.count = [], {}, itertools.count()

    def held(self, value):
        name = f"held{next(self.count)}"
        self.arrays[name] = np.asarray(value)
        return name

    def value(self, op, *inputs, outputs=1, **attributes):
        """Add a node, and return the name of its first output. Inputs are names or arrays."""
        names = [one if isinstance(one, str) else self.held(one) for one in inputs]
        outputs = [f"made{next(self.count)}" for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, names, outputs, **attributes))
        return outputs[0]


def bytes_of(a, kind, axis=None):
    """Quantize an array: (bytes, scale, zero point), with one scale for all or along an axis."""
    info = np.iinfo(kind)
    other = None if axis is None else tuple(k for k in range(a.ndim) if k != axis)
    scale = np.asarray(np.abs(a).max(other) / 100, a.dtype)
    zero = np.full(scale.shape, (info.max + info.min) // 2 + 3, kind)
    shape = [1] * a.ndim
    if axis is not None:
        shape[axis] = -1
    scaled = np.round(a / scale.reshape(shape)) + zero.reshape(shape)
    return scaled.clip(info.min, info.max).astype(kind), scale, zero


def dequantized(make, a, kind, channel=None, **attributes):
    return make.value("DequantizeLinear", *bytes_of(a, kind, channel), **attributes)


def chained(make, a):
    """Concatenate two halves, each a slice of a transposed and cast tensor."""
    half = len(a[0]) // 2
    turned = make.value("Cast", a.astype("float64").swapaxes(1, 2) if a.ndim == 3 else a, to=1)
    if a.ndim == 3:
        turned = make.value("Transpose", turned, perm=[0, 2, 1])
    parts = [make.value("Slice", turned, [lo], [hi], [1]) for lo, hi in ((0, half), (half, 2**62))]
    whole = make.value("Concat", *parts, axis=1)
    flat = make.value("Reshape", whole, np.array([-1]))
    return make.value("Identity", make.value("Reshape", flat, np.array(a.shape)))


def computed(way, op="GRU", opset=22, kind="float32"):
    """A model that computes its weights in this way, and also outputs them negated."""
    node, make = draw_node(op), Making()
    names = {role: way(make, a.astype(kind)) for role, a in node.arrays.items()}
    # onnxruntime warns about an Unsqueeze that makes an output, since it cannot remove it.
    negated = [make.value("Neg", name) for name in names.values()]
    outputs = [described(name, kind, None) for name in ("Y", *negated)]
    make.nodes.append(helper.make_node(op, ["X", *names.values()], ["Y"], **node.attributes))
    return whole(make.nodes, [described("X", kind)], outputs, make.arrays, opset)


# Nodes in branches, loops and functions.


def recurrent(node, names, outputs, name=""):
    """A node of `draw_node`. names are the names of its inputs from X on."""
    return helper.make_node(node.op, names, outputs, name=name, **node.attributes)


def named(seed, suffix, op="GRU"):
    """A node and its arrays by name, such as `W_low` with the suffix low."""
    node = draw_node(op, seed)
    arrays = {f"{role}_{suffix}": a for role, a in node.arrays.items()}
    return node, arrays


def graph(nodes, outputs, arrays=(), inputs=()):
    held = [numpy_helper.from_array(a, name) for name, a in dict(arrays).items()]
    return helper.make_graph(nodes, "inner", list(inputs), outputs, held)


def branches(name="choice", inner="gru", outputs=("Y",)):
    """An If with a GRU whose weights are outside, and an LSTM that holds its own weights."""
    low, outer = named(1, "low")
    high, held = named(2, "high", "LSTM")
    parts = []
    for node, arrays, here in ((low, outer, ()), (high, held, held)):
        made = f"{'then' if node is low else 'else'}_Y"
        nodes = [recurrent(node, ["X", *arrays], [made], inner)]
        parts.append(graph(nodes, [described(made, shape=None)], here))
    choice = helper.make_node(
        "If", ["flag"], list(outputs), name=name, then_branch=parts[0], else_branch=parts[1]
    )
    return choice, outer, (low, high)


def with_branches():
    choice, outer, nodes = branches()
    inputs = [described("X"), described("flag", "bool", ())]
    return whole([choice], inputs, [described("Y", shape=None)], outer), nodes


def looped():
    """A Loop that runs a GRU twice over one sequence. The second run continues the first."""
    node, arrays = named(1, "low")
    body = graph(
        [
            recurrent(node, ["X", *arrays, "", "h"], ["Ys", "h_next"], "gru"),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        [
            described("go_on", "bool", ()),
            described("h_next", shape=[1, None, HIDDEN]),
            described("Ys", shape=None),
        ],
        (),
        [
            described("k", "int64", ()),
            described("go", "bool", ()),
            described("h", shape=[1, None, HIDDEN]),
        ],
    )
    loop = helper.make_node("Loop", ["times", "true", "start"], ["h_end", "Y"], "loop", body=body)
    held = {"times": np.asarray(2), "true": np.asarray(True), **arrays}
    inputs = [described("X"), described("start", shape=[1, None, HIDDEN])]
    outputs = [described("h_end", shape=None), described("Y", shape=None)]
    return whole([loop], inputs, outputs, held), "loop/body/gru"


def function(name, nodes, inputs=("xs", "w", "r", "b"), outputs=("ys",), opset=22):
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("test", 1)]
    return helper.make_function("test", name, list(inputs), list(outputs), nodes, opsets)


def with_functions():
    """A function with a GRU calls one that computes a weight. The model calls it twice."""
    node, arrays = named(1, "low")
    kept = {**arrays, "W_low": arrays["W_low"][0]}
    axes = helper.make_node("Constant", [], ["axes"], value_ints=[0])
    turn = function(
        "Whole", [axes, helper.make_node("Unsqueeze", ["w", "axes"], ["v"])], ["w"], ["v"]
    )
    layer = function(
        "Layer",
        [
            helper.make_node("Whole", ["w"], ["v"], domain="test"),
            recurrent(node, ["xs", "v", "r", "b"], ["ys"], "gru"),
        ],
    )
    calls = [
        helper.make_node("Layer", ["X", *kept], [f"Y{k}"], f"call{k}", domain="test")
        for k in range(2)
    ]
    outputs = [described(f"Y{k}", shape=None) for k in range(2)]
    model = whole(calls, [described("X")], outputs, kept, functions=[turn, layer])
    return model, node


# Quantized nodes.


def draw_quantized(kind="int8", channels=False, direction="forward"):
    """Return (the arrays of a node, the LSTM that they approximate)."""
    node = draw_node("LSTM", direction=direction)
    sides = len(node.arrays["W"])
    arrays, plain = {"B": node.arrays["B"]}, {"B": node.arrays["B"]}
    for role in "WR":
        value = node.arrays[role].swapaxes(1, 2)
        size = np.abs(value).max(axis=1 if channels else (1, 2))
        scale = (size / 100).astype("f4")
        # onnxruntime supports signed bytes and scales of columns only if they are symmetric
        zero = np.full(scale.shape, 0 if channels or kind == "int8" else 120, kind)
        if kind == "uint8" and channels:
            zero[:] = 128
        spread = scale.reshape(sides, 1, -1)
        steps = np.round(value / spread) + zero.reshape(sides, 1, -1)
        arrays[role] = steps.clip(np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
        arrays[f"{role}_scale"], arrays[f"{role}_zero_point"] = scale, zero
        # only the product is rounded, as in DequantizeLinear
        difference = arrays[role].astype("f4") - zero.reshape(sides, 1, -1).astype("f4")
        plain[role] = (difference * spread).swapaxes(1, 2)
    return arrays, node._replace(arrays=plain)


def quantized(arrays, name="lstm", **attributes):
    roles = ("W", "R", "B", "", "", "", "", "W_scale", "W_zero_point", "R_scale", "R_zero_point")
    names = [role if role in arrays else "" for role in roles]
    node = helper.make_node(
        "DynamicQuantizeLSTM", ["X", *names], ["Y"], name=name, domain="com.microsoft",
        **{"hidden_size": HIDDEN, **attributes},
    )  # fmt: skip
    return whole([node], [described("X")], [described("Y", shape=None)], arrays)
