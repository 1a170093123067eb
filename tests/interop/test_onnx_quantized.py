"""DynamicQuantizeLSTM of onnxruntime is read as the LSTM that it approximates."""

import re

import numpy as np
import pytest

from cases import HIDDEN, INPUT, assert_close, assert_same
from jaxgru.interop import from_onnx, onnx_nodes
from onnx_examples import draw_quantized, quantized
from onnx_models import TOL, described, model_of, random_xs, run_node, session

#: onnxruntime also rounds the inputs, which are up to 3, and the states of each step to 8 bits.
#: Each error is up to 0.01 with a random sign, times weights of 0.6. The slope of a gate is at most
#: one. The largest measured difference is 0.0066.
ROUNDED = 2e-2


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_reads_what_onnxruntime_approximates(kind, channels, direction):
    arrays, plain = draw_quantized(kind, channels, direction)
    model, xs = quantized(arrays, direction=direction), random_xs(6, 3)
    assert onnx_nodes(model) == ["lstm"]
    found = from_onnx(model)
    assert_same(found.params, from_onnx(model_of(plain)).params)
    ys = run_node(found, xs)[0]
    assert_close(ys, session(model_of(plain)).run(None, {"X0": xs})[0], TOL)
    assert_close(ys, session(model).run(None, {"X": xs})[0], ROUNDED)


WRONG = {
    "no scale": (
        {"R_scale": None}, ValueError,
        "R_scale of DynamicQuantizeLSTM 'lstm' must be a constant, got no value",
    ),
    "weights that are no bytes": (
        {"W": np.zeros((1, INPUT, 4 * HIDDEN), "f4")}, TypeError,
        "W ('W') of DynamicQuantizeLSTM 'lstm' must be int8 or uint8, got float32[1, 3, 16]",
    ),
    "weights turned": (
        {"R": np.zeros((1, 4 * HIDDEN, HIDDEN), "i1")}, ValueError,
        "R_scale ('R_scale') of DynamicQuantizeLSTM 'lstm' must be an array of shape [1, 4], got",
    ),
    "a scale of another shape": (
        {"W_scale": np.ones((1, 3), "f4")}, ValueError,
        "W_scale ('W_scale') of DynamicQuantizeLSTM 'lstm' must be an array of shape [1, 16], got",
    ),
    "a scale of another kind": (
        {"W_scale": np.ones((1, 16), "f2")}, TypeError,
        "W_scale ('W_scale') of DynamicQuantizeLSTM 'lstm' must be float32, got float16[1, 16]",
    ),
    "a zero point of another kind": (
        {"R_zero_point": np.zeros((1,), "u1")}, TypeError,
        "R_zero_point ('R_zero_point') of DynamicQuantizeLSTM 'lstm' must be int8, got uint8[1]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit(name):
    changes, kind, message = WRONG[name]
    arrays = {**draw_quantized(channels=True)[0], **changes}
    model = quantized({role: a for role, a in arrays.items() if a is not None})
    with pytest.raises(kind, match=re.escape(f"from_onnx: {message}")):
        from_onnx(model)


def test_a_scale_that_is_fed():
    arrays = draw_quantized()[0]
    model = quantized({role: a for role, a in arrays.items() if role != "R_scale"})
    model.graph.node[0].input[10] = "s"
    model.graph.input.append(described("s", shape=[1]))
    message = r"R_scale \('s'\) of .* must be a constant, got a value that depends on the input 's'"
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


def test_a_scale_that_is_infinite():
    arrays = draw_quantized()[0]
    arrays["R_scale"] = np.full(1, np.inf, "f4")
    assert not np.isfinite(from_onnx(quantized(arrays)).params.w_hh).any()


def test_another_domain_is_another_operator():
    model = quantized(draw_quantized()[0])
    model.graph.node[0].domain = "com.example"
    assert onnx_nodes(model) == []


def test_attributes_without_a_counterpart():
    model = quantized(draw_quantized()[0], clip=1.0)
    message = "clip of DynamicQuantizeLSTM 'lstm' must be absent, got 1.0"
    with pytest.raises(ValueError, match=message):
        from_onnx(model)
