"""Weights that an ONNX model computes from constants, against onnxruntime."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import HIDDEN, INPUT, assert_close, assert_same
from jaxgru.interop import from_onnx
from onnx_examples import Making, chained, computed, dequantized
from onnx_models import (
    TOL,
    described,
    draw_node,
    helper,
    model_of,
    numpy_helper,
    onnx,
    random_xs,
    run_node,
    session,
    whole,
)

# Each function makes an array like the given one, and returns its name.
WAYS = {
    "Constant": lambda make, a: make.value(
        "Reshape", make.value("Constant", value_floats=a.ravel().tolist()), np.array(a.shape)
    ),
    "Constant of a tensor": lambda make, a: make.value(
        "Constant", value=numpy_helper.from_array(a)
    ),
    "Identity": lambda make, a: make.value("Identity", a),
    "Cast": lambda make, a: make.value("Cast", a.astype("float64"), to=1),
    "Cast of float16": lambda make, a: make.value("Cast", a.astype("float16"), to=1),
    "Cast of bfloat16": lambda make, a: make.value("Cast", a.astype(jnp.bfloat16), to=1),
    "Unsqueeze": lambda make, a: make.value("Unsqueeze", a[0], np.array([0])),
    "Squeeze": lambda make, a: make.value("Squeeze", a[:, None], np.array([1])),
    "Reshape": lambda make, a: make.value("Reshape", a.ravel(), np.array(a.shape)),
    "Concat": lambda make, a: make.value("Concat", a[..., :1], a[..., 1:], axis=-1),
    "Transpose": lambda make, a: make.value("Transpose", a.T),
    "Slice": lambda make, a: make.value(
        "Slice", np.flip(a, -1), *(np.array([k]) for k in (-1, -(2**31), -1, -1))
    ),
    "Split": lambda make, a: make.value(
        "Split", np.concatenate([a, -a]), outputs=2, num_outputs=2
    ),
    "Split of sizes": lambda make, a: make.value(
        "Split", np.concatenate([a, -a, a]), np.array([1, 2]), outputs=2
    ),
    "DequantizeLinear": lambda make, a: dequantized(make, a, "int8"),
    "DequantizeLinear of uint8": lambda make, a: dequantized(make, a, "uint8", 1, axis=1),
    "DequantizeLinear of columns": lambda make, a: dequantized(
        make, a, "int8", a.ndim - 1, axis=-1
    ),
    "a chain": chained,
}  # fmt: skip
OLD_WAYS = {
    "Unsqueeze": lambda make, a: make.value("Unsqueeze", a[0], axes=[0]),
    "Squeeze": lambda make, a: make.value("Squeeze", a[:, None], axes=[1]),
    "Split": lambda make, a: make.value("Split", np.concatenate([a, -a]), outputs=2, axis=0),
    "DequantizeLinear": lambda make, a: dequantized(make, a, "uint8"),
}


def check(model, op="GRU"):
    """The weights and outputs equal those that onnxruntime computes."""
    xs = random_xs(6, 2)
    ys, *negated = session(model).run(None, {"X": xs})
    arrays = {role: -a for role, a in zip("WRB", negated, strict=True)}
    found = from_onnx(model)
    assert found.inputs == {"X": "X"}
    assert_close(
        found.params, from_onnx(model_of(draw_node(op)._replace(arrays=arrays))).params, TOL
    )
    assert_close(run_node(found, xs)[0], ys, TOL)


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_computed(way):
    check(computed(WAYS[way]))


@pytest.mark.parametrize("way", OLD_WAYS)
def test_operators_of_old(way):
    """Their axes were attributes. The quantized one is older than the evaluator of ONNX."""
    check(computed(OLD_WAYS[way], opset=11))


def test_of_every_kind_of_node():
    check(computed(chained, "LSTM"), "LSTM")


def test_weights_stay_in_half_precision():
    """Computations in float16 round to the same bits as onnxruntime does.

    onnxruntime rounds outputs at the end, and scan rounds every state. They differ by a few ulp of
    5e-4.
    """
    model = computed(lambda make, a: dequantized(make, a, "int8", 1, axis=1), kind="float16")
    xs = random_xs(6, 2).astype("float16")
    ys, *negated = session(model).run(None, {"X": xs})
    arrays = {role: -a for role, a in zip("WRB", negated, strict=True)}
    expected = from_onnx(model_of(draw_node("GRU")._replace(arrays=arrays))).params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(expected)} == {"float16"}
    found = from_onnx(model)
    assert_same(found.params, expected)
    assert_close(run_node(found, xs)[0], ys, 2e-3)


def test_lengths_and_states_that_are_computed():
    """A value is either a constant or an input with its name in the model."""
    node, make = draw_node("GRU", batch=2), Making()
    states = {
        "sequence_lens": make.value("Cast", node.arrays["sequence_lens"].astype("int64"), to=6),
        "initial_h": make.value("Concat", *np.split(node.arrays["initial_h"], 2, 1), axis=1),
    }
    weights = [make.held(node.arrays[role]) for role in "WRB"]
    make.nodes.append(
        helper.make_node("GRU", ["X", *weights, *states.values()], ["Y"], **node.attributes)
    )
    model = whole(make.nodes, [described("X")], [described("Y", shape=None)], make.arrays)
    xs = random_xs(6, 2)
    assert_close(run_node(from_onnx(model), xs)[0], session(model).run(None, {"X": xs})[0], TOL)
    make.nodes[1] = helper.make_node("Shape", ["X"], [states["initial_h"]])
    found = from_onnx(whole(make.nodes, [described("X")], [], make.arrays))
    assert found.carry is None
    assert found.inputs == {"X": "X", "initial_h": states["initial_h"]}


def test_inputs_that_have_a_default():
    """Before version 4 of the format, all initializers were inputs too."""
    model, expected = model_of(draw_node("GRU")), from_onnx(model_of(draw_node("GRU"))).params
    model.graph.input.extend(described(t.name, shape=t.dims) for t in model.graph.initializer)
    assert_same(from_onnx(model).params, expected)


def test_numbers_beyond_float32():
    """inf and NaN are computed without a warning of NumPy."""
    model = computed(lambda make, a: make.value("Cast", a.astype("float64") * 1e300, to=1))
    assert np.isinf(from_onnx(model).params.w_ih).all()


# Refused models.


def weight(*nodes, inputs=(), **arrays):
    """A model with one GRU named gru, whose W is whatever makes the value W."""
    held = {"R": draw_node("GRU").arrays["R"], **arrays}
    gru = helper.make_node("GRU", ["X", "W", "R"], ["Y"], name="gru", hidden_size=HIDDEN)
    return whole([*nodes, gru], [described("X"), *inputs], [described("Y", shape=None)], held)


def doubled(times):
    """An array of one number, which is concatenated with itself again and again."""
    pairs = [helper.make_node("Concat", [f"d{k}"] * 2, [f"d{k + 1}"], axis=0) for k in range(times)]
    return weight(*pairs, helper.make_node("Identity", [f"d{times}"], ["W"]), d0=np.ones(1, "f4"))


def one(op, *inputs, **attributes):
    return helper.make_node(op, inputs, ["W"], name="last", **attributes)


def sparse():
    values = numpy_helper.from_array(np.ones(1, "f4"), "W")
    indices = numpy_helper.from_array(np.zeros(1, "int64"))
    return helper.make_sparse_tensor(values, indices, [2**40])


def with_sparse_weights():
    model = weight()
    model.graph.sparse_initializer.append(sparse())
    return model


def declared(dims, kind=onnx.TensorProto.FLOAT, data=bytes(4)):
    """The weights declare a size that the file does not have."""
    model = weight()
    model.graph.initializer.append(
        onnx.TensorProto(name="W", dims=dims, data_type=kind, raw_data=data)
    )
    return model


W = "from_onnx: W ('W') of GRU 'gru' must be "
REFUSED = {
    "an input": (
        lambda: weight(one("Identity", "w"), inputs=[described("w")]),
        "a constant, got a value that depends on the input 'w'",
    ),
    "an input among constants, through any operator": (
        lambda: weight(
            helper.make_node("MatMul", ["a", "w"], ["c"]), one("Concat", "a", "c", axis=0),
            a=np.ones((1, 1), "f4"), inputs=[described("w")],
        ),
        "a constant, got a value that depends on the input 'w'",
    ),
    "another operator": (
        lambda: weight(helper.make_node("Relu", ["a"], ["b"], name="relu"), one("Identity", "b"),
                       a=np.ones((1, 12, 3), "f4")),
        "a constant, got the result of Relu 'relu'. from_onnx computes only Cast,",
    ),
    "an operator of another domain": (
        lambda: weight(one("Identity", "a", domain="com.example"), a=np.ones(1, "f4")),
        "a constant, got the result of Identity 'last'. from_onnx computes",
    ),
    "nothing": (
        lambda: weight(one("Identity", "a")),
        "a constant, got a value that depends on 'a', which no node makes",
    ),
    "a ring": (
        lambda: weight(helper.make_node("Identity", ["b"], ["a"]), one("Identity", "a"),
                       helper.make_node("Identity", ["W"], ["b"])),
        "a constant, got a value that depends on itself",
    ),
    "a sparse tensor": (
        with_sparse_weights,
        "a constant, got a value that depends on the sparse 'W'",
    ),
    "a sparse constant": (
        lambda: weight(one("Constant", sparse_value=sparse())),
        "computed by Constant 'last', got sparse_value=SparseTensorProto",
    ),
    "too many operators": (
        lambda: weight(*(helper.make_node("Identity", [f"d{k}"], [f"d{k + 1}"])
                         for k in range(1500)), one("Identity", "d1500"), d0=np.ones(1, "f4")),
        "a constant, got the result of more than 1000 operators. Export the model with",
    ),
    "numbers that multiply": (
        lambda: doubled(27),
        "computed by Concat 'd23', and of a reasonable size, got 67108864 bytes or more, computed",
    ),
    "scales that multiply": (
        lambda: weight(one("DequantizeLinear", "a", "b", axis=1), a=np.ones((2**20, 1), "int8"),
                       b=np.ones(2**20, "f4")),
        "computed by DequantizeLinear 'last', got float32[1048576] as the scale or zero",
    ),
    "a block size": (
        lambda: weight(one("DequantizeLinear", "a", "b", axis=0, block_size=2**40),
                       a=np.ones((2, 2), "int8"), b=np.ones((1, 2), "f4")),
        "computed by DequantizeLinear 'last', got block_size=1099511627776, which is not supported",
    ),
    "a number of outputs": (
        lambda: weight(one("Split", "a", num_outputs=2**40), a=np.ones(2, "f4")),
        "computed by Split 'last', got num_outputs=1099511627776, which is not supported",
    ),
    "text": (
        lambda: weight(one("Cast", "a", to=onnx.TensorProto.STRING), a=np.ones(2, "f4")),
        "computed by Cast 'last', got to=8, which is not supported",
    ),
    "texts": (
        lambda: weight(one("Constant", value_strings=["a" * 1000, *"b" * 1000])),
        "computed by Constant 'last', got value_strings=list, which is not supported",
    ),
    "numbers of another type": (
        lambda: weight(one("DequantizeLinear", "a", "b", output_dtype=onnx.TensorProto.STRING),
                       a=np.ones(2, "int8"), b=np.ones((), "f4")),
        "computed by DequantizeLinear 'last', got output_dtype=8, which is not supported",
    ),
    "scales along two axes": (
        lambda: weight(one("DequantizeLinear", "a", "b", axis=0), a=np.ones((3, 3), "int8"),
                       b=np.ones((3, 1), "f4")),
        "computed by DequantizeLinear 'last', got float32[3, 1] as the scale or zero",
    ),
    "shapes that do not fit": (
        lambda: weight(one("Reshape", "a", "b"), a=np.ones(6, "f4"), b=np.array([4, 2])),
        "computed by Reshape 'last', got cannot reshape array of size 6 into shape",
    ),
    "a size that is declared only": (
        lambda: declared([2**40]), "readable, of shape [1099511627776], got ",
    ),
    "four bits of a size that is declared only": (
        lambda: declared([2**40], onnx.TensorProto.INT4),
        "of one of the data types FLOAT, FLOAT16, BFLOAT16, DOUBLE, INT8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_constant(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(W + message)):
        from_onnx(make())


def test_weights_of_integers_after_all():
    """Computed values pass the same checks as stored ones."""
    model = weight(one("Cast", "a", to=6), a=np.ones((1, 3 * HIDDEN, INPUT), "f4"))
    with pytest.raises(TypeError, match=r"the dtype of W .* must be float16, bfloat16, float32"):
        from_onnx(model)


def test_bytes_of_a_large_layer():
    """Quantized weights of 10 MB are allowed after a few operators."""
    hidden, make = 1280, Making()
    names = []
    for size in (INPUT, hidden):
        steps = np.ones((2, 3 * hidden * size), "int8")
        number = make.value("DequantizeLinear", steps, np.float32(0.5), np.int8(-1))
        flat = make.value("Slice", number, [0], [1], [0])
        for _ in range(3):
            flat = make.value("Identity", flat)
        names.append(make.value("Reshape", flat, np.array([1, 3 * hidden, size])))
    make.nodes.append(helper.make_node("GRU", ["X", *names], ["Y"], hidden_size=hidden))
    params = from_onnx(whole(make.nodes, [described("X")], [], make.arrays)).params
    assert np.all(np.abs(params.w_hh) == 1)
