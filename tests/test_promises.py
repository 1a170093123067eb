"""The promises of `scan`, and the behavior of other libraries: the table of the promises.

Every claim about a peer is tested as its behavior today. If one of these tests fails after an
update, the peer has changed, and the table must change too.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close, assert_same

pytestmark = [
    pytest.mark.usefixtures("x64", "lenient"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

BATCH, STEPS, INPUT, HIDDEN = 2, 5, 3, 4
LENGTHS = np.array([0, 3])
REAL = np.arange(STEPS) < LENGTHS[:, None]
TOL = 1e-12


def data(padding=0.0, dtype=np.float64):
    """Draw right-padded sequences of length 0 and 3, and an initial state that is not zero."""
    rng = np.random.default_rng(0)
    xs = np.where(REAL[..., None], rng.standard_normal((BATCH, STEPS, INPUT)), padding)
    return jnp.asarray(xs, dtype), jnp.asarray(rng.standard_normal((BATCH, HIDDEN)), dtype)


def finite(tree):
    return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


# --- the same five questions, asked of jaxgru ------------------------------------------------


@functools.cache
def ours():
    params = jaxgru.gru_init(
        jax.random.key(0), INPUT, HIDDEN, init="torch", reset_after=True, dtype=jnp.float64
    )

    def run(params, xs, h):
        def one(xs, h, length):
            return jaxgru.scan(params, xs, h, length=length)

        return jax.vmap(one)(xs, h, jnp.asarray(LENGTHS))

    return params, jax.jit(run)


def test_ours_length_zero_returns_the_start():
    params, run = ours()
    xs, h = data()
    assert_same(run(params, xs, h)[0][0], h[0])


def test_ours_padding_is_zero_and_reaches_nothing():
    params, run = ours()

    def loss(params, xs, h):
        carry, ys = run(params, xs, h)
        return jnp.sum(carry) + jnp.sum(ys**2)

    slope = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    (clean, h), (dirty, _) = data(), data(np.nan)
    assert_same(slope(params, dirty, h), slope(params, clean, h))
    _, ys = run(params, dirty, h)
    assert_same(ys[~REAL], jnp.zeros_like(ys[~REAL]))
    assert finite(slope(params, dirty, h))


# --- flax ------------------------------------------------------------------------------------


@functools.cache
def linen():
    nn = peers.peer("flax.linen")
    rnn = nn.RNN(nn.GRUCell(HIDDEN, param_dtype=jnp.float64), return_carry=True)
    xs, _ = data()
    variables = rnn.init(jax.random.key(0), xs)

    def run(variables, xs, h, lengths=LENGTHS, **options):
        return rnn.apply(variables, xs, initial_carry=h, seq_lengths=lengths, **options)

    return variables, run


@functools.cache
def nnx():
    module = peers.peer("flax.nnx")
    cell = module.GRUCell(
        INPUT, HIDDEN, rngs=module.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64
    )
    rnn = module.RNN(cell, return_carry=True)
    graph, weights, others = module.split(rnn, module.Param, ...)
    weights, others = module.as_pure(weights), module.as_pure(others)

    def run(weights, xs, h, lengths=LENGTHS, **options):
        rnn = module.merge(graph, weights, others)
        return rnn(xs, initial_carry=h, seq_lengths=lengths, **options)

    return weights, run


FLAX = [linen, nnx]


@pytest.mark.parametrize("peer", FLAX)
def test_flax_length_zero_returns_the_carry_after_the_padding(peer):
    """It looks up carries[length - 1], which is carries[-1] for length 0."""
    weights, run = peer()
    xs, h = data()
    carry, _ = run(weights, xs, h)
    assert jnp.max(jnp.abs(carry[0] - h[0])) > 0.1
    through, _ = run(weights, xs, h, lengths=np.full(BATCH, STEPS))
    assert_close(carry[0], through[0], TOL)


@pytest.mark.parametrize("peer", FLAX)
def test_flax_outputs_in_the_padding_are_not_zero(peer):
    weights, run = peer()
    xs, h = data()
    _, ys = run(weights, xs, h)
    assert jnp.all(ys[1, 3:] != 0)
    _, ys = run(weights, data(np.nan)[0], h)
    assert jnp.all(jnp.isnan(ys[1, 3:]))


@pytest.mark.parametrize("peer", FLAX)
def test_flax_nan_in_the_padding_reaches_gradients(peer):
    """This happens even if the loss uses only the real steps, and is finite."""
    weights, run = peer()

    def loss(weights, xs, h):
        carry, ys = run(weights, xs, h)
        return jnp.sum(carry[1]) + jnp.sum(ys[1, :3])

    slope = jax.value_and_grad(loss)
    _, h = data()
    value, grads = slope(weights, data(np.nan)[0], h)
    assert finite(value)
    assert not any(finite(leaf) for leaf in jax.tree.leaves(grads))
    assert finite(slope(weights, data(0.0)[0], h))


@pytest.mark.parametrize("peer", FLAX)
def test_flax_reverse_knows_lengths(peer):
    """With keep_order=True it flips the real part of each sequence."""
    weights, run = peer()
    xs, h = data()
    carry, ys = run(weights, xs, h, reverse=True, keep_order=True)
    sliced = run(weights, xs[:, :3], h, lengths=np.full(BATCH, 3), reverse=True, keep_order=True)
    assert_close((carry[1], ys[1, :3]), (sliced[0][1], sliced[1][1]), TOL)


@pytest.mark.parametrize("peer", FLAX)
def test_flax_has_every_derivative(peer):
    weights, run = peer()
    xs, h = data()
    hessian = jax.hessian(lambda h: jnp.sum(run(weights, xs, h)[1]))(h)
    assert finite(hessian)
    assert jnp.any(hessian != 0)


@pytest.mark.parametrize("name", ["flax.linen", "flax.nnx"])
def test_flax_has_no_resets_and_no_reset_before(name):
    module = peers.peer(name)
    assert "reset" not in " ".join(inspect.signature(module.RNN.__call__).parameters)
    options = {*inspect.signature(module.GRUCell).parameters}
    assert not any("reset" in option for option in options)


def test_nnx_has_no_candidate_bias_inside_the_reset():
    """h' has only the bias of the input, so one of the four biases of the equations is missing."""
    weights, _ = nnx()
    module = peers.peer("flax.nnx")
    paths = {path for path, _ in module.to_flat_state(weights)}
    assert ("cell", "dense_i", "bias") in paths
    assert ("cell", "dense_h", "bias") not in paths
    variables, _ = linen()
    assert "bias" in variables["params"]["cell"]["hn"]


# --- haiku -----------------------------------------------------------------------------------


@functools.cache
def haiku():
    hk = peers.peer("haiku")

    def run(xs, h, reset=None, reverse=False):
        core = hk.GRU(HIDDEN, name="gru")
        if reset is None:
            return hk.dynamic_unroll(core, xs, h, reverse=reverse)
        return hk.dynamic_unroll(hk.ResetCore(core), (xs, reset), h, reverse=reverse)

    net = hk.without_apply_rng(hk.transform(run))
    weights = net.init(jax.random.key(0), data()[0][0], data()[1][0])
    weights = jax.tree.map(lambda w: w + 0.1, weights)

    def call(xs, h, reset=None, reverse=False):
        """(carry, outputs), our order."""
        return net.apply(weights, xs, h, reset, reverse)[::-1]

    return call


def test_haiku_has_no_lengths():
    hk = peers.peer("haiku")
    for unroll in (hk.dynamic_unroll, hk.static_unroll):
        assert not any("len" in name for name in inspect.signature(unroll).parameters)


def test_haiku_nan_in_the_padding_reaches_the_carry():
    run = haiku()
    xs, h = data(np.nan)
    assert not finite(run(xs[1], h[1])[0])


def test_haiku_resets_forward_but_not_in_reverse():
    """ResetCore resets before the step that it sees.

    This is right forward. Backward a segment begins at its end, so the reset is one step late. And
    it always resets to the initial state, never to a given one.
    """
    hk = peers.peer("haiku")
    run = haiku()
    xs, h = jnp.asarray(np.random.default_rng(3).standard_normal((STEPS, INPUT))), data()[1][0]
    reset = jnp.arange(STEPS) == 2
    zeros = jnp.zeros(HIDDEN)

    _, ys = run(xs, h, reset)
    first, second = run(xs[:2], h)[1], run(xs[2:], zeros)[1]
    assert_close(ys, jnp.concatenate([first, second]), TOL)

    _, ys = run(xs, h, reset, reverse=True)
    second, first = run(xs[2:], h, reverse=True)[1], run(xs[:2], zeros, reverse=True)[1]
    apart = jnp.max(jnp.abs(ys - jnp.concatenate([first, second])), axis=1)
    assert jnp.max(apart) > 0.01
    assert "initial_state" not in inspect.signature(hk.ResetCore.__init__).parameters


def test_haiku_is_reset_before_only():
    hk = peers.peer("haiku")
    assert not any("reset" in name for name in inspect.signature(hk.GRU).parameters)
    assert "r * state" in inspect.getsource(hk.GRU.__call__)


def test_haiku_has_every_derivative():
    run = haiku()
    xs, h = data()
    assert finite(jax.hessian(lambda h: jnp.sum(run(xs[1], h)[1]))(h[1]))


# --- equinox ---------------------------------------------------------------------------------


def test_equinox_has_cells_only():
    """Equinox does not unroll, so it has no lengths, resets or directions. It has one GRU form."""
    eqx = peers.peer("equinox")
    recurrent = {n for n in dir(eqx.nn) if any(k in n for k in ("RNN", "GRU", "LSTM", "Recurrent"))}
    assert recurrent == {"GRUCell", "LSTMCell"}
    assert not any("reset" in name for name in inspect.signature(eqx.nn.GRUCell).parameters)


# --- keras -----------------------------------------------------------------------------------


@functools.cache
def keras(**options):
    module = peers.peer("keras")
    layer = module.layers.GRU(
        HIDDEN, return_sequences=True, return_state=True, dtype="float32", **options
    )
    layer.build((BATCH, STEPS, INPUT))
    return layer


def keras_run(layer, xs, h, mask=REAL):
    """(carry, outputs), our order."""
    ys, carry = layer(xs, mask=mask, initial_state=h)
    return carry, ys


def test_keras_length_zero_returns_the_start():
    xs, h = data(dtype=np.float32)
    carry, _ = keras_run(keras(), xs, h)
    assert_close(carry[0], h[0], 0)


def test_keras_outputs_in_the_padding_repeat_the_last_one():
    xs, h = data(dtype=np.float32)
    _, ys = keras_run(keras(), xs, h)
    assert_close(ys[1, 3:], jnp.stack([ys[1, 2]] * 2), 0)
    assert jnp.all(ys[1, 3:] != 0)


def test_keras_nan_in_the_padding_reaches_gradients_but_not_values():
    layer = keras()
    others = [w.value for w in layer.non_trainable_variables]

    def loss(weights, xs, h):
        (ys, carry), _ = layer.stateless_call(weights, others, xs, mask=REAL, initial_state=h)
        return jnp.sum(carry) + jnp.sum(ys[1, :3])

    weights = [w.value for w in layer.trainable_variables]
    xs, h = data(np.nan, np.float32)
    value, grads = jax.value_and_grad(loss)(weights, xs, h)
    assert finite(value)
    assert not any(finite(leaf) for leaf in grads)
    assert finite(jax.grad(loss)(weights, *data(0.0, np.float32)))


def test_keras_go_backwards_returns_outputs_flipped():
    """Masked steps come first in this case, so a right-padded sequence ends up at the other end."""
    layer = keras(go_backwards=True)
    xs, h = data(dtype=np.float32)
    carry, ys = keras_run(layer, xs, h)
    sliced_carry, sliced = keras_run(layer, xs[:, :3], h, mask=REAL[:, :3])
    # The arithmetic is the same, but programs of different lengths round differently in float32.
    assert_close(carry[1], sliced_carry[1], 4e-6)
    assert_close(ys[1, 2:], sliced[1], 4e-6)


def test_keras_has_both_forms_and_no_resets():
    module = peers.peer("keras")
    assert "reset_after" in inspect.signature(module.layers.GRU).parameters
    parameters = inspect.signature(module.layers.GRU.call).parameters
    assert {"mask", "initial_state"} <= set(parameters)
    assert not any("reset" in name for name in parameters)


def test_keras_has_every_derivative_on_jax():
    layer = keras()
    weights = [w.value for w in layer.trainable_variables]
    others = [w.value for w in layer.non_trainable_variables]
    xs, h = data(dtype=np.float32)

    def loss(h):
        (ys, _), _ = layer.stateless_call(weights, others, xs, initial_state=h)
        return jnp.sum(ys)

    hessian = jax.hessian(loss)(h)
    assert finite(hessian)
    assert jnp.any(hessian != 0)


# --- torch -----------------------------------------------------------------------------------


@functools.cache
def torch_gru():
    torch = peers.peer("torch")
    torch.manual_seed(0)
    return torch, torch.nn.GRU(INPUT, HIDDEN, batch_first=True, dtype=torch.float64)


def packed(torch, xs, lengths):
    return torch.nn.utils.rnn.pack_padded_sequence(
        xs, torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )


def test_torch_refuses_length_zero():
    torch, _ = torch_gru()
    with pytest.raises(RuntimeError, match="greater than 0"):
        packed(torch, torch.zeros(BATCH, STEPS, INPUT), [0, 3])


def test_torch_packed_padding_is_zero_and_reaches_nothing():
    torch, module = torch_gru()
    xs = torch.tensor(np.array(data(np.nan)[0][1:])).requires_grad_()
    out, last = module(packed(torch, xs, [3]))
    ys, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=STEPS)
    assert bool((ys[0, 3:] == 0).all())
    grads = torch.autograd.grad(ys.sum() + last.sum(), [xs, *module.parameters()])
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    assert bool((grads[0][0, 3:] == 0).all())


def test_torch_has_no_resets_and_no_reset_before():
    torch, module = torch_gru()
    assert not any("reset" in name for name in inspect.signature(module.forward).parameters)
    # No layout of a layer chooses the form. All have four arrays, with a separate b_hn.
    assert [name for name, _ in module.named_parameters()] == [
        "weight_ih_l0",
        "weight_hh_l0",
        "bias_ih_l0",
        "bias_hh_l0",
    ]
    with pytest.raises(TypeError, match="reset_after"):
        torch.nn.GRU(INPUT, HIDDEN, reset_after=False)


def test_torch_has_every_derivative_on_cpu_but_no_vmap():
    torch, module = torch_gru()
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    xs = torch.tensor(np.array(data()[0]))

    def loss(xs):
        return torch.func.functional_call(module, weights, (xs,))[0].sum()

    _, tangent = torch.func.jvp(loss, (xs,), (torch.ones_like(xs),))
    assert bool(torch.isfinite(tangent))
    assert bool((torch.func.hessian(loss)(xs) != 0).any())
    with pytest.raises(RuntimeError, match="Batching rule not implemented"):
        torch.func.vmap(lambda x: loss(x[None]))(xs)
