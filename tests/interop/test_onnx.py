"""ONNX: its project's own node tests and onnxruntime as oracles; round trips; wrong models."""

import re
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import CELLS, HIDDEN, INPUT, KINDS, assert_close, assert_same, draw, draw_cell
from jaxgru.interop import from_onnx, to_onnx

onnx = peers.peer("onnx")
ort = peers.peer("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

#: Two float32 evaluations of one network over a few steps, numbers of order one: a dozen ulp.
TOL = 2e-6
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
ROLES = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


# Models of one node, or of several.


class Node(NamedTuple):
    op: str
    arrays: dict[str, Any]
    attributes: dict[str, Any]
    name: str = ""
    outputs: tuple[str, ...] = ("Y", "Y_h", "Y_c")


def draw_node(op, seed=0, bias=True, batch=None, **attributes):
    """A node of random weights; with a batch, random initial states and lengths too."""
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
    """An ONNX model. Arrays are initializers named like `W0`, but for those roles that are fed."""
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
    options = ort.SessionOptions()
    options.log_severity_level = 3  # inputs that may be left out are worth a warning there
    source = model.SerializeToString() if hasattr(model, "SerializeToString") else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run_node(found, xs, layout=0, carry=None, length=None):
    """What a node returns, by `scan`: Y `[T, D, N, H]`, and Y_h and, of an LSTM, Y_c `[D, N, H]`.

    With layout 1 the axis of the batch is the first one.
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


# The ONNX project's own tests.

#: Which of them do not apply, and what from_onnx says of them.
NOT_APPLICABLE = {"test_lstm_with_peepholes": "P ('P0') of LSTM 'Y0' must be zero"}


def project_tests():
    """By name: the node, all its inputs, its outputs."""
    found = {}
    for name in GATES:
        module = peers.peer(f"onnx.backend.test.case.node.{name.lower()}")
        cases = getattr(module, name)
        rng = np.random.default_rng(0)

        def expect(node, inputs, outputs, name):
            found[name] = (node, inputs, outputs)

        with (
            mock.patch.object(module, "expect", expect),
            mock.patch.object(np.random, "randn", lambda *shape, rng=rng: rng.normal(size=shape)),
        ):
            for export in sorted(name for name in dir(cases) if name.startswith("export")):
                getattr(cases, export)()
    return found


PROJECT_TESTS = project_tests()


def project_model(name):
    node, inputs, _ = PROJECT_TESTS[name]
    arrays = dict(zip(node.input, inputs, strict=True))
    xs = arrays.pop("X")
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return model_of(Node(node.op_type, arrays, attributes)), xs, attributes.get("layout", 0)


def test_all_node_tests_are_found():
    """Six of each operator: defaults, bias, lengths or peepholes, layout 1, both directions."""
    assert len(PROJECT_TESTS) >= 18
    assert set(NOT_APPLICABLE) <= set(PROJECT_TESTS)


@pytest.mark.parametrize("name", sorted(set(PROJECT_TESTS) - set(NOT_APPLICABLE)))
def test_node_tests(name):
    model, xs, layout = project_model(name)
    node, _, expected = PROJECT_TESTS[name]
    states = dict(zip(("Y", "Y_h", "Y_c"), run_node(from_onnx(model), xs, layout), strict=False))
    actual = [states[role] for role, output in zip(states, node.output, strict=False) if output]
    assert_close(actual, expected, TOL)


@pytest.mark.parametrize("name", NOT_APPLICABLE)
def test_node_tests_that_do_not_apply(name):
    with pytest.raises(ValueError, match=re.escape(NOT_APPLICABLE[name])):
        from_onnx(project_model(name)[0])


# Reading, against onnxruntime.

NODES = [("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("LSTM", {}), ("RNN", {})]
DIRECTIONS = ("forward", "reverse", "bidirectional")


def random_xs(steps, batch, seed=1):
    return np.random.default_rng(seed).standard_normal((steps, batch, INPUT)).astype("float32")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "attributes"), NODES)
def test_reads_what_onnxruntime_runs(op, attributes, direction, bias):
    """Lengths and initial states held by the model come with it, and are not lost."""
    node = draw_node(op, bias=bias, batch=3, direction=direction, **attributes)
    model, xs = model_of(node), random_xs(6, 3)
    found = from_onnx(model)
    assert found.reverse == (direction == "reverse")
    assert found.inputs == {"X": "X0"}
    cell = getattr(found.params, "forward", found.params)
    assert (cell.b is not None) == bias
    assert_close(run_node(found, xs), session(model).run(None, {"X0": xs}), TOL)


@pytest.mark.parametrize(("op", "attributes"), NODES)
def test_lengths_and_states_that_are_fed(op, attributes):
    """The node names what comes at run time; scan takes it in its place."""
    node = draw_node(op, batch=3, **attributes)
    xs = random_xs(6, 3)
    fed = {f"{r}0": a for r, a in node.arrays.items() if r not in ("W", "R", "B")}
    roles = [name[:-1] for name in fed]
    model = model_of(node, fed=roles)
    found = from_onnx(model)
    assert found.inputs == {"X": "X0", **{role: f"{role}0" for role in roles}}
    assert found.carry is None
    assert found.length is None
    states = [jnp.asarray(fed[name][0]) for name in fed if name.startswith("initial")]
    carry = jaxgru.LSTMCarry(*states) if op == "LSTM" else states[0]
    actual = run_node(found, xs, carry=carry, length=node.arrays["sequence_lens"])
    assert_close(actual, session(model).run(None, {"X0": xs, **fed}), TOL)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "attributes"), NODES)
def test_layout_orders_the_axes_only(op, attributes, direction):
    """Which onnxruntime refuses to run with layout 1."""
    node = draw_node(op, batch=3, direction=direction, **attributes)
    states = {k: a.swapaxes(0, 1) for k, a in node.arrays.items() if k.startswith("initial")}
    other = node._replace(arrays=node.arrays | states, attributes=node.attributes | {"layout": 1})
    actual, expected = from_onnx(model_of(other)), from_onnx(model_of(node))
    assert_same((actual.params, actual.carry), (expected.params, expected.carry))


@pytest.mark.parametrize("missing", ["initial_h", "initial_c"])
def test_a_state_of_which_half_is_held(missing):
    node = draw_node("LSTM", batch=2)
    del node.arrays[missing]
    model, xs = model_of(node), random_xs(6, 2)
    assert_close(run_node(from_onnx(model), xs), session(model).run(None, {"X0": xs}), TOL)


def test_states_and_peepholes_of_zeros_are_none():
    node = draw_node("LSTM", batch=2)
    for role in ("initial_h", "initial_c"):
        node.arrays[role][:] = 0
    node.arrays["P"] = np.zeros((1, 3 * HIDDEN), "float32")
    assert from_onnx(model_of(node)).carry is None


def test_attributes_that_say_the_default():
    node = draw_node("LSTM", direction="bidirectional")
    explicit = {"activations": ["sigmoid", "Tanh", "Tanh"] * 2, "input_forget": 0}
    model = model_of(node._replace(attributes=node.attributes | explicit))
    empty = helper.make_attribute("activation_alpha", [], attr_type=onnx.AttributeProto.FLOATS)
    model.graph.node[-1].attribute.append(empty)
    assert_same(from_onnx(model).params, from_onnx(model_of(node)).params)


def held_elsewhere(where, folder):
    """One GRU node, its weights kept in different ways: something that from_onnx takes."""
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


@pytest.mark.parametrize(
    "where",
    ["a Constant node", "behind Identity", "bytes", "external data", "a path", "a string"],
)
def test_wherever_weights_are(where, tmp_path):
    expected = from_onnx(model_of(draw_node("GRU"))).params
    assert_same(from_onnx(held_elsewhere(where, tmp_path)).params, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_are_kept(dtype):
    with jax.enable_x64(True):
        node = draw_node("GRU", linear_before_reset=1)
        arrays = {k: a.astype(jnp.dtype(dtype)) for k, a in node.arrays.items()}
        params = from_onnx(model_of(node._replace(arrays=arrays))).params
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
        assert_same(params.b_hn, jnp.asarray(arrays["B"][0, -HIDDEN:]))


def test_nodes_by_name():
    first, second = draw_node("GRU"), draw_node("LSTM", seed=1)
    model = model_of(first._replace(name="low"), second)
    assert_same(from_onnx(model, "low").params, from_onnx(model_of(first)).params)
    for name in ("Y1", "Y_c1"):  # a node without a name goes by its outputs
        assert_same(from_onnx(model, name).params, from_onnx(model_of(second)).params)


# Writing.


def exported(params, folder, **options):
    path = folder / "model.onnx"
    to_onnx(params, path, **options)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path


def carry_names(what, carry):
    def part(key):
        return str(getattr(key, "idx", getattr(key, "name", None)))

    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(carry)]
    return ["_".join([what, *map(part, path)]) for path in paths]


def feed(carry):
    leaves = map(np.asarray, jax.tree.leaves(carry))
    return dict(zip(carry_names("carry", carry), leaves, strict=True))


def draw_carries(params, batch, seed=2):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(0.5 * rng.standard_normal((batch, *a.shape)), a.dtype),
        jaxgru.initial_carry(params),
    )


def scanned(params, xs, carry, length, reverse=False):
    """As the model returns it: outputs, and the leaves of the carry."""

    def run(xs, carry, length):
        return jaxgru.scan(params, xs, carry, length=length, reverse=reverse)

    last, ys = jax.vmap(run, in_axes=(1, 0, 0), out_axes=(0, 1))(xs, carry, length)
    return [ys, *jax.tree.leaves(last)]


def native(kind, dtype="float32", bias=True, seed=0):
    """Params that are native nodes alone: a Bidirectional is one of two cells of one kind."""
    rng = np.random.default_rng(seed)

    def cell(kind, inputs):
        return draw_cell(rng, kind, inputs, HIDDEN, dtype, bias)

    one, _, layers = kind.partition(" x ")
    if layers:
        sides = [(cell(one, n), cell(one, n)) for n in (INPUT, 2 * HIDDEN)]
        return jaxgru.Stack(tuple(jaxgru.Bidirectional(*pair) for pair in sides))
    return cell(one, INPUT)


NATIVE = [*CELLS, *(f"{kind} x 2" for kind in CELLS)]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, *NATIVE[len(CELLS) :]])
def test_onnxruntime_equals_scan(kind, reverse, tmp_path):
    """At any batch and time, with and without lengths and carries, whatever is in the padding."""
    params = native(kind) if kind in NATIVE else draw(kind, dtype="float32")
    run = session(exported(params, tmp_path, reverse=reverse)).run
    for steps, lengths in ((7, [7, 0, 1, 4]), (12, [11])):
        xs, batch = random_xs(steps, len(lengths)), len(lengths)
        length = np.asarray(lengths, "int32")
        carry = draw_carries(params, batch)
        fed = feed(carry)
        none = jax.tree.map(jnp.zeros_like, carry)
        whole = np.full(batch, steps)
        assert_close(run(None, {"xs": xs}), scanned(params, xs, none, whole, reverse), TOL)
        assert_close(run(None, {"xs": xs} | fed), scanned(params, xs, carry, whole, reverse), TOL)
        for k, end in enumerate(lengths):
            xs[end:, k] = np.nan
        ys, *last = run(None, {"xs": xs, "length": length} | fed)
        assert_close([ys, *last], scanned(params, xs, carry, length, reverse), TOL)
        for k, end in enumerate(lengths):
            assert not np.any(ys[end:, k])


def test_nothing_before_the_first_step(tmp_path):
    """T = 0, which returns the carry."""
    params = draw("mixed", dtype="float32")
    carry = draw_carries(params, 2)
    fed = {"xs": random_xs(0, 2)} | feed(carry)
    ys, *last = session(exported(params, tmp_path)).run(None, fed)
    assert ys.shape == (0, 2, HIDDEN)
    assert_close(last, jax.tree.leaves(carry), 0)


def test_half_precision(tmp_path):
    """onnxruntime computes in float32 and rounds at the end, scan rounds every state: two ulp."""
    params = native("gru_after x 2", "float16")
    xs = random_xs(6, 3).astype("float16")
    none = jax.tree.map(jnp.zeros_like, draw_carries(params, 3))
    actual = session(exported(params, tmp_path)).run(None, {"xs": xs})
    assert {part.dtype.name for part in actual} == {"float16"}
    assert_close(actual, scanned(params, xs, none, np.full(3, 6)), 2e-3)


def test_one_for_all_and_clipped_lengths(tmp_path):
    params = native("gru")
    run = session(exported(params, tmp_path)).run
    xs, carry = random_xs(6, 3), draw_carries(params, 1)

    def outputs(length, carry):
        fed = {"length": np.asarray(length, "int32"), "carry": np.asarray(carry)}
        return run(None, {"xs": xs} | fed)

    assert_close(outputs([2], carry), outputs([2, 2, 2], jnp.tile(carry, (3, 1))), 0)
    assert_close(outputs([9, -1, 6], carry), outputs([6, 0, 6], carry), 0)


def test_names(tmp_path):
    params = draw("mixed", dtype="float32")
    made = session(exported(params, tmp_path))
    carry = jaxgru.initial_carry(params)
    assert [value.name for value in made.get_inputs()] == ["xs"]
    left_out = {value.name for value in made.get_overridable_initializers()}
    assert left_out == {"length", *carry_names("carry", carry)}
    outputs = ["outputs", *carry_names("last", carry)]
    assert [value.name for value in made.get_outputs()] == outputs
    assert outputs[1:3] == ["last_0_h", "last_0_c"]
    graph = onnx.load(tmp_path / "model.onnx").graph
    recurrent = [node.name for node in graph.node if node.op_type in GATES]
    assert recurrent == ["LSTM_0", "GRU_1_0", "GRU_1_1", "RNN_2"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", NATIVE)
def test_round_trip(kind, bias, dtype, tmp_path):
    params = native(kind, dtype, bias)
    path = exported(params, tmp_path)
    if not isinstance(params, jaxgru.Stack):
        assert_same(from_onnx(path).params, params)
        return
    op = {"gru": "GRU", "gru_after": "GRU", "lstm": "LSTM", "elman": "RNN"}[kind.split()[0]]
    layers = [from_onnx(path, f"{op}_{k}") for k in range(len(params.layers))]
    assert_same(jaxgru.Stack(tuple(layer.params for layer in layers)), params)


def test_round_trip_of_the_direction(tmp_path):
    path = exported(native("lstm"), tmp_path, reverse=True)
    found = from_onnx(path)
    assert found.reverse
    assert set(found.inputs) == {"X", "sequence_lens", "initial_h", "initial_c"}


# What is wrong with a model, or cannot be written.


def gru(drop=(), op="GRU", **arrays):
    """A GRU node, some of its arrays replaced or dropped."""
    node = draw_node(op)._replace(name="encoder")
    kept = {role: a for role, a in node.arrays.items() if role not in drop}
    return node._replace(arrays=kept | arrays)


def attribute(op="GRU", **attributes):
    node = draw_node(op)._replace(name="encoder")
    return model_of(node._replace(attributes=node.attributes | attributes))


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def external():
    model = model_of(gru())
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights")
    model.graph.initializer[0].ClearField("raw_data")
    return model


def other_dtype(role, dtype):
    return model_of(gru(**{role: draw_node("GRU").arrays[role].astype(dtype)}))


def without_recurrence():
    node = helper.make_node("Add", ["a", "b"], ["c"])
    return helper.make_model(helper.make_graph([node], "test", [], []))


# What from_onnx is given, the exception, and what it says around "must be".
WRONG = {
    "two nodes and no name": (
        lambda: [model_of(gru(), draw_node("GRU"))],
        ValueError,
        "node must be one of 'encoder', 'Y1', got None. A chain of layers is read one node",
    ),
    "no such node": (
        lambda: [model_of(gru()), "decoder"],
        ValueError,
        "node must be one of 'encoder', got 'decoder'",
    ),
    "a name that two nodes have": (
        lambda: [model_of(gru(), gru()), "encoder"],
        ValueError,
        "the name of one node, got 'encoder', which 2 nodes have. The names of outputs tell them "
        "apart: 'Y0' or 'Y1'",
    ),
    "a node by its number": (
        lambda: [model_of(gru()), 0],
        TypeError,
        "node must be a name, got int",
    ),
    "no recurrent node": (
        lambda: [
            helper.make_model(helper.make_graph([helper.make_node("Add", "ab", "c")], "g", [], []))
        ],
        ValueError,
        "source must be a model with a GRU, LSTM or RNN node in its main graph, got nodes: Add",
    ),
    "no model": (
        lambda: [{}],
        TypeError,
        "source must be a path, bytes or an onnx.ModelProto, got",
    ),
    "bytes of something else": (
        lambda: [b"not a model"],
        ValueError,
        "source must be an ONNX model, got 11 bytes that cannot be decoded",
    ),
    "W that is fed": (
        lambda: [model_of(gru(), fed=["W"])],
        ValueError,
        "W ('W0') of GRU 'encoder' must be a constant, got a value that comes at run time",
    ),
    "B that is fed": (
        lambda: [model_of(gru(), fed=["B"])],
        ValueError,
        "B ('B0') of GRU 'encoder' must be a constant, got a value that comes at run time",
    ),
    "no R": (
        lambda: [model_of(gru(drop=["R"]))],
        ValueError,
        "R of GRU 'encoder' must be a constant, got nothing",
    ),
    "W transposed": (
        lambda: [model_of(gru(W=zeros(1, INPUT, 3 * HIDDEN)))],
        ValueError,
        "W ('W0') of GRU 'encoder' must be an array of shape [1, 12, I], got float32[1, 3, 12]. "
        "It seems to be transposed.",
    ),
    "R transposed": (
        lambda: [model_of(gru(R=zeros(1, HIDDEN, 3 * HIDDEN)))],
        ValueError,
        "R ('R0') of GRU 'encoder' must be an array of shape [1, gates * H, 4], got "
        "float32[1, 4, 12]. It seems to be transposed.",
    ),
    "R of an LSTM": (
        lambda: [model_of(gru(R=zeros(1, 4 * HIDDEN, HIDDEN)))],
        ValueError,
        "R ('R0') of GRU 'encoder' must be an array of shape [1, 12, 4], got float32[1, 16, 4]",
    ),
    "half of B": (
        lambda: [model_of(gru(B=zeros(1, 3 * HIDDEN)))],
        ValueError,
        "B ('B0') of GRU 'encoder' must be an array of shape [1, 24], got float32[1, 12]",
    ),
    "one direction of two": (
        lambda: [attribute(direction="bidirectional")],
        ValueError,
        "R ('R0') of GRU 'encoder' must be an array of shape [2, gates * H, 4], got float32[1",
    ),
    "another hidden_size": (
        lambda: [attribute(hidden_size=5)],
        ValueError,
        "R ('R0') of GRU 'encoder' must be an array of shape [1, gates * H, 5], got float32[1",
    ),
    "states of two batches": (
        lambda: [model_of(gru(op="LSTM", initial_h=zeros(1, 2, 4), initial_c=zeros(1, 3, 4)))],
        ValueError,
        "initial_c ('initial_c0') of LSTM 'encoder' must be an array of shape [1, 2, 4], got",
    ),
    "lengths of another batch": (
        lambda: [model_of(gru(initial_h=zeros(1, 2, 4), sequence_lens=zeros(3, dtype="int32")))],
        ValueError,
        "sequence_lens ('sequence_lens0') of GRU 'encoder' must be an array of shape [2], got",
    ),
    "lengths of another type": (
        lambda: [model_of(gru(sequence_lens=zeros(3, dtype="int64")))],
        TypeError,
        "sequence_lens ('sequence_lens0') of GRU 'encoder' must be int32, got int64[3]",
    ),
    "weights of two dtypes": (
        lambda: [other_dtype("W", "float16")],
        TypeError,
        "W ('W0') of GRU 'encoder' must be float32 as R is, got float16[1, 12, 3]",
    ),
    "weights of integers": (
        lambda: [other_dtype("R", "int32")],
        TypeError,
        "R ('R0') of GRU 'encoder' must be one of float16, bfloat16, float32, float64, got int32",
    ),
    "external data and no path": (
        lambda: [external()],
        ValueError,
        "W ('W0') of GRU 'encoder' must be in the model, got data in an external file. Give the p",
    ),
    "activations": (
        lambda: [attribute(activations=["Sigmoid", "Relu"])],
        ValueError,
        "activations of GRU 'encoder' must be ['Sigmoid', 'Tanh'], got ['Sigmoid', 'Relu']",
    ),
    "activations of one direction": (
        lambda: [attribute(activations=["Relu"], op="RNN")],
        ValueError,
        "activations of RNN 'encoder' must be ['Tanh'], got ['Relu']",
    ),
    "activation_alpha": (
        lambda: [attribute(activation_alpha=[0.5])],
        ValueError,
        "activation_alpha of GRU 'encoder' must be absent, got [0.5]",
    ),
    "activation_beta": (
        lambda: [attribute(activation_beta=[0.5])],
        ValueError,
        "activation_beta of GRU 'encoder' must be absent, got [0.5]",
    ),
    "clip": (
        lambda: [attribute(clip=3.0)],
        ValueError,
        "clip of GRU 'encoder' must be absent, got 3.0",
    ),
    "input_forget": (
        lambda: [attribute("LSTM", input_forget=1)],
        ValueError,
        "input_forget of LSTM 'encoder' must be 0, got 1",
    ),
    "direction": (
        lambda: [attribute(direction="sideways", activations=["Tanh"])],
        ValueError,
        "direction of GRU 'encoder' must be 'forward' or 'reverse' or 'bidirectional', got 'sidew",
    ),
    "layout": (lambda: [attribute(layout=2)], ValueError, "layout of GRU 'encoder' must be 0 or 1"),
    "an attribute of old": (
        lambda: [attribute(output_sequence=1)],
        ValueError,
        "output_sequence of GRU 'encoder' must be absent, got 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_models(name):
    make, kind, message = WRONG[name]
    arguments = make()
    with pytest.raises(kind, match=re.escape(message)) as caught:
        from_onnx(*arguments)
    assert str(caught.value).startswith("from_onnx: ")


def test_float64_that_is_switched_off():
    with jax.enable_x64(False), pytest.raises(ValueError, match=r"R .* must be a dtype that is sw"):
        from_onnx(other_dtype("R", "float64"))


def test_a_file_cut_anywhere(tmp_path):
    """Never half of the weights, never an error that does not name the file."""
    params = native("gru")
    whole = exported(params, tmp_path).read_bytes()
    path = tmp_path / "half.onnx"
    for size in {*range(0, len(whole), 11), *range(len(whole) - 64, len(whole))}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=re.escape(f"from_onnx: the file {str(path)!r} must")):
            from_onnx(path)


@pytest.mark.parametrize("how", ["cut off", "missing", "outside the folder"])
def test_external_data_that_cannot_be_read(how, tmp_path):
    path = held_elsewhere("external data", tmp_path)
    data = tmp_path / "data"
    if how == "cut off":
        data.write_bytes(data.read_bytes()[:-4])
    elif how == "missing":
        data.unlink()
    else:
        path = path.rename(tmp_path / "model")
        (tmp_path / "inner").mkdir()
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../data"
        path = tmp_path / "inner" / "model.onnx"
        path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"from_onnx: . \('.0'\) of GRU 'Y0' must be readable"):
        from_onnx(path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes_that_onnxruntime_does_not_run(dtype, tmp_path):
    message = f"to_onnx: params must be of float32 or float16, which onnxruntime runs, got {dtype}"
    with jax.enable_x64(True), pytest.raises(TypeError, match=message):
        to_onnx(native("gru", dtype), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (lambda path: ({"w_ih": 0}, path), TypeError, "params must be GRUParams, LSTMParams"),
        (lambda path: (native("gru"), None), TypeError, "path must be a path, got NoneType"),
        (lambda path: (jaxgru.Stack(()), path), ValueError, "Stack.layers must be at least one"),
    ],
)
def test_what_cannot_be_written(arguments, kind, message, tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(kind, match=f"to_onnx: {message}"):
        to_onnx(*arguments(path))
    assert not path.exists()
