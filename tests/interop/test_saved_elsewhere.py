"""Params in the files of Flax and of safetensors, and the page docs/recipes/saving.md."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgru
import peers
import recipes
from cases import KINDS, draw, only

nnx = peers.peer("flax.nnx")
serialization = peers.peer("flax.serialization")
safetensors = peers.peer("safetensors.flax")
from flax.training.train_state import TrainState  # noqa: E402

from jaxgru.interop.flax import RNN  # noqa: E402

DTYPES = ("float16", "bfloat16", "float32")


def bits(tree):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), [(a.dtype, a.shape, a.tobytes()) for a in leaves]


def zeros(tree):
    return jax.tree.map(np.zeros_like, tree)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", only(("gru_after", "mixed"), KINDS))
def test_flax(kind, dtype):
    params = draw(kind, dtype=dtype)
    data = serialization.to_bytes(params)
    assert bits(serialization.from_bytes(zeros(params), data)) == bits(params)
    assert bits(jaxgru.from_dict(serialization.msgpack_restore(data))) == bits(params)
    state = serialization.to_state_dict(params)
    assert state.keys() == jaxgru.to_dict(params).keys()
    backwards = dict(reversed(state.items()))
    assert bits(serialization.from_state_dict(zeros(params), backwards)) == bits(params)


def test_train_state():
    """Moments exist for all params, or only for matrices. Then other leaves are no arrays."""
    params = {"rnn": draw("mixed", dtype="float32"), "head": jnp.ones((4, 2), "float32")}
    matrices = jax.tree.map(lambda a: a.ndim > 1, params)
    optimizer = optax.chain(optax.adam(1e-3), optax.masked(optax.trace(0.9), matrices))
    with jax.numpy_dtype_promotion("standard"):  # the Adam of optax needs it
        state = TrainState.create(apply_fn=None, params=params, tx=optimizer)
        state = state.apply_gradients(grads=params)
    again = serialization.from_bytes(zeros(state), serialization.to_bytes(state))
    assert bits(again) == bits(state)


@pytest.mark.parametrize("bias", [True, False])
def test_flax_refuses_another_form(bias):
    before, after = (draw(kind, dtype="float32", bias=bias) for kind in ("gru", "gru_after"))
    for params, other in ((before, after), (after, before)):
        for wrap in (lambda params: params, lambda params: {"rnn": jaxgru.Stack((params,))}):
            data = serialization.to_bytes(wrap(params))
            with pytest.raises(ValueError, match="It belongs to other params"):
                serialization.from_bytes(wrap(other), data)
    with pytest.raises(ValueError, match="got float32"):
        serialization.from_state_dict(before, before.w_ih)


def test_nnx_modules_of_two_forms_have_no_name_in_common():
    before, after = (RNN(draw(kind, dtype="float32", bias=False)) for kind in ("gru", "gru_after"))
    names = [set(nnx.to_pure_dict(nnx.state(rnn))["weights"]) for rnn in (before, after)]
    assert not names[0] & names[1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors(tmp_path, dtype):
    """safetensors reads the files of `save`, and `from_dict` reads what safetensors writes."""
    params = draw("mixed", dtype=dtype)
    jaxgru.save(tmp_path / "ours", params)
    weights = safetensors.load_file(tmp_path / "ours")
    assert bits(weights) == bits(jaxgru.to_dict(params))
    safetensors.save_file(weights, tmp_path / "theirs")
    assert bits(jaxgru.from_dict(safetensors.load_file(tmp_path / "theirs"))) == bits(params)
    with pytest.raises(ValueError, match=r"pass the arrays to jaxgru\.from_dict"):
        jaxgru.load(tmp_path / "theirs")


def test_the_page(tmp_path):
    params = draw("stack", dtype="float32")
    with jax.numpy_dtype_promotion("standard"):  # the Adam of optax needs it
        for block in recipes.blocks("recipes/saving.md"):
            names = {"folder": tmp_path, "params": params, "jaxgru": jaxgru}
            exec(compile(block, "saving.md", "exec"), names)
            assert bits(names["params"]) == bits(params)
            moments = names.get("tree", {}).get("optimizer")
            if moments:
                mu = jaxgru.from_dict(moments[0]["mu"])
                assert jax.tree.structure(mu) == jax.tree.structure(params)
