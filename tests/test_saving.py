"""Params in files: loading returns exactly what was saved, or raises an error."""

import hashlib
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxgru
from cases import CELLS, KINDS, OWN, draw, slow
from jaxgru.forms import FORMS

pytestmark = pytest.mark.usefixtures("x64")

DTYPES = ("float16", "bfloat16", "float32", "float64")
EVERY_CELL = (*CELLS, *OWN)
NOT_OURS = "a file that jaxgru.save wrote"


def one(kind, **options):
    return draw(kind, dtype="float32", **options)


#: Pairs that were once confused, or whose leaves have the same shapes.
OTHERS = [
    (one("gru_after"), one("gru")),
    (one("gru_after", bias=False), one("gru", bias=False)),
    (one("lstm", bias=False), one("elman", bias=False)),
    (jaxgru.Stack((one("gru_after"),)), jaxgru.Stack((one("gru"),))),
]


def bits(tree):
    """All contents of a tree, including NaN, -0 and dtypes."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), [(a.dtype, a.shape, a.tobytes()) for a in leaves]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "params.safetensors"


def draw_everything(dtype):
    """Every kind of params in a Stack. It could not run."""
    return jaxgru.Stack(
        tuple(draw(kind, dtype=dtype, bias=bias) for kind in KINDS for bias in (0, 1))
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_file(path, dtype):
    params = draw_everything(dtype)
    for some in (params, *params.layers):
        jaxgru.save(path, some)
        assert bits(jaxgru.load(str(path))) == bits(some)
    assert os.listdir(path.parent) == [path.name]


def test_numbers_that_compare_strangely(path):
    strange = np.array([np.nan, -0.0, np.inf, 5e-324, -np.nan, 1.0]).reshape(1, 6)
    params = jaxgru.ElmanParams(w_ih=strange, w_hh=np.tile(strange, (6, 1)), b=strange[0])
    jaxgru.save(path, params)
    assert bits(jaxgru.load(path)) == bits(params)


def test_leaves_may_lie_in_memory_in_any_way(path):
    params = draw("elman", dtype="float32")
    turned = jax.tree.map(lambda a: np.asarray(np.asarray(a), order="F").astype(">f4"), params)
    jaxgru.save(path, turned)
    assert bits(jaxgru.load(path)) == bits(params)


def test_many_networks_at_once(path):
    """The sizes also fit one network of another kind, and there are many layers."""
    layers = tuple(draw("elman", 3, 3, seed=seed) for seed in range(11))
    params = jax.tree.map(lambda a: jnp.stack([a, 2 * a, 3 * a]), jaxgru.Stack(layers))
    jaxgru.save(path, params)
    assert bits(jaxgru.load(path)) == bits(params)


def test_gradients_have_the_names_of_params():
    params = draw("mixed")
    grads = jax.grad(lambda p: jnp.sum(jaxgru.scan(p, jnp.ones((2, 3)))[1]))(params)
    assert list(jaxgru.to_dict(grads)) == list(jaxgru.to_dict(params))


def test_no_two_forms_have_a_name_in_common():
    """So no program that goes by names can confuse a tree of one form with that of another."""
    both = (False, True)
    names = [set(jaxgru.to_dict(draw(kind, bias=bias))) for kind in EVERY_CELL for bias in both]
    assert {name.partition(".")[0] for some in names for name in some} == set(EVERY_CELL)
    assert set(EVERY_CELL) <= set(FORMS)
    for kind in EVERY_CELL:
        assert all(name.startswith(f"{kind}.") for name in jaxgru.to_dict(draw(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dict_flat_or_nested(kind):
    params = draw(kind)
    flat = jaxgru.to_dict(params)
    nested = {}
    for name, leaf in flat.items():
        *heads, last = name.split(".")
        part = nested
        for head in heads:
            part = part.setdefault(head, {})
        part[last] = leaf
    backwards = dict(reversed(flat.items()))
    for tree in (flat, nested, backwards, jax.tree.map(np.asarray, flat), flat | {"nothing": None}):
        assert bits(jaxgru.from_dict(tree)) == bits(params)


def test_a_dict_inside_jit():
    params, xs = draw("mixed"), jnp.ones((2, 3))
    run = jax.jit(lambda weights: jaxgru.scan(jaxgru.from_dict(weights), xs))
    assert bits(run(jaxgru.to_dict(params))) == bits(jax.jit(jaxgru.scan)(params, xs))


# Effects on files.


def test_a_file_is_replaced_whole_or_not_at_all(path, monkeypatch):
    old, new = draw("gru"), draw("lstm")
    jaxgru.save(path, old)

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left"):
                jaxgru.save(path, new)
        assert bits(jaxgru.load(path)) == bits(old)
        assert os.listdir(path.parent) == [path.name]
    jaxgru.save(path, new)
    assert bits(jaxgru.load(path)) == bits(new)


def test_the_bytes_are_on_disk_before_the_name_is(path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, call=call: (calls.append(name), call(*a))[1]
        )
    jaxgru.save(path, draw("gru"))
    assert calls == ["fsync", "replace"]


def test_a_link_stays_one(path):
    link = path.with_name("link")
    link.symlink_to(path)
    jaxgru.save(link, draw("gru"))
    assert link.is_symlink()
    assert bits(jaxgru.load(path)) == bits(draw("gru"))


def test_every_byte_counts(path):
    """A file is cut, gets one more byte, or has one bit flipped in any byte."""
    jaxgru.save(path, draw("elman", 1, 2, dtype="bfloat16"))
    data, rng = path.read_bytes(), np.random.default_rng(0)
    assert len(data) < 500
    broken = [data[:end] for end in range(0, len(data), 5)] + [data + b"\0"]
    for at, bit in enumerate(rng.integers(8, size=len(data))):
        broken.append(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
    for some in broken:
        path.write_bytes(some)
        with pytest.raises(ValueError, match=NOT_OURS):
            jaxgru.load(path)


def parts_of(data):
    """Return (header, arrays) of a file."""
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def with_digest(header, arrays):
    """A file with another header and the right digest."""
    header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + arrays
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


@pytest.mark.parametrize(
    ("name", "entry", "error"),
    [
        ("elman.w_hh", {"dtype": "I32"}, NOT_OURS),
        ("elman.w_hh", {"dtype": []}, NOT_OURS),
        ("elman.w_hh", {"shape": [2, 3]}, NOT_OURS),
        ("elman.w_hh", {"shape": [2**70, 2]}, NOT_OURS),
        ("elman.w_hh", {"shape": "22"}, NOT_OURS),
        ("elman.w_hh", {"data_offsets": [0, 10**6]}, NOT_OURS),
        ("elman.w_hh", {"data_offsets": [10**6, 10**6 + 32]}, NOT_OURS),
        ("elman.w_hh", {"data_offsets": [-8, 24]}, NOT_OURS),
        ("elman.w_hh", {"data_offsets": 3}, NOT_OURS),
        ("elman.w_hh", {"strange": 3}, NOT_OURS),
        ("elman.other", {}, "only biases may be missing"),
        ("other.w_hh", {}, "names of one network, which begin with layers"),
        ("__metadata__", {"jaxgru": "2"}, "version '2'"),
    ],
)
def test_headers_that_lie(path, name, entry, error):
    jaxgru.save(path, draw("elman", 1, 2))
    header, arrays = parts_of(path.read_bytes())
    header[name] = header.get(name, header["elman.w_hh"]) | entry
    path.write_bytes(with_digest(header, arrays))
    with pytest.raises(ValueError, match=error):
        jaxgru.load(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x05K\x01.",
        b"PK\x03\x04" + bytes(100),
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
        (21).to_bytes(8, "little") + b'{"__metadata__": {} }',
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        b"\xff" * 1000,
    ],
)
def test_files_from_elsewhere(path, data):
    path.write_bytes(data)
    with pytest.raises(ValueError, match=NOT_OURS):
        jaxgru.load(path)


# Wrong calls.


def test_paths(tmp_path):
    params = draw("gru")
    for call in (lambda p: jaxgru.save(p, params), jaxgru.load):
        with pytest.raises(ValueError, match="path must be a file, got the folder"):
            call(tmp_path)
        for strange in (3, None, b"params", ["params"]):
            with pytest.raises(TypeError, match="path must be a str or a path"):
                call(strange)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="path must be a file, got the device or pipe"):
        jaxgru.save(tmp_path / "pipe", params)
    with pytest.raises(ValueError, match="in a folder that exists"):
        jaxgru.save(tmp_path / "none" / "params", params)
    with pytest.raises(FileNotFoundError):
        jaxgru.load(tmp_path / "none")


GRU = one("gru")


@pytest.mark.parametrize(
    ("params", "kind", "error"),
    [
        (None, TypeError, "params must be GRUParams, .* got NoneType"),
        (jaxgru.to_dict(GRU), TypeError, "params must be GRUParams, .* got dict"),
        (jaxgru.Stack((GRU, 3)), TypeError, r"Stack.layers\[1\] must be GRUParams, .* got int"),
        (jaxgru.Stack([GRU]), TypeError, "Stack.layers must be a tuple"),
        (jaxgru.Stack(()), TypeError, "Stack.layers must be a tuple .* got an empty tuple"),
        (jaxgru.Bidirectional(GRU, None), TypeError, "Bidirectional.backward must be GRUParams"),
        (
            jax.tree.map(lambda a: a.astype(int), GRU),
            TypeError,
            "'gru.w_ih' must be an array of dtype float16",
        ),
        (jax.tree.map(lambda a: None, GRU), ValueError, "names must be .* got no names.$"),
        (jax.tree.map(lambda a: 1.0, GRU), TypeError, "'gru.w_ih' must be an array, got float"),
        (
            jax.eval_shape(lambda: GRU),
            TypeError,
            "'gru.w_ih' must be an array, got ShapeDtypeStruct",
        ),
        (
            jaxgru.GRUParams(**vars(GRU) | {"reset_after": "no"}),
            ValueError,
            "the static fields of params, GRUParams, must be .* for the form gru or ",
        ),
    ],
)
def test_what_cannot_be_saved(path, params, kind, error):
    with pytest.raises(kind, match=f"^save: {error}"):
        jaxgru.save(path, params)
    assert not path.exists()


def known_types():
    """The params types that can be saved, by their names in the package."""
    return {name for name in jaxgru.__all__ if name.endswith("Params")} | {"Bidirectional", "Stack"}


@pytest.mark.parametrize("call", [jaxgru.to_dict, lambda params: jaxgru.scan(params, 0)])
def test_the_message_names_every_type(call):
    with pytest.raises(TypeError) as caught:
        call(None)
    assert known_types() <= set(re.findall(r"\w+", str(caught.value)))


@pytest.mark.parametrize(
    ("model", "where"), [({"rnn": GRU, "head": GRU.b}, r"\['rnn'\]"), ((GRU, GRU.b), r"\[0\]")]
)
def test_a_model_with_a_readout(path, model, where):
    """The message says how to save the params alone, and what saves all of the model."""
    fix = rf"{where}\) takes the GRUParams in it. .* Orbax saves a whole .*saving.md"
    with pytest.raises(TypeError, match=rf"save: params must be .*save\(path, tree{fix}"):
        jaxgru.save(path, model)
    with pytest.raises(TypeError, match=rf"to_dict: params must be .*to_dict\(tree{fix}"):
        jaxgru.to_dict(model)
    with pytest.raises(TypeError, match="params must be GRUParams"):
        jaxgru.save(path, {1: GRU, "head": GRU.b})  # JAX cannot sort these keys


def test_a_cell_that_is_not_registered(path, monkeypatch):
    jaxgru.save(path, draw("mgu"))
    monkeypatch.delitem(FORMS, "mgu")
    fix = "A cell of your own must be registered before, with forms."
    with pytest.raises(ValueError, match=rf"^load: .* got mgu.w_ih, mgu.w_hh, mgu.b. {fix}$"):
        jaxgru.load(path)


def test_tracers(path):
    with pytest.raises(TypeError, match=r"got a tracer. .* inside jit"):
        jax.jit(lambda params: jaxgru.save(path, params))(draw("gru"))


@pytest.mark.parametrize(
    ("tree", "kind", "error"),
    [
        (3, TypeError, "tree must be a mapping"),
        ({}, ValueError, "names must be .* begin with layers.* got no names.$"),
        ({"w_ih": GRU.w_ih}, ValueError, "got w_ih. Pass the part .* jaxgru.interop"),
        ({"mine.w": GRU.w_ih}, ValueError, "A cell of your own must be registered before"),
        ({"gru.w_ih": GRU.w_ih}, ValueError, "names must be gru.w_ih, gru.w_hh, gru.b"),
        (jaxgru.to_dict(GRU) | {"gru.v": GRU.b}, ValueError, "names must be gru.w_ih"),
        (jaxgru.to_dict(GRU) | {"lstm.b": GRU.b}, ValueError, "Pass the arrays of each network"),
        (jaxgru.to_dict(GRU) | {"head": GRU.b}, ValueError, "Take head out first"),
        (jaxgru.to_dict(GRU) | {"gru": {"b": GRU.b}}, ValueError, "got two arrays of this name"),
        ({"layers": {"1": jaxgru.to_dict(GRU)}}, ValueError, "begin with layers.0., layers.1."),
        ({"layers": [jaxgru.to_dict(GRU), {}, jaxgru.to_dict(GRU)]}, ValueError, "layers.0."),
        ({"forward": jaxgru.to_dict(GRU)}, ValueError, "with forward. and backward., or"),
        (jaxgru.to_dict(GRU) | {"gru.b": 3}, TypeError, "'gru.b' must be an array, got int"),
        (
            jaxgru.to_dict(GRU) | {"gru.b": np.ones((3, 4), int)},
            TypeError,
            "the dtype of 'gru.b' must be float16",
        ),
        ("params.npz", TypeError, "got str. jaxgru.load"),
        ({"params": jaxgru.to_dict(GRU)}, ValueError, "Pass the part that belongs to one network"),
    ],
)
def test_what_is_no_dict_of_params(tree, kind, error):
    with pytest.raises(kind, match=f"from_dict: .*{error}"):
        jaxgru.from_dict(tree)


def test_float64_is_not_rounded(path):
    params = draw("gru")
    jaxgru.save(path, params)
    weights = jax.tree.map(np.asarray, jaxgru.to_dict(params))
    with jax.enable_x64(False):
        for call in (lambda: jaxgru.load(path), lambda: jaxgru.from_dict(weights)):
            with pytest.raises(ValueError, match="a dtype that JAX has enabled"):
                call()


# Orbax.


@pytest.fixture
def checkpointer():
    with ocp.StandardCheckpointer() as opened:
        yield opened


@pytest.mark.parametrize("dtype", ["bfloat16", slow("float64")])
def test_orbax(tmp_path, checkpointer, dtype):
    params = draw_everything(dtype)
    state = {"params": params, "optimizer": optax.adam(1e-3).init(params)}
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    assert bits(checkpointer.restore(tmp_path / "state", state)) == bits(state)
    tree = checkpointer.restore(tmp_path / "state")
    assert bits(jaxgru.from_dict(tree["params"])) == bits(params)
    assert bits(jaxgru.from_dict(tree["optimizer"][0]["mu"])) == bits(state["optimizer"][0].mu)


@pytest.mark.parametrize("made", [lambda params: params, slow(jaxgru.to_dict)])
@pytest.mark.parametrize(("params", "other"), OTHERS)
def test_orbax_refuses_another_form(tmp_path, checkpointer, params, other, made):
    for saved, wanted in ((params, other), (other, params)):
        checkpointer.save(tmp_path / "params", made(saved), force=True)
        checkpointer.wait_until_finished()
        with pytest.raises(ValueError, match="do not match"):
            checkpointer.restore(tmp_path / "params", made(wanted))
