"""`from_onnx` refuses these models. The error names the node, its part, and what is wrong."""

import re

import jax
import numpy as np
import pytest

from cases import HIDDEN, INPUT, draw
from jaxgru.interop import from_onnx, to_onnx
from onnx_models import draw_node, held_elsewhere, helper, model_of, onnx


def gru(drop=(), op="GRU", **arrays):
    """A GRU node with some of its arrays replaced or dropped."""
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


# The source, the exception, and a part of its message around "must be".
WRONG = {
    "two nodes and no name": (
        lambda: [model_of(gru(), draw_node("GRU"))],
        ValueError,
        "node must be one of 'encoder', 'Y1', got None. Each call reads one node",
    ),
    "no such node": (
        lambda: [model_of(gru()), "decoder"],
        ValueError,
        "node must be one of 'encoder', got 'decoder'",
    ),
    "a name that two nodes have": (
        lambda: [model_of(gru(), gru()), "encoder"],
        ValueError,
        "the name of one node, got 'encoder', the name of 2 nodes. Their full names are "
        "'encoder#1', 'encoder#2'",
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
        "source must be a model with a GRU, LSTM or RNN node, got a model with the nodes Add",
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
        "W ('W0') of GRU 'encoder' must be a constant, got a value that depends on the input 'W0'",
    ),
    "B that is fed": (
        lambda: [model_of(gru(), fed=["B"])],
        ValueError,
        "B ('B0') of GRU 'encoder' must be a constant, got a value that depends on the input 'B0'",
    ),
    "no R": (
        lambda: [model_of(gru(drop=["R"]))],
        ValueError,
        "R of GRU 'encoder' must be a constant, got no value.",
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
        "W ('W0') of GRU 'encoder' must be float32, the dtype of R, got float16[1, 12, 3]",
    ),
    "weights of integers": (
        lambda: [other_dtype("R", "int32")],
        TypeError,
        "the dtype of R ('R0') of GRU 'encoder' must be float16, bfloat16, float32 or float64",
    ),
    "external data and no path": (
        lambda: [external()],
        ValueError,
        "W ('W0') of GRU 'encoder' must be in the model, got data in an external file. Pass the p",
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
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match=r"R .* must be a dtype that JAX has e"),
    ):
        from_onnx(other_dtype("R", "float64"))


def test_a_file_cut_anywhere(tmp_path):
    """A damaged file never gives half of the weights, and its error names the file."""
    path = tmp_path / "half.onnx"
    to_onnx(draw("gru", dtype="float32"), path)
    whole = path.read_bytes()
    for size in {*range(0, len(whole), 11), *range(len(whole) - 64, len(whole))}:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=re.escape(f"from_onnx: the file {str(path)!r} must")):
            from_onnx(path)


@pytest.mark.parametrize("how", ["cut off", "missing", "a link", "outside the folder"])
def test_external_data_that_cannot_be_read(how, tmp_path):
    path = held_elsewhere("external data", tmp_path)
    data = tmp_path / "data"
    if how == "cut off":
        data.write_bytes(data.read_bytes()[:-4])
    elif how == "missing":
        data.unlink()
    elif how == "a link":
        data.rename(tmp_path.parent / f"{tmp_path.name}_data")
        data.symlink_to(tmp_path.parent / f"{tmp_path.name}_data")
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
