"""Reading ONNX: the node tests of its project, onnxruntime, and all ways to hold weights."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import HIDDEN, assert_close, assert_same
from jaxgru.interop import from_onnx
from onnx_models import (
    GATES,
    TOL,
    Node,
    draw_node,
    held_elsewhere,
    helper,
    model_of,
    onnx,
    random_xs,
    run_node,
    session,
)

# Tests of the ONNX project.

#: The tests that do not apply, and the errors of from_onnx.
NOT_APPLICABLE = {"test_lstm_with_peepholes": "P ('P0') of LSTM 'Y0' must be zero"}


def project_tests():
    """Return by name: the node, all its inputs, and its outputs."""
    found = {}
    for name in GATES:
        module = peers.peer(f"onnx.backend.test.case.node.{name.lower()}")
        cases = getattr(module, name)
        rng = np.random.default_rng(0)

        def expect(node, inputs, outputs, name, **_):
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
    """Each operator has six: defaults, bias, lengths or peepholes, layout 1, both directions."""
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


# Reading compared with onnxruntime.

NODES = [("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("LSTM", {}), ("RNN", {})]
DIRECTIONS = ("forward", "reverse", "bidirectional")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "attributes"), NODES)
def test_reads_what_onnxruntime_runs(op, attributes, direction, bias):
    """from_onnx returns lengths and initial states that the model holds."""
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
    """The node names its run-time inputs, which scan takes as arguments."""
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
    """onnxruntime refuses to run these nodes with layout 1."""
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
    for name in ("Y1", "Y_c1"):  # a node without a name has the names of its outputs
        assert_same(from_onnx(model, name).params, from_onnx(model_of(second)).params)
