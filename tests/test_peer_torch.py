"""Differential tests with `torch.nn`: values and gradients, layers, directions, lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
from cases import assert_close
from peers import GRAD_TOL, TOL

torch = peers.peer("torch")
pytestmark = pytest.mark.usefixtures("x64")

BATCH, STEPS, INPUT, HIDDEN = 3, 5, 3, 4
LENGTHS = np.array([2, 5, 1])


def from_torch_gru(w_ih, w_hh, b_ih, b_hh):
    """The rows are r, z, n. z weighs the old state. Only the bias b_hn acts separately."""
    both = peers.f64(b_ih) + peers.f64(b_hh)
    both[2 * HIDDEN :] = peers.f64(b_ih)[2 * HIDDEN :]
    return peers.gru(
        peers.split(peers.f64(w_ih).T, 3, (0, 1, 2), flip=(1,)),
        peers.split(peers.f64(w_hh).T, 3, (0, 1, 2), flip=(1,)),
        peers.split(both, 3, (0, 1, 2), flip=(1,)),
        peers.f64(b_hh)[2 * HIDDEN :],
        reset_after=True,
    )


def from_torch_lstm(w_ih, w_hh, b_ih, b_hh):
    return peers.lstm(
        peers.split(peers.f64(w_ih).T, 4, (0, 1, 2, 3)),
        peers.split(peers.f64(w_hh).T, 4, (0, 1, 2, 3)),
        peers.split(peers.f64(b_ih) + peers.f64(b_hh), 4, (0, 1, 2, 3)),
    )


def from_torch_rnn(w_ih, w_hh, b_ih, b_hh):
    return peers.elman(peers.f64(w_ih).T, peers.f64(w_hh).T, peers.f64(b_ih) + peers.f64(b_hh))


CELLS = {
    "GRU": from_torch_gru,
    "LSTM": from_torch_lstm,
    "RNN": from_torch_rnn,
}


def make(name, layers=1, bidirectional=False):
    module = getattr(torch.nn, name)(
        INPUT,
        HIDDEN,
        num_layers=layers,
        bidirectional=bidirectional,
        batch_first=True,
        dtype=torch.float64,
    )
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.from_numpy(peers.random(rng, tuple(weight.shape))))
    return module


def layer(module, name, k=0, suffix="", read=lambda w: w.detach().numpy()):
    names = [f"{part}_l{k}{suffix}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return CELLS[name](*(read(getattr(module, n)) for n in names))


def data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((BATCH, STEPS, INPUT)), rng.standard_normal((BATCH, HIDDEN))


def as_numpy(tensor):
    return tensor.detach().numpy()


def starts(name, h):
    """The initial state, for torch and for jaxgru."""
    state = torch.from_numpy(h)[None]
    if name == "LSTM":
        return (state, 0.5 * state), jaxgru.LSTMCarry(jnp.asarray(h), jnp.asarray(0.5 * h))
    return state, jnp.asarray(h)


@pytest.mark.parametrize("name", CELLS)
def test_values(name):
    module = make(name)
    xs, h = data()
    theirs, ours = starts(name, h)
    out, last = module(torch.from_numpy(xs), theirs)
    carry, ys = jax.vmap(jaxgru.scan, in_axes=(None, 0, 0))(layer(module, name), xs, ours)
    assert_close(ys, as_numpy(out), TOL)
    last = last if name == "LSTM" else (last,)
    assert_close(jax.tree.leaves(carry), [as_numpy(part)[0] for part in last], TOL)


@pytest.mark.parametrize("name", CELLS)
def test_gradients(name):
    """Return the gradients of torch for weights, biases and inputs, converted like the weights."""
    module = make(name)
    xs, _ = data()
    weights = np.random.default_rng(2).standard_normal((BATCH, STEPS, HIDDEN))
    inputs = torch.from_numpy(xs).requires_grad_()
    (module(inputs)[0] * torch.from_numpy(weights)).sum().backward()

    def loss(params, xs):
        _, ys = jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)
        return jnp.sum(ys * weights)

    grads, dxs = jax.jit(jax.grad(loss, argnums=(0, 1)))(layer(module, name), jnp.asarray(xs))
    assert_close(dxs, inputs.grad.numpy(), GRAD_TOL)

    def of(part):
        return peers.f64(getattr(module, f"{part}_l0").grad)

    # Both terms of a sum have its gradient, so one of them is set to zero before the conversion.
    bias = of("bias_ih")
    expected = CELLS[name](of("weight_ih"), of("weight_hh"), bias, np.zeros_like(bias))
    for field in ("w_ih", "w_hh", "b"):
        assert_close(getattr(grads, field), getattr(expected, field), GRAD_TOL)
    if name == "GRU":
        assert_close(grads.b_hn, of("bias_hh")[2 * HIDDEN :], GRAD_TOL)


@pytest.mark.parametrize("name", CELLS)
def test_two_bidirectional_layers_with_lengths(name):
    """In packed sequences, each direction and layer sees only the real steps."""
    module = make(name, layers=2, bidirectional=True)
    params = jaxgru.Stack(
        tuple(
            jaxgru.Bidirectional(layer(module, name, k), layer(module, name, k, "_reverse"))
            for k in range(2)
        )
    )
    xs, _ = data()
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(xs), torch.from_numpy(LENGTHS), batch_first=True, enforce_sorted=False
    )
    out, last = module(packed)
    out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=STEPS)

    def run(xs, length):
        return jaxgru.scan(params, xs, length=length)

    carry, ys = jax.vmap(run)(xs, LENGTHS)
    assert_close(ys, as_numpy(out), TOL)
    # torch has [layers * directions, batch, H], with forward before backward.
    last = last if name == "LSTM" else (last,)
    expected = [as_numpy(part)[k] for k in range(4) for part in last]
    assert_close(jax.tree.leaves(carry), expected, TOL)


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    module = getattr(torch.nn, f"{name}Cell")(INPUT, HIDDEN, dtype=torch.float64)
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.from_numpy(peers.random(rng, tuple(weight.shape))))
    parts = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    params = CELLS[name](*(as_numpy(part) for part in parts))
    xs, h = data()
    theirs, ours = starts(name, h)
    theirs = tuple(part[0] for part in theirs) if name == "LSTM" else theirs[0]
    out = module(torch.from_numpy(xs[:, 0]), theirs)
    out = [as_numpy(part) for part in (out if name == "LSTM" else (out,))]
    new, _ = jax.vmap(jaxgru.step, in_axes=(None, 0, 0))(params, ours, xs[:, 0])
    assert_close(jax.tree.leaves(new), out, TOL)
