"""Dropout between the layers of a Stack: what it drops, how often, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import oracle
from cases import (
    HIDDEN,
    INPUT,
    STEPS,
    VALUE_TOL,
    assert_close,
    assert_same,
    draw,
    draw_xs,
    slow,
    weigh,
)

pytestmark = pytest.mark.usefixtures("x64")

WIDTH, LONG = 20, 200
SMALL = 1e-3
BELOW = ["gru", slow("own_gru")]
STACKS = ["stack", slow("own_stack")]


def lens(width=WIDTH):
    """A layer without memory that reveals its input: y = tanh(SMALL x). `look` inverts it."""
    return jaxgru.ElmanParams(w_ih=SMALL * jnp.eye(width), w_hh=jnp.zeros((width, width)), b=None)


def look(ys):
    return jnp.arctanh(ys) / SMALL


def mask_of(layers, rate, key, steps=LONG, **options):
    """Find the factors that dropout applied to the outputs of the first layer."""
    below = layers[0]
    xs = draw_xs(steps)
    _, hs = jaxgru.scan(below, xs, **options)
    _, ys = jaxgru.scan(jaxgru.Stack(layers), xs, dropout=rate, key=key, **options)
    return hs, ys, look(ys) / hs


@pytest.mark.parametrize("rate", [slow(0.1), 0.5])
@pytest.mark.parametrize("kind", BELOW)
def test_rate_scale_and_freshness(kind, rate):
    layers = (draw(kind, hidden=WIDTH), lens())
    _, _, mask = mask_of(layers, rate, jax.random.key(0))
    kept = mask > 0.5
    # Inverting tanh divides rounding by SMALL: 1e-16 / 1e-3 / |h|, and some h are as small as 1e-4.
    np.testing.assert_allclose(mask[kept], 1 / (1 - rate), rtol=0, atol=1e-8)
    np.testing.assert_allclose(mask[~kept], 0.0, rtol=0, atol=0)
    # For 4000 coins the bound is five standard deviations.
    spread = 5 * np.sqrt(rate * (1 - rate) / mask.size)
    assert abs(float(jnp.mean(~kept)) - rate) < spread
    # Each step has its own mask. Rows agree as often as independent coins do, in 199 * 20 pairs.
    agree = float(jnp.mean(kept[1:] == kept[:-1]))
    chance = rate**2 + (1 - rate) ** 2
    assert abs(agree - chance) < 5 * np.sqrt(chance * (1 - chance) / kept[1:].size)
    # All units and steps are equal, up to five standard deviations of 200 and of 20 coins.
    assert np.max(np.abs(jnp.mean(~kept, axis=0) - rate)) < 5 * np.sqrt(rate * (1 - rate) / LONG)
    assert np.max(np.abs(jnp.mean(~kept, axis=1) - rate)) < 5 * np.sqrt(rate * (1 - rate) / WIDTH)


@pytest.mark.parametrize("kind", BELOW)
def test_each_layer_has_its_own_mask(kind):
    """Through two such layers, a unit survives with probability 1/4 and not 1/2."""
    below, xs = draw(kind, hidden=WIDTH), draw_xs(LONG)
    _, ys = jaxgru.scan(
        jaxgru.Stack((below, lens(), lens())), xs, dropout=0.5, key=jax.random.key(1)
    )
    kept = float(jnp.mean(ys != 0))
    assert abs(kept - 0.25) < 5 * np.sqrt(0.25 * 0.75 / ys.size)


def test_the_last_layer_is_not_dropped():
    params = jaxgru.Stack((draw("gru"), draw("gru", inputs=HIDDEN, hidden=WIDTH)))
    (_, last), ys = jaxgru.scan(params, draw_xs(), dropout=0.9, key=jax.random.key(0))
    assert jnp.all(ys != 0)
    assert_same(ys[-1], last)


@pytest.mark.parametrize("kind", STACKS)
def test_the_carry_of_the_dropped_layer_is_untouched(kind):
    """Dropout changes what the next layer gets, and not what the next step gets."""
    params, xs = draw(kind), draw_xs()
    (first, _), _ = jaxgru.scan(params, xs, dropout=0.5, key=jax.random.key(0))
    assert_close(first, jaxgru.scan(params.layers[0], xs)[0], 1e-15)


@pytest.mark.parametrize("kind", ["mixed", slow("own_mixed")])
def test_same_key_same_numbers_other_key_others(kind):
    params, xs = draw(kind), draw_xs()

    def run(seed):
        return jaxgru.scan(params, xs, dropout=0.5, key=jax.random.key(seed))

    assert_same(run(0), run(0))
    assert jnp.max(jnp.abs(run(0)[1] - run(1)[1])) > 1e-3


@pytest.mark.parametrize("key", [None, 0])
@pytest.mark.parametrize("kind", STACKS)
def test_no_dropout_is_no_dropout(kind, key):
    params, xs = draw(kind), draw_xs()
    key = None if key is None else jax.random.key(key)
    assert_same(jaxgru.scan(params, xs, dropout=0.0, key=key), jaxgru.scan(params, xs))


@pytest.mark.parametrize("kind", ["stack", *map(slow, ("own_stack", "mixed", "own_mixed"))])
@pytest.mark.parametrize("rate", [0.25, slow(0.5)])
def test_a_rate_that_is_data_drops_as_a_number_does(kind, rate):
    params, xs, key = draw(kind), draw_xs(), jax.random.key(0)

    def run(rate):
        return jaxgru.scan(params, xs, dropout=rate, key=key)

    expected = run(rate)
    for given in (np.float32(rate), jnp.asarray(rate, jnp.float16), jnp.asarray(rate)):
        assert_close(run(given), expected, VALUE_TOL["float64"])
        assert_close(jax.jit(run)(given), expected, VALUE_TOL["float64"])
    assert jnp.max(jnp.abs(expected[1] - run(0.0)[1])) > 1e-3


@pytest.mark.parametrize("kind", ["stack", *map(slow, ("mixed", "own_mixed"))])
def test_a_traced_rate_of_zero_drops_nothing(kind):
    """Values and gradients agree exactly."""
    params, xs, key = draw(kind), draw_xs(), jax.random.key(0)

    def loss(params, rate, key=key):
        return weigh(jaxgru.scan(params, xs, dropout=rate, key=key))

    slope = jax.jit(jax.value_and_grad(loss))
    assert_same(slope(params, 0.0), jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, 0))


@pytest.mark.parametrize("kind", STACKS)
def test_a_known_zero_needs_no_key(kind):
    params, xs = draw(kind), draw_xs()
    for zero in (0, np.float32(0), jnp.zeros(())):
        assert_same(jaxgru.scan(params, xs, dropout=zero), jaxgru.scan(params, xs))
        assert_same(jaxgru.scan(draw("gru"), xs, dropout=zero), jaxgru.scan(draw("gru"), xs))


@pytest.mark.parametrize("kind", BELOW)
def test_a_population_of_rates(kind):
    """With one key, a higher rate drops everything that a lower rate drops."""
    params, key = jaxgru.Stack((draw(kind, hidden=WIDTH), lens())), jax.random.key(0)
    xs, rates = draw_xs(STEPS), jnp.array([0.0, 0.2, 0.6])

    def run(rate):
        return jaxgru.scan(params, xs, dropout=rate, key=key)[1]

    ys = jax.jit(jax.vmap(run))(rates)
    for rate, one in zip((0.0, 0.2, 0.6), ys, strict=True):
        assert_close(one, run(rate), 1e-12)
    dropped = ys == 0
    assert not jnp.any(dropped[0])
    assert jnp.all(dropped[2] | ~dropped[1])
    assert jnp.sum(dropped[2]) > jnp.sum(dropped[1]) > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_that_of_params(dtype):
    params, xs = draw("stack", dtype=dtype), draw_xs(dtype=dtype)
    rate = jnp.asarray(0.5, "float32")
    _, ys = jaxgru.scan(params, xs, dropout=rate, key=jax.random.key(0))
    assert ys.dtype == dtype
    assert_same(ys, jaxgru.scan(params, xs, dropout=0.5, key=jax.random.key(0))[1])


@pytest.mark.parametrize(("rate", "acts_as"), [(-0.5, 0.0), (3.0, 1.0)])
@pytest.mark.parametrize("kind", BELOW)
def test_a_traced_rate_out_of_range_is_clipped(kind, rate, acts_as):
    """A rate of 1 drops everything, and its gradient is zero, not NaN."""
    xs, key = draw_xs(), jax.random.key(0)

    def outputs(below, rate):
        ys = jaxgru.scan(jaxgru.Stack((below, lens())), xs, dropout=rate, key=key)[1]
        return weigh(ys), ys

    run = jax.jit(jax.value_and_grad(outputs, has_aux=True))
    (_, ys), grads = run(draw(kind, hidden=WIDTH), rate)
    (_, expected), expected_grads = run(draw(kind, hidden=WIDTH), acts_as)
    assert_same((ys, grads), (expected, expected_grads))
    for leaf in jax.tree.leaves((ys, grads)):
        assert jnp.all(leaf == 0) if acts_as == 1 else jnp.any(leaf != 0)


@pytest.mark.parametrize("kind", STACKS)
def test_new_rates_compile_nothing(kind):
    """A rate that is an array is data, so it can follow a schedule."""
    params, xs, key = draw(kind), draw_xs(), jax.random.key(0)
    traces = []

    @jax.jit
    def run(rate):
        traces.append(rate)
        return jaxgru.scan(params, xs, dropout=rate, key=key)

    for rate in (0.0, 0.1, 0.2):
        run(rate)
    assert len(traces) == 1


@pytest.mark.parametrize("rate", [0.5, np.float32(0.5)])
def test_one_layer_has_nothing_to_drop(rate):
    """A study of the number of layers needs no special case for one layer."""
    params, xs = jaxgru.Stack((draw("gru"),)), draw_xs()
    assert_same(
        jaxgru.scan(params, xs, dropout=rate, key=jax.random.key(0)), jaxgru.scan(params, xs)
    )


@pytest.mark.parametrize("kind", STACKS)
def test_a_stack_in_one_direction_of_two_is_dropped(kind):
    both = jaxgru.Bidirectional(draw(kind), draw("gru"))
    xs, key = draw_xs(), jax.random.key(0)
    width = oracle.output_size(both.forward)
    dropped, expected = jaxgru.scan(both, xs, dropout=0.5, key=key)[1], jaxgru.scan(both, xs)[1]
    assert jnp.max(jnp.abs(dropped[:, :width] - expected[:, :width])) > 1e-3
    assert_same(dropped[:, width:], expected[:, width:])


@pytest.mark.parametrize("kind", STACKS)
def test_a_raw_key_works_too(kind):
    params, xs = draw(kind), draw_xs()
    new = jaxgru.scan(params, xs, dropout=0.5, key=jax.random.key(4))
    old = jaxgru.scan(params, xs, dropout=0.5, key=jax.random.PRNGKey(4))
    assert_same(old, new)


@pytest.mark.parametrize("kind", STACKS)
def test_padding_stays_zero(kind):
    params, xs = draw(kind), draw_xs()
    _, ys = jaxgru.scan(params, xs, length=3, dropout=0.5, key=jax.random.key(0))
    assert_same(ys[3:], jnp.zeros_like(ys[3:]))


@pytest.mark.parametrize("kind", BELOW)
def test_the_mean_over_masks_is_the_input(kind):
    """With inverted dropout, the layer above gets the undropped value on average."""
    layers = (draw(kind, hidden=WIDTH), lens())
    xs = draw_xs(STEPS)
    _, hs = jaxgru.scan(layers[0], xs)

    def run(key):
        return look(jaxgru.scan(jaxgru.Stack(layers), xs, dropout=0.5, key=key)[1])

    seen = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 4000))
    # Each entry is 0 or 2 h, so its standard deviation is |h|, and that of the mean is |h| / 63.
    # The largest of 120 entries stays below five of them.
    worst = jnp.max(jnp.abs(jnp.mean(seen, axis=0) - hs) / jnp.abs(hs))
    assert worst < 5 / np.sqrt(4000)


@pytest.mark.parametrize("kind", BELOW)
def test_gradient_is_that_of_the_masked_computation(kind):
    layers = (draw(kind, hidden=WIDTH), lens())
    key = jax.random.key(5)
    xs = draw_xs(STEPS)
    _, _, mask = mask_of(layers, 0.5, key, steps=STEPS)
    mask = jnp.where(mask > 0.5, 2.0, 0.0)

    def dropped(below):
        return weigh(jaxgru.scan(jaxgru.Stack((below, lens())), xs, dropout=0.5, key=key)[1])

    def by_hand(below):
        return weigh(jaxgru.scan(lens(), mask * jaxgru.scan(below, xs)[1])[1])

    assert_close(
        jax.jit(jax.grad(dropped))(layers[0]), jax.jit(jax.grad(by_hand))(layers[0]), 1e-12
    )


@pytest.mark.parametrize("kind", STACKS)
def test_under_vmap_every_example_has_its_key(kind):
    params = draw(kind)
    xs = jnp.stack([draw_xs(seed=1)] * 3)
    keys = jax.random.split(jax.random.key(0), 3)

    def run(xs, key):
        return jaxgru.scan(params, xs, dropout=0.5, key=key)[1]

    ys = jax.jit(jax.vmap(run))(xs, keys)
    assert jnp.max(jnp.abs(ys[0] - ys[1])) > 1e-3
    for i in range(3):
        assert_close(ys[i], run(xs[i], keys[i]), 1e-12)


@pytest.mark.parametrize("kind", BELOW)
def test_one_key_for_a_batch_drops_the_same_units_of_every_example(kind):
    """The docstring describes a shared key, and one key for each example."""
    params = jaxgru.Stack((draw(kind, hidden=WIDTH), lens()))
    xs, key = jnp.stack([draw_xs(seed=i) for i in (1, 2)]), jax.random.key(0)

    def dropped(xs, key):
        return jaxgru.scan(params, xs, dropout=0.5, key=key)[1] == 0

    one, other = jax.vmap(dropped, in_axes=(0, None))(xs, key)
    assert_same(one, other)
    one, other = jax.vmap(dropped)(xs, jax.random.split(key))
    assert jnp.any(one != other)


def test_sizes_of_the_lens():
    """Without dropout, the helper shows exactly the outputs of the layer below."""
    below, xs = draw("gru", hidden=WIDTH), draw_xs(STEPS)
    assert xs.shape == (STEPS, INPUT)
    _, hs = jaxgru.scan(below, xs)
    _, ys = jaxgru.scan(jaxgru.Stack((below, lens())), xs)
    assert_close(look(ys), hs, 1e-12)
