"""Weights of the nodes GRU (both forms), LSTM and RNN of ONNX. `onnx_write` writes them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgru import checks, layers
from jaxgru.cell import Carry, Params
from jaxgru.gru import GRUParams
from jaxgru.interop.onnx_constants import Constants
from jaxgru.interop.onnx_model import QUANTIZED, Place, find, load
from jaxgru.interop.onnx_quantized import SCALES, dequantized
from jaxgru.interop.weights import ELMAN, Form, Packed, checked, to_params
from jaxgru.layers import Bidirectional
from jaxgru.lstm import LSTMCarry, LSTMParams

# For each type of node. The attribute linear_before_reset of a GRU is the index.
FORMS: dict[str, tuple[Form, ...]] = {
    "GRU": tuple(
        Form(GRUParams, (1, 0, 2), negated=(1,), reset_after=after) for after in (False, True)
    ),
    "LSTM": (Form(LSTMParams, (0, 2, 3, 1)),),
    "RNN": (ELMAN,),
}
ACTIVATIONS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "RNN": ["Tanh"]}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
WEIGHTS = ("W", "R", "B", "P", *SCALES)


class OnnxNode(NamedTuple):
    """A recurrent node of an ONNX model: its weights, and what else the model fixes.

    `jaxgru.scan(params, xs, carry, length=length, reverse=reverse)` under `jax.vmap` computes what
    the node does. For most nodes carry and length are None, and reverse is False.
    """

    params: Params
    """GRUParams, LSTMParams, ElmanParams, or a Bidirectional of two of one type."""
    reverse: bool
    """Whether the node runs from the last step to the first: `direction="reverse"`."""
    carry: Carry | None
    """The initial state, with an axis `[N, ...]` for the batch, if the model holds one that is not
    zero. A part that the model does not hold is zero."""
    length: Array | None
    """`sequence_lens`, int32 `[N]`, if the model holds them."""
    inputs: dict[str, str]
    """The inputs that the node gets at run time, each with the name of its value in the model: X,
    and any of sequence_lens, initial_h and initial_c."""


def from_onnx(source: Any, node: str | None = None) -> OnnxNode:
    """Read a GRU, LSTM or RNN node of an ONNX model: `from_onnx("model.onnx").params`.

        b = Wb + Rb                               LSTM, RNN, GRU with linear_before_reset=0
        b = Wb + [Rb_z, Rb_r, 0],  b_hn = Rb_h    GRU with linear_before_reset=1

    linear_before_reset=1 is reset_after=True. The update gate of ONNX weighs the old state, so its
    weights and bias are negated. The attribute layout only orders the axes of the data (0: inputs
    are `[T, N, I]`, 1: `[N, T, I]`), and is not kept. The function reads a DynamicQuantizeLSTM of
    onnxruntime as the LSTM that it approximates, with the weights (W - W_zero_point) * W_scale.

    Args:
        source: the path of a model, its bytes, or an `onnx.ModelProto`. Weights must be constants:
            initializers, Constant nodes, or what Identity, Cast, Unsqueeze, Squeeze, Reshape,
            Transpose, Slice, Split, Concat and DequantizeLinear make of them. If source is a path,
            initializers may also be in external files beside the model. Nothing else in the model
            is run.
        node: the name of the node, one of `onnx_nodes(source)`. For a node in a branch or a loop,
            the name begins with the path to it. The node's own name or the name of one of its
            outputs is enough if no other node has it. If the model has only one recurrent node, you
            can leave out the name. Each call reads one layer. Put several into a Stack.

    Returns:
        OnnxNode(params, reverse, carry, length, inputs). The dtype is that of the weights.

    Raises:
        TypeError, ValueError: source is not a model, or is cut off. There is no such node, or
            there are several. Weights depend on an input, or do not fit. The node has something
            without a counterpart: other activations, their alpha and beta, clip, input_forget,
            peepholes.

    Example:
        >>> import jax, jaxgru, onnx, pathlib, tempfile
        >>> params = jaxgru.gru_init(jax.random.key(0), 3, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "gru.onnx")
        ...     jaxgru.interop.to_onnx(params, path)
        ...     node = jaxgru.interop.from_onnx(path)
        >>> bool((node.params.w_hh == params.w_hh).all()), node.reverse, node.inputs["X"]
        (True, False, 'xs')

    Source: the operators GRU, LSTM and RNN in the documentation of ONNX, DynamicQuantizeLSTM in
    that of onnxruntime.
    """
    model = load("from_onnx", source)
    place = find(model, node)
    return _read(place, Constants(model, place))


def _read(place: Place, constants: Constants) -> OnnxNode:
    node = place.node
    quantized = node.op_type == QUANTIZED
    op = "LSTM" if quantized else node.op_type
    owner = f"{node.op_type} {place.name!r}"
    roles = (*INPUTS, *SCALES) if quantized else INPUTS
    values = {role: name for role, name in zip(roles, node.input, strict=False) if name}
    labels = {role: f"{role} ({name!r}) of {owner}" for role, name in values.items()}
    arrays, inputs = {}, {}
    for role, name in values.items():
        lack = ("", "") if role == "X" else constants.lacks(name)
        if lack is None:
            arrays[role] = constants.array(labels[role], name)
        elif role in WEIGHTS:
            raise checks.error(ValueError, "from_onnx", labels[role], "a constant", *lack)
        else:
            inputs[role] = name
    for role in ("W", "R", *(SCALES if quantized else ())):
        if role not in arrays:
            label = f"{role} of {owner}"
            raise checks.error(ValueError, "from_onnx", label, "a constant", "no value")

    attributes = _attributes(node, op, owner)
    direction = attributes.get("direction", "forward")
    if quantized:
        arrays = dequantized(labels, arrays, DIRECTIONS[direction])
    form = FORMS[op][bool(attributes.get("linear_before_reset", 0))]
    shapes = _Shapes(labels, arrays, DIRECTIONS[direction], len(form.order))
    size = attributes.get("hidden_size", "H")
    cells = [to_params(form, packed) for packed in shapes.weights(size)]
    params = Bidirectional(*cells) if direction == "bidirectional" else cells[0]
    carry, length = shapes.start(layers.carry_shape(cells[0]), attributes.get("layout", 0))
    return OnnxNode(params, direction == "reverse", carry, length, inputs)


def _attributes(node: Any, op: str, owner: str) -> dict[str, Any]:
    """Return the attributes by name. Raise an error if one has no counterpart."""
    from onnx import helper

    try:
        found = {_plain(a.name): _plain(helper.get_attribute_value(a)) for a in node.attribute}
    except ValueError as reason:
        label, got = f"each attribute of {owner}", f"{reason}".rstrip(".")
        raise checks.error(ValueError, "from_onnx", label, "a value", got) from reason
    known = {"direction": tuple(DIRECTIONS), "layout": (0, 1), "input_forget": (0,)}
    if op == "GRU":
        known["linear_before_reset"] = (0, 1)
    for name in sorted(found, key=lambda name: name not in known):  # direction before activations
        value = found[name]
        expected = "absent"
        fits = name.startswith("activation_") and not value
        if name in known:
            expected = " or ".join(map(repr, known[name]))
            fits = value in known[name]
        elif name == "activations":
            wanted = ACTIVATIONS[op] * DIRECTIONS[found.get("direction", "forward")]
            expected = f"{wanted}"
            fits = [str(v).lower() for v in value] == [w.lower() for w in wanted]
        elif name == "hidden_size":
            expected = "a positive integer"
            fits = isinstance(value, int) and value > 0
        if not fits:
            fix = "jaxgru has no counterpart for anything else."
            label = f"{name} of {owner}"
            raise checks.error(ValueError, "from_onnx", label, expected, f"{value!r}", fix)
    return found


def _plain(value: Any) -> Any:
    """Decode bytes. ONNX returns strings as bytes, and also names that have a damaged byte."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class _Shapes:
    """The constants of one node, checked and taken apart."""

    def __init__(
        self, labels: dict[str, str], arrays: dict[str, np.ndarray], directions: int, gates: int
    ) -> None:
        self._labels, self._arrays = labels, arrays
        self._directions, self._gates = directions, gates

    def _array(self, role: str, *shape: int | str) -> np.ndarray:
        value = checked("from_onnx", self._labels[role], self._arrays[role], shape)
        if value.dtype != self._arrays["R"].dtype:
            expected = f"{self._arrays['R'].dtype}, the dtype of R"
            got = checks.describe(value)
            raise checks.error(TypeError, "from_onnx", self._labels[role], expected, got)
        return value

    def weights(self, size: int | str) -> list[Packed]:
        """Return the weights of one cell for each direction. size is what the node says about H."""
        r = self._array("R", self._directions, "gates * H", size)
        size = r.shape[2]
        width = self._gates * size
        r = self._array("R", self._directions, width, size)
        w = self._array("W", self._directions, width, "I")
        b = self._array("B", self._directions, 2 * width) if "B" in self._arrays else None
        if "P" in self._arrays and np.any(self._array("P", self._directions, 3 * size)):
            fix = "Peepholes have no counterpart."
            label = self._labels["P"]
            raise checks.error(ValueError, "from_onnx", label, "zero", "other values", fix)
        halves = [(None, None) if b is None else np.split(b[d], 2) for d in range(len(r))]
        return [Packed(w[d].T, r[d].T, *halves[d]) for d in range(len(r))]

    def start(self, like: Any, layout: int) -> tuple[Carry | None, Array | None]:
        """Return (carry, length), with None for what the model lacks. like is a cell's carry."""
        batch: int | str = "N"
        parts = {}
        for role in ("initial_h", "initial_c"):
            if role in self._arrays:
                size = (like.h if isinstance(like, LSTMCarry) else like).shape[0]
                lead = (batch, self._directions) if layout else (self._directions, batch)
                part = self._array(role, *lead, size)
                parts[role] = np.swapaxes(part, 0, 1) if layout else part
                batch = parts[role].shape[1]
        length = None
        if "sequence_lens" in self._arrays:
            label, value = self._labels["sequence_lens"], self._arrays["sequence_lens"]
            checks.array("from_onnx", label, value, (batch,))
            if value.dtype != np.int32:
                raise checks.error(TypeError, "from_onnx", label, "int32", checks.describe(value))
            length = jnp.asarray(value)
        if not any(map(np.any, parts.values())):
            return None, length
        zeros = np.zeros_like(next(iter(parts.values())))
        h, c = (jnp.asarray(parts.get(role, zeros)) for role in ("initial_h", "initial_c"))
        carries = tuple(
            LSTMCarry(h[d], c[d]) if isinstance(like, LSTMCarry) else h[d]
            for d in range(self._directions)
        )
        return carries if self._directions == 2 else carries[0], length
