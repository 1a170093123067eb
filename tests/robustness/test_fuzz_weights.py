"""Damaged weights of other libraries are read exactly, or an error says what is wrong."""

import re

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

import jaxgru
from cases import HIDDEN, INPUT, draw
from jaxgru.interop import from_haiku, from_linen, from_torch, to_haiku, to_linen

WRONG = ("gone", "extra", "renamed", "a name that is no string", "rank", "size", "dtype", "None",
         "a list", "objects", "NaN")  # fmt: skip


def torch_weights(kind):
    """A state dict of a module with one layer, as NumPy arrays."""
    gates = {"gru_after": 3, "lstm": 4, "elman": 1}[kind]
    rng = np.random.default_rng(gates)
    shapes = {"weight_ih_l0": (gates * HIDDEN, INPUT), "weight_hh_l0": (gates * HIDDEN, HIDDEN),
              "bias_ih_l0": (gates * HIDDEN,), "bias_hh_l0": (gates * HIDDEN,)}  # fmt: skip
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def haiku_weights(kind):
    return to_haiku(draw(kind, dtype="float32"))


def linen_weights(kind):
    return to_linen(draw(kind, dtype="float32"))


LIBRARIES = {
    "from_torch": (from_torch, torch_weights, ("gru_after", "lstm", "elman")),
    "from_haiku": (from_haiku, haiku_weights, ("gru", "lstm")),
    "from_linen": (from_linen, linen_weights, ("gru_after", "lstm", "elman")),
}


plain = st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
names = st.sampled_from(["", "gru", "params", "weight_hh_l0", "w_h", 1, None])
sources = st.recursive(
    plain | st.just(np.zeros(3, "f4")),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner),
    max_leaves=4,
)


def spots(tree, path=()):
    """The paths to the arrays of nested mappings."""
    if isinstance(tree, dict):
        return [spot for name, part in tree.items() for spot in spots(part, (*path, name))]
    return [path]


def damaged(tree, path, wrong, rng):
    """Copy the weights, and damage one array."""
    if len(path) > 1:
        return tree | {path[0]: damaged(tree[path[0]], path[1:], wrong, rng)}
    (name,) = path
    rest = {key: value for key, value in tree.items() if key != name}
    array = np.asarray(tree[name])
    if wrong == "gone":
        return rest
    if wrong == "extra":
        return tree | {f"{name}_more": array}
    if wrong == "renamed":
        return rest | {f"{name}x": array}
    if wrong == "a name that is no string":
        return rest | {rng.choice([0, 7]): array}
    changed = {
        "rank": array[None],
        "size": np.concatenate([array, array[:1]]),
        "dtype": array.astype(rng.choice(["i4", "c8", "?", "S4"])),
        "None": None,
        "a list": array.tolist(),
        "objects": array.astype(object),
        "NaN": np.where(rng.random(array.shape) < 0.5, np.float32(np.nan), array),
    }
    return tree | {name: changed[wrong]}


def ours(library, read, source):
    """Return what is read, or None if this library refuses it with its own error."""
    problem = None
    try:
        return read(source)
    except (TypeError, ValueError) as error:
        problem = str(error)
    assert re.match(rf"{library}: .* must be .*, got .*", problem, re.DOTALL), problem
    return None


@pytest.mark.parametrize("library", LIBRARIES)
@given(data=st.data())
@settings(max_examples=40)
def test_mappings_with_one_thing_wrong(library, data):
    read, write, kinds = LIBRARIES[library]
    tree = write(data.draw(st.sampled_from(kinds)))
    path = data.draw(st.sampled_from(spots(tree)))
    wrong = data.draw(st.sampled_from(WRONG))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    bad = damaged(tree, path, wrong, rng)
    params = ours(library, read, bad)
    if params is None:
        assert wrong != "NaN"
        return
    # Only NaN can be accepted, and it stays where it was. (If an axis that determines the size of
    # the network is missing, another size is valid too.)
    jaxgru.initial_carry(params)
    if wrong == "NaN":
        marked = [np.isnan(leaf).sum() for leaf in jax.tree.leaves(params)]
        assert sum(marked) >= min(1, sum(np.isnan(part).sum() for part in jax.tree.leaves(bad)))
    else:
        sizes = [leaf.shape for leaf in jax.tree.leaves(params)]
        assert wrong == "size", wrong
        assert sizes != [leaf.shape for leaf in jax.tree.leaves(read(tree))]


@pytest.mark.parametrize("read", [*(read for read, *_ in LIBRARIES.values()), jaxgru.from_dict])
@given(source=sources)
@settings(max_examples=40)
def test_sources_that_are_anything(read, source):
    with pytest.raises((TypeError, ValueError), match=rf"^{read.__name__}: .* must be .*, got "):
        read(source)


def onnx_bytes():
    pytest.importorskip("onnx")
    from onnx_models import draw_node, model_of

    return model_of(draw_node("GRU")).SerializeToString()


def read_onnx(content):
    node = ours("from_onnx", jaxgru.interop.from_onnx, content)
    return node and node.params


def test_onnx_cut_anywhere():
    whole = onnx_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 150)):
        assert read_onnx(whole[:end]) is None


def test_onnx_with_a_bit_changed():
    """A changed weight looks like any other, so it gives params with the shapes of the model."""
    whole = onnx_bytes()
    rng = np.random.default_rng(0)
    kept = 0
    for place in rng.integers(0, len(whole), 250):
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.integers(8)
        params = read_onnx(bytes(changed))
        if params is not None:
            kept += 1
            jaxgru.initial_carry(params)
    assert kept > 100
