"""Other tools for Flax see the arrays of the modules in nested dicts, by the names of to_dict."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import jaxgru
import peers
from cases import HIDDEN, INPUT, KINDS, STEPS, assert_same, draw

nnx = peers.peer("flax.nnx")
linen = peers.peer("flax.linen")
safetensors = peers.peer("safetensors.flax")
from flax import serialization, traverse_util  # noqa: E402

from jaxgru.interop.flax import RNN, LinenRNN  # noqa: E402

XS = jnp.ones((2, STEPS, INPUT), "float32")


def of_linen(params):
    """Return (a network as a function of weights, weights, another set of weights)."""
    module = LinenRNN(lambda key, size: params)
    weights = module.init(jax.random.key(0), XS)["params"]
    return lambda weights: module.apply({"params": weights}, XS), weights


def of_nnx(params):
    graph, state = nnx.split(RNN(params))

    def run(weights):
        full = nnx.from_flat_state(nnx.to_flat_state(state))
        nnx.replace_by_pure_dict(full, {"weights": weights})
        return nnx.merge(graph, full)(XS)

    return run, nnx.to_pure_dict(state)["weights"]


MAKE = pytest.mark.parametrize("make", [of_nnx, of_linen])


def check(make, params, weights):
    """Restored weights are params for jaxgru and for the module."""
    assert_same(jaxgru.from_dict(weights), params)
    run, own = make(jax.tree.map(jnp.zeros_like, params))
    assert jax.tree.structure(weights) == jax.tree.structure(own)
    assert_same(run(weights), jax.vmap(lambda xs: jaxgru.scan(params, xs)[1])(XS))


@MAKE
@pytest.mark.parametrize("kind", KINDS)
def test_nested_dicts_of_arrays(make, kind):
    params = draw(kind, dtype="float32")
    _, weights = make(params)
    check(make, params, weights)
    flat = traverse_util.flatten_dict(weights, sep=".")
    assert flat.keys() == jaxgru.to_dict(params).keys()
    assert all(isinstance(leaf, jax.Array) for leaf in flat.values())
    assert_same(traverse_util.unflatten_dict(jaxgru.to_dict(params), sep="."), weights)


@MAKE
def test_serialization(make):
    params = draw("mixed", dtype="float32")
    _, weights = make(params)
    data = serialization.to_bytes(weights)
    check(make, params, serialization.from_bytes(jax.tree.map(jnp.zeros_like, weights), data))
    check(make, params, jax.tree.map(jnp.asarray, serialization.msgpack_restore(data)))


@MAKE
def test_safetensors(make, tmp_path):
    params = draw("mixed", dtype="float32")
    _, weights = make(params)
    safetensors.save_file(traverse_util.flatten_dict(weights, sep="."), tmp_path / "file")
    flat = safetensors.load_file(tmp_path / "file")
    check(make, params, traverse_util.unflatten_dict(flat, sep="."))
    assert_same(jaxgru.from_dict(flat), params)


@MAKE
def test_masks_by_path(make):
    """Weight decay applies to the recurrent matrices only."""
    _, weights = make(draw("mixed", dtype="float32"))
    mask = traverse_util.path_aware_map(lambda path, leaf: path[-1] == "w_hh", weights)
    optimizer = optax.chain(optax.masked(optax.add_decayed_weights(0.5), mask), optax.scale(-1))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = optimizer.update(zeros, optimizer.init(weights), weights)
    new = traverse_util.flatten_dict(optax.apply_updates(weights, updates))
    for path, leaf in traverse_util.flatten_dict(weights).items():
        assert_same(new[path], leaf / 2 if path[-1] == "w_hh" else leaf)


def test_nnx_filters_by_path():
    """`nnx.Optimizer`, `nnx.split` and `nnx.grad` select weights in this way."""
    rnn = RNN(draw("stack", dtype="float32"))
    _, recurrent, rest = nnx.split(rnn, nnx.PathContains("w_hh"), ...)
    names = {path[1:] for path in nnx.to_flat_state(recurrent).paths}
    assert names == {("layers", "0", "gru", "w_hh"), ("layers", "1", "gru_after", "w_hh")}
    assert len(nnx.to_flat_state(rest)) == len(rnn.names) - 2


AXES = {"w_hh": (None, None, "model"), "b": (None, "model")}


def mesh():
    return jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))


def fields(specs):
    return {path[-1]: spec for path, spec in traverse_util.flatten_dict(specs).items()}


def test_partitioning_of_linen():
    """The axes are where `with_partitioning` puts them, and the module reads boxed variables."""
    init = functools.partial(jaxgru.gru_init, hidden_size=HIDDEN, reset_after=True)
    module = LinenRNN(init, partitioning=AXES)
    variables = module.init(jax.random.key(0), XS)
    specs = fields(linen.get_partition_spec(variables))
    wanted = {name: PartitionSpec(*axes) for name, axes in AXES.items()}
    assert specs == {"w_ih": PartitionSpec(), "b_hn": PartitionSpec()} | wanted
    plain = linen.unbox(variables)
    assert_same(plain, LinenRNN(init).init(jax.random.key(0), XS))
    shardings = linen.get_sharding(variables, mesh())
    with jax.set_mesh(mesh()):
        placed = jax.jit(module.init, out_shardings=shardings)(jax.random.key(0), XS)
        assert linen.unbox(placed)["params"]["gru_after"]["b"].sharding.spec == wanted["b"]
        ys = jax.jit(module.apply)(placed, XS)
    assert_same(ys, module.apply(plain, XS))


def test_partitioning_of_nnx():
    params = draw("gru_after", dtype="float32")
    with jax.set_mesh(mesh()):  # here Flax shards the weights immediately, if they lie on the mesh
        params = jax.tree.map(jnp.positive, params)
        rnn = RNN(params, partitioning=AXES)
        ys = nnx.jit(lambda rnn: rnn(XS))(rnn)
    specs = nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(rnn)))
    wanted = {name: PartitionSpec(*axes) for name, axes in AXES.items()}
    assert fields(specs) == {"w_ih": PartitionSpec(), "b_hn": PartitionSpec()} | wanted
    assert rnn.weights["gru_after"]["b"][...].sharding.spec == wanted["b"]
    assert_same(rnn.params, params)
    assert_same(ys, RNN(params)(XS))


def test_wrong_partitioning():
    expected = r"RNN: partitioning must be a mapping with the keys b, w_hh, w_ih, got w_hi\."
    with pytest.raises(ValueError, match=f"^{expected}"):
        RNN(draw("gru", dtype="float32"), partitioning={"w_hi": (None,)})
    params = draw("gru", dtype="float32")
    module = LinenRNN(lambda key, size: params, partitioning={"w_hi": (None,)})
    with pytest.raises(ValueError, match=f"^Linen{expected}"):
        module.init(jax.random.key(0), np.asarray(XS))
