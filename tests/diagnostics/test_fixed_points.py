"""Fixed points of networks where they are known, and of a trained network."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgru
from cases import STREAMABLE, assert_close, draw, only, slow
from jaxgru.diagnostics import fixed_points, state_jacobians

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
REST = 0.8  # a stable state h* of the units below
GAIN = np.arctanh(REST) / REST  # so that tanh(GAIN h) = h
B_Z = -0.4


def bistable(hidden, reset_after=False, dtype="float64", shift=0.0, gain=GAIN):
    """Units without connections: h' = (1-z) h + z tanh(gain h + shift), z = sigmoid(B_Z).

    The reset gate is 1/2 at all times. Without shift, the fixed points are 0 and +- REST.
    """
    w_hh = np.zeros((hidden, 3, hidden))
    w_hh[:, 2] = 2 * gain * np.eye(hidden)
    b = np.array([0.0, B_Z, shift])[:, None] * np.ones((3, hidden))
    return jaxgru.GRUParams(
        w_ih=jnp.ones((1, 3, hidden), dtype),
        w_hh=jnp.asarray(w_hh, dtype),
        b=jnp.asarray(b, dtype),
        b_hn=jnp.zeros(hidden, dtype) if reset_after else None,
        reset_after=reset_after,
    )


def search(params, **options):
    x = jnp.zeros(params.w_ih.shape[0], params.w_ih.dtype)
    return fixed_points(params, x, KEY, **options)


@pytest.mark.parametrize(
    ("hidden", "reset_after"), [(1, False), (2, True), slow(1, True), slow(2, False)]
)
def test_all_known_ones_and_no_other(hidden, reset_after):
    found = search(bistable(hidden, reset_after))
    expected = np.array(list(itertools.product([-REST, 0.0, REST], repeat=hidden)))
    points = found.fixed.points
    assert points.shape == expected.shape
    order = np.lexsort(np.round(points, 6).T[::-1])
    assert_close(points[order], expected, 1e-12)
    assert found.slow.points.shape == (0, hidden)
    assert found.fixed.found.sum() + found.lost == 256

    z = 1 / (1 + np.exp(-B_Z))
    slopes = 1 - z + z * GAIN * (1 - expected**2)
    slopes = -np.sort(-slopes, axis=1)
    assert_close(found.fixed.eigenvalues[order].real, slopes, 1e-12)
    assert not found.fixed.eigenvalues.imag.any()
    assert np.array_equal(found.fixed.stable[order], (expected != 0).all(1))
    assert_close(found.fixed.time_constants[order], -1 / np.log(slopes), 1e-10)
    assert (found.fixed.time_constants > 0).all(1).sum() == 2**hidden
    assert np.all(found.fixed.speed < 1e-28)


def test_float32_finds_them_too():
    found = search(bistable(2, dtype="float32"))
    assert found.fixed.points.shape == (9, 2)
    assert found.fixed.stable.sum() == 4
    assert found.fixed.points.dtype == np.float32


def test_float64_of_numpy_counts_as_float32():
    """NumPy makes float64 by default, which JAX would warn about if 64-bit types are off."""
    params = bistable(2, dtype="float32")
    with jax.enable_x64(False):
        x, states = np.zeros(1), np.full((1, 2), 0.9)
        found = fixed_points(params, x, KEY, states, starts=4).fixed
    assert found.points.dtype == np.float32
    assert_close(found.points, np.full((1, 2), REST, np.float32), 1e-5)


def test_the_ghost_of_a_fixed_point_is_a_slow_one():
    """Two fixed points meet at a shift and vanish. Just beyond it, a minimum of the speed remains.

    They meet where gain (1 - tanh^2) = 1, and tanh = -t. The speed is also least there beyond the
    shift.
    """
    gain = 1.5
    t = np.sqrt(1 - 1 / gain)
    meet = gain * t - np.arctanh(t)
    z = 1 / (1 + np.exp(-B_Z))
    shift = meet + 0.01
    found = search(bistable(1, gain=gain, shift=shift))
    assert found.fixed.points.shape == (1, 1)
    assert found.fixed.points[0, 0] > t
    assert found.slow.points.shape == (1, 1)
    lowest = -(np.arctanh(t) + shift) / gain
    # The place of a minimum is known up to the root of eps.
    assert_close(found.slow.points[0, 0], lowest, 1e-6)
    assert_close(found.slow.speed[0], (z * (-t - lowest)) ** 2 / 2, 1e-12)
    before = search(bistable(1, gain=gain, shift=meet - 0.01))
    assert before.fixed.points.shape == (3, 1)
    assert before.slow.points.shape == (0, 1)
    assert search(bistable(1, gain=gain, shift=shift), slow=1e-9).slow.points.shape == (0, 1)


@pytest.mark.parametrize("kind", only(["stack"], STREAMABLE))
def test_a_fixed_point_stays_where_it_is(kind):
    params, x = draw(kind), jnp.asarray([0.3, -0.2, 0.5])
    found = fixed_points(params, x, KEY, starts=64).fixed
    assert len(found.points) >= 1
    carry = jaxgru.initial_carry(params)
    sizes = np.cumsum([leaf.size for leaf in jax.tree.leaves(carry)])[:-1]
    for point, eigenvalues in zip(found.points, found.eigenvalues, strict=True):
        leaves = [jnp.asarray(part) for part in np.split(point, sizes)]
        at = jax.tree.unflatten(jax.tree.structure(carry), leaves)
        assert_close(jaxgru.step(params, at, x)[0], at, 1e-12)
        jacobian = state_jacobians(params, x[None], at)[0]
        expected = np.sort(np.abs(np.linalg.eigvals(jacobian)))
        assert_close(np.sort(np.abs(eigenvalues)), expected, 1e-9)


def test_states_are_where_searches_begin():
    params = bistable(2)
    states = jnp.asarray([[0.7, 0.7], [-0.7, 0.7]])
    found = search(params, states=states, starts=5, spread=0.0).fixed
    order = np.argsort(-found.points[:, 0])
    assert_close(found.points[order], np.array([[REST, REST], [-REST, REST]]), 1e-12)
    assert found.found[order].tolist() == [3, 2]
    wide = search(params, states=states, starts=256, spread=1.0).fixed
    assert len(wide.points) == 9


def test_points_closer_than_apart_are_one():
    found = search(bistable(1), apart=10.0).fixed
    assert found.points.shape == (1, 1)
    assert found.found[0] == 256


def test_a_search_that_is_cut_short_is_lost():
    # Q is small enough, but this is no minimum.
    found = search(bistable(2), iterations=1, slow=10.0)
    assert found.fixed.points.shape == (0, 2)
    assert found.fixed.eigenvalues.shape == (0, 2)
    assert found.lost > 200


def test_another_key_finds_the_same_points():
    found = fixed_points(bistable(1), jnp.zeros(1), jax.random.key(9)).fixed
    assert_close(np.sort(found.points[:, 0]), np.array([-REST, 0, REST]), 1e-12)


@dataclasses.dataclass(frozen=True)
class FlipFlop:
    """Train a network whose k outputs hold the sign of the last pulse (Sussillo & Barak 2013)."""

    bits: int
    hidden: int = 24
    steps: int = 40

    def sample(self, key):
        pulsed, signs = jax.random.split(key)
        shape = (self.steps, self.bits)
        pulses = jax.random.bernoulli(pulsed, 0.15, shape).at[0].set(True)
        xs = jnp.where(pulses, jax.random.rademacher(signs, shape, jnp.float64), 0.0)

        def hold(state, x):
            state = jnp.where(x == 0, state, x)
            return state, state

        return xs, jax.lax.scan(hold, xs[0], xs)[1]

    def train(self, updates):
        keys = jax.random.split(jax.random.key(1), updates)
        params = jaxgru.gru_init(jax.random.key(2), self.bits, self.hidden, dtype=jnp.float64)
        w_out = jax.random.normal(jax.random.key(3), (self.hidden, self.bits), jnp.float64) / 5
        optimizer = optax.adam(optax.exponential_decay(2e-2, updates, 0.05))

        def loss(network, keys):
            params, w_out = network
            xs, ys = jax.vmap(self.sample)(keys)
            hs = jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1]
            return jnp.mean((hs @ w_out - ys) ** 2)

        def update(carry, key):
            network, state = carry
            value, grads = jax.value_and_grad(loss)(network, jax.random.split(key, 32))
            steps, state = optimizer.update(grads, state)
            return (optax.apply_updates(network, steps), state), value

        start = (params, w_out)
        with jax.numpy_dtype_promotion("standard"):  # the Adam of optax needs it
            run = jax.jit(lambda carry: jax.lax.scan(update, carry, keys))
            (network, _), losses = run((start, optimizer.init(start)))
        return network, losses


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3])
def test_a_flip_flop_has_a_stable_point_for_every_memory(bits):
    task = FlipFlop(bits)
    (params, w_out), losses = task.train(800)
    assert float(losses[-1]) < 0.01
    xs, _ = jax.vmap(task.sample)(jax.random.split(jax.random.key(4), 20))
    hs = jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1]
    found = fixed_points(params, jnp.zeros(bits), KEY, hs.reshape(-1, task.hidden), starts=512)
    stable = found.fixed.points[found.fixed.stable]
    answers = np.round(stable @ np.asarray(w_out))
    assert len(stable) == 2**bits
    expected = set(itertools.product([-1.0, 1.0], repeat=bits))
    assert {tuple(answer) for answer in answers} == expected
