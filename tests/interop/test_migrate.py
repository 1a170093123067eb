"""The programs before and after in docs/migrate, on the same random weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
import peers
import recipes
from cases import GRAD_TOL, VALUE_TOL, assert_close, draw_like, weigh

pytestmark = [
    pytest.mark.usefixtures("lenient"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras.*"),
]

TOL, GRAD_TOL = VALUE_TOL["float32"], GRAD_TOL["float32"]
BATCH, STEPS, INPUT, HIDDEN = 3, 6, 3, 64
LENGTHS = np.array([2, 6, 1])
REAL = (np.arange(STEPS) < LENGTHS[:, None])[..., None]


@pytest.fixture(autouse=True)
def x32():
    """64-bit types are off, as for users who switch nothing on."""
    with jax.enable_x64(False):
        yield


def random(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


def pairs(page):
    """Return [(names before, names after), ...] of a page, and the conversions after each pair."""
    before, after, conversions = [], [], []
    for block in recipes.blocks(f"migrate/{page}.md"):
        names: dict = {}
        if re.search(r"^def run\(", block, re.M):
            side = before if len(before) == len(after) else after
            exec(compile(block, page, "exec"), names)
            side.append(names)
        elif block.startswith("params = jaxgru.interop."):
            conversions.append(block)
    assert len(before) == len(after) == {"flax": 2, "haiku": 2}.get(page, 1)
    return [*zip(before, after, strict=True)], conversions


def converted(conversion, **names):
    """Run a line of the page, which makes params of trained weights."""
    names["jaxgru"] = jaxgru
    exec(compile(conversion, "conversion", "exec"), names)
    return names["params"]


def check(theirs, ours, same=lambda carry: carry):
    """The last states, and the outputs at the real steps."""
    assert_close(same(ours[0]), theirs[0], TOL)
    assert_close(ours[1], jnp.where(REAL, jnp.asarray(theirs[1]), 0), TOL)


def test_linen():
    peers.peer("flax.linen")
    ((before, after), _), (conversion, _) = pairs("flax")
    xs = random(BATCH, STEPS, INPUT)
    variables = draw_like(before["rnn"].init(jax.random.key(0), xs))
    params = converted(conversion, variables=variables)
    check(before["run"](variables, xs, LENGTHS), after["run"](params, xs, LENGTHS))
    theirs = jax.grad(lambda xs: weigh(before["run"](variables, xs, LENGTHS)[0]))(xs)
    ours = jax.grad(lambda xs: weigh(after["run"](params, xs, LENGTHS)[0]))(xs)
    assert_close(ours, theirs, GRAD_TOL)


def test_nnx():
    nnx = peers.peer("flax.nnx")
    (_, (before, after)), (_, conversion) = pairs("flax")
    xs, rnn = random(BATCH, STEPS, INPUT), before["rnn"]
    nnx.update(rnn, draw_like(nnx.state(rnn, nnx.Param)))
    params = converted(conversion, rnn=rnn)
    check(before["run"](rnn, xs, LENGTHS), after["run"](params, xs, LENGTHS))


@pytest.mark.parametrize("resets", [False, True])
def test_haiku(resets):
    peers.peer("haiku")
    both, (conversion,) = pairs("haiku")
    before, after = both[resets]
    state, xs = random(BATCH, HIDDEN), random(STEPS, BATCH, INPUT)
    done = np.random.default_rng(2).random((STEPS, BATCH)) < 0.3
    assert done[1:].any()
    data = (xs, done, state) if resets else (xs, state)
    weights = draw_like(before["network"].init(jax.random.key(0), *data))
    theirs = before["run"](weights, *data)
    assert_close(after["run"](converted(conversion, weights=weights), *data), theirs, TOL)


def test_equinox():
    eqx = peers.peer("equinox")
    ((before, after),), (conversion,) = pairs("equinox")
    cell = eqx.nn.GRUCell(INPUT, HIDDEN, key=jax.random.key(0))
    model = before["Encoder"](draw_like(cell, 0))
    xs = random(BATCH, STEPS, INPUT)
    params = converted(conversion, model=model)
    assert_close(after["run"](after["Encoder"](params), xs), before["run"](model, xs), TOL)


def test_keras():
    peers.peer("keras")
    ((before, after),), (conversion,) = pairs("keras")
    xs, rnn = random(BATCH, STEPS, INPUT), before["rnn"]
    rnn(xs)
    rnn.set_weights(draw_like(rnn.get_weights()))
    params = converted(conversion, rnn=rnn)
    check(before["run"](rnn, xs, LENGTHS), after["run"](params, xs, LENGTHS))


def test_torch():
    torch = peers.peer("torch")
    ((before, after),), (conversion,) = pairs("torch")
    xs, rnn = random(BATCH, STEPS, INPUT), before["rnn"]
    params = converted(conversion, rnn=rnn)  # torch also draws biases
    with torch.no_grad():
        last, ys = before["run"](rnn, torch.as_tensor(xs), torch.as_tensor(LENGTHS))
    found = after["run"](params, xs, LENGTHS)
    check((last.numpy(), ys.numpy()), found, lambda carry: jnp.stack(jax.tree.leaves(carry)))
