"""Recurrent nodes in branches, loops and functions of an ONNX model: their names and values."""

import numpy as np
import pytest

from cases import HIDDEN, assert_close, assert_same
from jaxgru.interop import from_onnx, onnx_nodes
from onnx_examples import (
    branches,
    function,
    graph,
    looped,
    named,
    recurrent,
    with_branches,
    with_functions,
)
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


def test_branches():
    model, nodes = with_branches()
    names = ["choice/then_branch/gru", "choice/else_branch/gru"]
    assert onnx_nodes(model) == names[::-1]  # these are in the order of the file
    run, xs = session(model).run, random_xs(6, 2)
    for name, node, flag in zip(names, nodes, (True, False), strict=True):
        found = from_onnx(model, name)
        assert_same(found.params, from_onnx(model_of(node)).params)
        expected = run(None, {"X": xs, "flag": np.asarray(flag)})[0]
        assert_close(run_node(found, xs)[0], expected, TOL)


def test_a_branch_in_a_branch():
    """A name refers to the innermost value that has it, and otherwise to outer ones."""
    choice, outer, (low, high) = branches(outputs=["inner_Y"])
    choice.input[0] = "other"
    nodes = [
        helper.make_node("Not", ["flag"], ["other"]),
        choice,
        helper.make_node("Identity", ["inner_Y"], ["outer_Y"]),
    ]
    deep = graph(nodes, [described("outer_Y", shape=None)], outer)
    none = graph(
        [helper.make_node("Identity", ["zeros"], ["none_Y"])], [described("none_Y", shape=None)]
    )
    model = whole(
        [helper.make_node("If", ["flag"], ["Y"], name="if", then_branch=deep, else_branch=none)],
        [described("X"), described("flag", "bool", ())],
        [described("Y", shape=None)],
        {"zeros": np.zeros((1, 1, 1, HIDDEN), "f4")},
    )
    names = onnx_nodes(model)
    assert names == [f"if/then_branch/choice/{side}_branch/gru" for side in ("else", "then")]
    assert_same(from_onnx(model, names[0]).params, from_onnx(model_of(high)).params)
    assert_same(from_onnx(model, names[1]).params, from_onnx(model_of(low)).params)
    xs = random_xs(6, 2)
    found = run_node(from_onnx(model, names[0]), xs)[0]
    assert_close(found, session(model).run(None, {"X": xs, "flag": np.asarray(True)})[0], TOL)


def scanned():
    """A Scan over a leading axis of X, with a GRU that continues from sequence to sequence."""
    node, arrays = named(1, "low")
    body = graph(
        [recurrent(node, ["xs", *arrays, "", "h"], ["Ys", "h_next"])],
        [described("h_next", shape=[1, None, HIDDEN]), described("Ys", shape=None)],
        arrays,
        [described("h", shape=[1, None, HIDDEN]), described("xs")],
    )
    scan = helper.make_node(
        "Scan", ["start", "both"], ["h_end", "Y"], "scan", body=body, num_scan_inputs=1
    )
    both = helper.make_node("Concat", ["one", "one"], ["both"], axis=0)
    one = helper.make_node("Unsqueeze", ["X", "zero"], ["one"])
    inputs = [described("X"), described("start", shape=[1, None, HIDDEN])]
    outputs = [described("h_end", shape=None), described("Y", shape=None)]
    return whole([one, both, scan], inputs, outputs, {"zero": np.zeros(1, int)}), "scan/body/Ys"


@pytest.mark.parametrize("make", [looped, scanned])
def test_loops(make):
    model, name = make()
    assert onnx_nodes(model) == [name]
    found, xs = from_onnx(model), random_xs(6, 2)
    assert found.inputs == {"X": "X" if make is looped else "xs", "initial_h": "h"}
    start = np.full((1, 2, HIDDEN), 0.3, "f4")
    expected = session(model).run(None, {"X": xs, "start": start})
    once, h = run_node(found, xs, carry=start[0])
    twice, h = run_node(found, xs, carry=h[0])
    assert_close([h, np.stack([once, twice])], expected, TOL)


def test_weights_that_a_loop_changes():
    """The input of a body is not a constant, even if it starts from one."""
    model, _ = looped()
    body = model.graph.node[0].attribute[0].g
    gru = body.node[0]
    gru.input[1] = "h"
    message = r"W \('h'\) of GRU 'loop/body/gru' must be a constant, .* depends on the input 'h'"
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


def test_an_inner_value_hides_an_outer_one():
    model, (low, _) = with_branches()
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    other = np.full_like(low.arrays["W"], 0.25)
    branch.initializer.append(numpy_helper.from_array(other, "W_low"))
    arrays = {**low.arrays, "W": other}
    expected = from_onnx(model_of(low._replace(arrays=arrays))).params
    assert_same(from_onnx(model, "choice/then_branch/gru").params, expected)


# Names.


def test_names_that_are_shared():
    """There are two nodes with one name, two branches with one name, and nodes without names."""
    first, second = (branches("if", "gru", [f"Y{k}"])[0] for k in range(2))
    third = branches("", "", ["Y2"])[0]
    _, arrays = named(1, "low")
    nodes = [draw_node("GRU", k) for k in range(4)]
    plain = [
        recurrent(node, ["X", *arrays], [f"Z{k}"], name)
        for k, (node, name) in enumerate(zip(nodes, ("a", "a", "", "a#1"), strict=True))
    ]
    silent = recurrent(nodes[0], ["X", *arrays], [""])
    model = whole([*plain, first, second, third, silent], [], [], arrays)
    names = onnx_nodes(model)
    assert names == [
        "a#2", "a#3", "Z2", "a#1",
        "if/else_branch/gru#1", "if/then_branch/gru#1",
        "if/else_branch/gru#2", "if/then_branch/gru#2",
        "Y2/else_branch/else_Y", "Y2/then_branch/then_Y",
        "GRU",
    ]  # fmt: skip
    for name in names:
        from_onnx(model, name)
    assert from_onnx(model, "Z0").inputs == {"X": "X"}  # by the name of an output
    with pytest.raises(ValueError, match=r"'gru', the name of 4 nodes\. Their full names are 'if/"):
        from_onnx(model, "gru")


def test_a_node_goes_by_its_own_name_where_no_other_has_it():
    model, (low, high) = with_branches()
    assert_same(from_onnx(model, "then_Y").params, from_onnx(model_of(low)).params)
    assert_same(from_onnx(model, "else_Y").params, from_onnx(model_of(high)).params)


def test_long_names_of_branches():
    """Each of many nodes would get a name of a megabyte."""
    inner = [helper.make_node("GRU", ["X"], ["Y"]) for _ in range(1000)]
    parent = helper.make_node("If", ["flag"], ["Y"], "if" * 2**19, then_branch=graph(inner, []))
    with pytest.raises(
        ValueError, match=r"^onnx_nodes: source must be a model with short names of nodes"
    ):
        onnx_nodes(whole([parent], [], []))


def test_no_nodes():
    model = whole([helper.make_node("Add", ["a", "b"], ["c"])], [], [])
    assert onnx_nodes(model) == []
    assert onnx_nodes(model.SerializeToString()) == []


@pytest.mark.parametrize("source", [b"no model", {}])
def test_names_of_something_else(source):
    with pytest.raises((TypeError, ValueError), match=r"^onnx_nodes: source must be "):
        onnx_nodes(source)


# Functions.


def test_functions():
    model, node = with_functions()
    names = onnx_nodes(model)
    assert len(set(names)) == 2
    xs = random_xs(6, 2)
    for name, expected in zip(names, session(model).run(None, {"X": xs}), strict=True):
        found = from_onnx(model, name)
        assert_same(found.params, from_onnx(model_of(node)).params)
        assert_close(run_node(found, xs)[0], expected, TOL)


def calls(name, times=1):
    return [helper.make_node(name, ["xs"], ["ys"], domain="test") for _ in range(times)]


ENDLESS = {
    "a ring": [function("F0", calls("F1")), function("F1", calls("F0"))],
    "doubling": [
        *(function(f"F{k}", calls(f"F{k + 1}", 2)) for k in range(60)),
        function("F60", [helper.make_node("Identity", ["xs"], ["ys"])]),
    ],
}


@pytest.mark.parametrize("name", ENDLESS)
def test_functions_without_end(name):
    model = whole(calls("F0"), [], [], functions=ENDLESS[name])
    message = "source must be a model whose functions can be inlined, got functions that call each"
    with pytest.raises(ValueError, match=message):
        from_onnx(model)


def test_functions_of_another_version():
    """Functions of another version are not inlined, and an error names their nodes."""
    model, _ = with_functions()
    model.functions[1].opset_import[0].version = 13
    with pytest.raises(ValueError, match=r"can be inlined, got 'Layer' in another version of th"):
        onnx_nodes(model)


def test_a_model_stays_as_it_is():
    """Inlining changes only a copy."""
    model = whole(calls("F60"), [], [], functions=ENDLESS["doubling"][-1:])
    before = onnx.ModelProto.FromString(model.SerializeToString())
    assert onnx_nodes(model) == []
    assert model == before
