"""Damaged ONNX files: each is read or refused with a message, and nothing crashes or hangs."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from onnx_examples import (
    Making,
    chained,
    computed,
    dequantized,
    draw_quantized,
    looped,
    quantized,
    with_branches,
    with_functions,
)
from onnx_models import described, draw_node, helper, model_of, onnx, whole
from runs import ROOT

#: A file takes milliseconds. One with 1000 operators for each of 3 weights takes a second.
SECONDS = 10
HUGE = (-(2**63), -1, 0, 2**31, 2**40, 2**62)
OPS = ("GRU", "LSTM", "RNN", "Cast", "Concat", "Constant", "DequantizeLinear", "Identity",
       "Split", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "If", "Loop", "Relu",
       "")  # fmt: skip


def operators():
    """A GRU whose weights come from every operator that is computed."""
    node, make = draw_node("GRU"), Making()
    w, r, b = (node.arrays[role] for role in "WRB")
    w = make.value("Split", np.concatenate([w, w]), num_outputs=2, outputs=2)
    r = make.value("Squeeze", make.value("Unsqueeze", chained(make, r), [0]), [0])
    b = dequantized(make, b, "int8", 1, axis=1)
    make.nodes.append(helper.make_node("GRU", ["X", w, r, b], ["Y"], **node.attributes))
    return whole(make.nodes, [described("X")], [described("Y", shape=None)], make.arrays)


def examples(folder):
    """Models by name. One has its weights in a file."""
    path = folder / "beside.onnx"
    plain = model_of(draw_node("GRU", direction="bidirectional", batch=2))
    onnx.save(plain, path, save_as_external_data=True, location="data", size_threshold=0)
    return {
        "beside": onnx.load(path, load_external_data=False),
        "branches": with_branches()[0],
        "computed": computed(chained, "LSTM"),
        "functions": with_functions()[0],
        "loop": looped()[0],
        "operators": operators(),
        "plain": plain,
        "quantized": quantized(draw_quantized(channels=True)[0]),
    }


# Damaged bytes.


def with_bits_changed(content, rng):
    changed = bytearray(content)
    for place in rng.integers(0, len(changed), rng.integers(1, 9)):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def cut_off(content, rng):
    return content[: rng.integers(len(content))]


def cut_out(content, rng):
    low, high = sorted(rng.integers(0, len(content), 2))
    return content[:low] + content[high:]


# Damaged contents.


def parts(model):
    """Return graphs and functions, including nested ones."""
    found = [model.graph, *model.functions]
    for part in found:
        for node in part.node:
            found += [a.g for a in node.attribute if a.HasField("g")]
    return [part for part in found if len(part.node)]


def change_node(model, rng):
    graph = pick(parts(model) or [helper.make_graph([onnx.NodeProto()], "", [], [])], rng)
    node = pick(graph.node, rng)
    names = [name for other in graph.node for name in (*other.input, *other.output)]
    names += ["", "nowhere"]
    what = rng.integers(8)
    if what == 0:
        node.op_type = pick(OPS, rng)
    elif what == 1:
        node.domain = pick(["", "ai.onnx", "com.microsoft", "test"], rng)
    elif what == 2 and node.input:
        node.input[rng.integers(len(node.input))] = pick(names, rng)
    elif what == 3 and node.input:
        del node.input[rng.integers(len(node.input)) :]
    elif what == 4 and node.output:
        node.output[rng.integers(len(node.output))] = pick(names, rng)
    elif what == 5 and node.input and node.output:  # the nodes form a ring
        other = pick(graph.node, rng)
        if other.input and other.output:
            node.input[-1], other.input[-1] = other.output[0], node.output[0]
    elif what == 6:
        graph.node.remove(node)
    else:
        graph.node.add().CopyFrom(node)


def change_attribute(model, rng):
    nodes = [node for part in parts(model) for node in part.node]
    node = pick(nodes or [onnx.NodeProto()], rng)
    if not node.attribute or rng.integers(4) == 0:
        names = ["axis", "axes", "to", "block_size", "num_outputs", "hidden_size", "direction",
                 "value", "value_ints", "layout", "clip", "output_dtype", "perm"]  # fmt: skip
        values = [*HUGE, 1.5, b"\xff", [2**40], [0] * 100, ["x"]]
        value = values[rng.integers(len(values))]
        node.attribute.append(helper.make_attribute(pick(names, rng), value))
        return
    attribute = pick(node.attribute, rng)
    what = rng.integers(4)
    if what == 0:
        node.attribute.remove(attribute)
    elif what == 1:
        attribute.i = pick(HUGE, rng)
    elif what == 2:
        attribute.type = pick(list(onnx.AttributeProto.AttributeType.values()), rng)
    else:
        attribute.ref_attr_name = "other"


def change_tensor(model, rng):
    graphs = [part for part in parts(model) if isinstance(part, onnx.GraphProto)]
    tensor = pick([t for graph in graphs for t in graph.initializer] or [onnx.TensorProto()], rng)
    what = rng.integers(6)
    if what == 0 and tensor.dims:
        tensor.dims[rng.integers(len(tensor.dims))] = pick(HUGE, rng)
    elif what == 1:
        tensor.dims.append(pick([1, *HUGE], rng))
    elif what == 2:
        tensor.data_type = pick(list(onnx.TensorProto.DataType.values()), rng)
    elif what == 3:
        tensor.ClearField("raw_data")
    elif what == 4:
        tensor.name = "renamed"
    else:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        key = pick(["location", "location", "offset", "length", "other"], rng)
        places = ["/dev/zero", "../data", "data", "nowhere", ".", ""]
        value = pick(places, rng) if key == "location" else str(pick(HUGE, rng))
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
                return
        tensor.external_data.add(key=key, value=value)


def change_model(model, rng):
    what = rng.integers(5)
    if what == 0:
        model.opset_import[-1].version = pick([*HUGE, 1, 9], rng)
    elif what == 1:
        del model.opset_import[:]
        model.opset_import.add(domain="test", version=1)
    elif what == 2 and model.functions:  # it calls itself or another function
        model.functions[0].node[-1].op_type = pick(["Layer", "Whole"], rng)
        model.functions[0].node[-1].domain = "test"
    elif what == 3 and len(parts(model)) < 4:  # almost as deep as the decoder allows
        for _ in range(rng.integers(1, 25)):
            inner = onnx.GraphProto()
            inner.CopyFrom(model.graph)
            del model.graph.node[:]
            model.graph.node.append(helper.make_node("If", ["x"], ["Y"], then_branch=inner))
    else:  # the size doubles again and again
        names = [node.output[0] for node in model.graph.node if node.output]
        for _ in range(40):
            model.graph.node.append(helper.make_node("Concat", names[-1:] * 2, ["W"], axis=0))
            names.append(f"d{len(names)}")
            model.graph.node[-1].output[0] = names[-1]
        for node in model.graph.node:
            if node.op_type in ("GRU", "LSTM") and len(node.input) > 2:
                node.input[1] = names[-1]


def pick(choices, rng):
    return choices[int(rng.integers(len(choices)))]


BYTES = (with_bits_changed, cut_off, cut_out)
MEANING = (change_node, change_node, change_attribute, change_tensor, change_tensor, change_model)


def damaged(model, rng):
    """The bytes of a model with one to three faults."""
    if rng.integers(3) == 0:
        return pick(BYTES, rng)(model.SerializeToString(), rng)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(rng.integers(1, 4)):
        pick(MEANING, rng)(changed, rng)
    return changed.SerializeToString()


def read_all(folder):
    """Return the result of each file by name. Any other output of the child process is a fault."""
    command = [sys.executable, str(ROOT / "tests/read_onnx_files.py"), str(folder)]
    # The allocator reserves 64 MiB of addresses for each thread, which is no memory of the files.
    env = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    child = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0, f"died after {lines[-1:]}: {child.stderr[-2000:]}"
    return {name: (word, seconds) for name, word, seconds in lines}


def check(folder, count, seed):
    models = examples(folder)
    for name, model in models.items():
        (folder / f"0_{name}.onnx").write_bytes(model.SerializeToString())
    (folder / "beside.onnx").unlink()
    rng = np.random.default_rng(seed)
    for k in range(count):
        name = pick(list(models), rng)
        (folder / f"{k + 1:05}_{name}.onnx").write_bytes(damaged(models[name], rng))
    found = read_all(folder)
    assert len(found) == len(models) + count
    for name, (word, seconds) in found.items():
        assert word in ("read", "refused"), f"{name}: {word}"
        assert seconds < SECONDS, name
    assert all(found[f"0_{name}.onnx"][0] == "read" for name in models)
    words = Counter(word for word, _ in found.values())
    assert words["read"] > count / 8
    assert words["refused"] > count / 8


def test_damaged_files(tmp_path):
    check(tmp_path, 200, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_damaged_files(tmp_path, seed):
    check(tmp_path, 2000, seed)
