"""docs/migrate/scanned_rnn.md: the module in agents and its replacement agree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgru
import peers
import recipes
from cases import assert_close, assert_same, draw_like, weigh

peers.peer("flax.linen")
serialization = peers.peer("flax.serialization")
from flax.training.train_state import TrainState  # noqa: E402

pytestmark = pytest.mark.usefixtures("x64", "lenient")

STEPS, BATCH, OBS, ACTIONS = 9, 4, 5, 3


@pytest.fixture(scope="module")
def page():
    """Run the page, and return the names of each of the first two blocks, and of the rest."""
    before, after, *rest = recipes.blocks("migrate/scanned_rnn.md")
    names = [{}, {}]
    exec(compile(before, "before", "exec"), names[0])
    for block in (after, *rest):
        exec(compile(block, "after", "exec"), names[1])
    return names


@pytest.fixture(scope="module")
def rollout():
    """Draw (carry, (obs, done)).

    The sequence continues an episode, and others begin inside. Done is a number, as environments
    return it.
    """
    rng = np.random.default_rng(0)
    done = rng.random((STEPS, BATCH)) < 0.3
    done[0] = [False, True, False, False]
    assert done[1:].any(0).all()
    carry, obs = rng.standard_normal((BATCH, 64)), rng.standard_normal((STEPS, BATCH, OBS))
    return jnp.asarray(carry), (jnp.asarray(obs), jnp.asarray(done, "float64"))


def networks(page, rollout):
    """Return [(network, variables), ...] of the page, with the same weights and no zero weight."""
    before, after = (names["ActorCritic"](ACTIONS) for names in page)
    variables = before.init(jax.random.key(0), *rollout)
    variables = draw_like(jax.tree.map(lambda a: a.astype("float64"), variables))
    return [(before, variables), (after, page[1]["converted"](variables))]


def test_the_variables_are_those_of_init(page, rollout):
    """The names and shapes of converted weights, and the carries of the page."""
    narrow = jax.tree.map(lambda a: a.astype("float32"), rollout)
    for network, variables in networks(page, rollout):
        drawn = network.init(jax.random.key(0), *narrow)
        assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, variables)
    before, after = (names["start"] for names in page)
    assert_same(after, before.astype("float32"))


def test_the_same_outputs_and_gradients(page, rollout):
    found = []
    for network, variables in networks(page, rollout):
        run = jax.jit(network.apply)

        def loss(variables, carry, run=run):
            return weigh(run(variables, carry, rollout[1]))

        outputs = run(variables, *rollout)
        found.append((outputs, jax.grad(loss, (0, 1))(variables, rollout[0])))
    (theirs, gradients), (ours, others) = found
    assert_close(ours, theirs, peers.TOL)
    # The conversion reorders and changes signs, so it also converts gradients.
    assert_close(others, (page[1]["converted"](gradients[0]), gradients[1]), peers.GRAD_TOL)
    assert min(abs(g).max() for g in jax.tree.leaves(others)) > 1e-3
    network, variables = networks(page, rollout)[1]
    carry, (obs, done) = rollout
    for other in ((carry, (obs, 0 * done)), (0 * carry, (obs, done))):  # so both matter
        assert abs(network.apply(variables, *other)[1] - ours[1]).max() > 0.1


def test_acting_is_learning(page, rollout):
    """Act one step at a time with a rollout of length one, and with `step`."""
    carry, (obs, done) = rollout
    network, variables = networks(page, rollout)[1]
    whole = network.apply(variables, carry, (obs, done))
    agent = page[1]["Agent"](ACTIONS)
    weights = variables["params"]
    names = {"encoder": "Dense_0", "rnn": "LinenRNN_0", "actor": "Dense_1", "critic": "Dense_2"}
    own = {"params": {name: weights[other] for name, other in names.items()}}
    assert_close(agent.apply(own, carry, obs, done, method="learn"), whole, peers.TOL)
    h, parts = carry, []
    for t in range(STEPS):
        now, logits, value = network.apply(variables, h, (obs[t : t + 1], done[t : t + 1]))
        h, *part = agent.apply(own, h, obs[t], done[t], method="act")
        assert_close((now, logits[0], value[0]), (h, *part), peers.TOL)
        parts.append(part)
    logits, values = zip(*parts, strict=True)
    assert_close((h, jnp.stack(logits), jnp.stack(values)), whole, peers.TOL)


def test_training_goes_on_from_a_file(page, rollout):
    """Two updates equal one update, a restart from flax.serialization, and another update."""
    network, variables = networks(page, rollout)[1]
    state = TrainState.create(apply_fn=network.apply, params=variables, tx=optax.adam(1e-2))

    @jax.jit
    def update(state):
        grads = jax.grad(lambda params: weigh(state.apply_fn(params, *rollout)))(state.params)
        return state.apply_gradients(grads=grads)

    data = serialization.to_bytes(update(state))
    restored = serialization.from_bytes(state, data)
    assert_same(update(restored).params, update(update(state)).params)
    weights = serialization.msgpack_restore(data)["params"]["params"]["LinenRNN_0"]
    assert_same(
        jaxgru.from_dict(weights), jaxgru.from_dict(restored.params["params"]["LinenRNN_0"])
    )


def test_the_line_counts():
    text = (recipes.DOCS / "migrate" / "scanned_rnn.md").read_text()
    before, after, *_ = recipes.blocks("migrate/scanned_rnn.md")
    for code, start, name in (
        (before, "class ScannedRNN", "`ScannedRNN` above"),
        (after, "def gru", "`gru` above"),
    ):
        part = code[code.index(start) : code.index("class ActorCritic")]
        lines = [line for line in part.splitlines() if line.strip()]
        assert re.search(rf"^\| {name} \| (\d+) \|$", text, re.M).group(1) == f"{len(lines)}"
