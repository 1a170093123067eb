"""Rollouts in the T-maze: learning sees what acting did, and only memory solves the task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import VALUE_TOL, assert_close
from experiments.common.metrics import read_run
from experiments.rollout.__main__ import main
from experiments.rollout.learn import Agent, Steps, act, agent_init, make_learner, relearn, returns
from experiments.rollout.maze import enter
from experiments.rollout.settings import RolloutSettings

pytestmark = pytest.mark.usefixtures("optax_promotes")

SETTINGS = RolloutSettings(shortest=1, longest=3, hidden_size=4, steps=12)
TINY = ["--longest", "6", "--hidden-size", "3", "--environments", "4", "--steps", "9",
        "--updates", "4", "--eval-every", "2"]  # fmt: skip


def noisy_agent() -> Agent:
    """An agent whose weights and biases are all random and non-zero."""
    rng = np.random.default_rng(5)
    drawn = agent_init(jax.random.key(0), SETTINGS.hidden_size)
    return jax.tree.map(lambda w: jnp.asarray(0.6 * rng.standard_normal(w.shape), w.dtype), drawn)


@pytest.fixture(scope="module")
def rollouts():
    """Two consecutive rollouts of six environments, with and without memory.

    Returns {memory: [(the actors at the start, the steps), ...]}.
    """
    agent, found = noisy_agent(), {}
    keys = jax.random.split(jax.random.key(1), 6)
    mazes = jax.vmap(lambda key: enter(key, SETTINGS.shortest, SETTINGS.longest))(keys)
    run = jax.jit(
        jax.vmap(lambda memory, actor, key: act(SETTINGS, agent, memory, actor, key), (None, 0, 0))
    )
    for memory in (True, False):
        start = make_learner(SETTINGS)[0](jnp.array(memory)).actors
        start = start._replace(maze=mazes, carry=start.carry[:6])
        middle, first = run(jnp.array(memory), start, keys)
        _, second = run(jnp.array(memory), middle, jax.random.split(jax.random.key(2), 6))
        found[memory] = [(start, first), (middle, second)]
    return found


@pytest.mark.parametrize("memory", [True, False])
def test_acting_and_learning_see_the_same_logits(memory, rollouts):
    """Acting sets the state to zeros at resets. Learning runs `scan` from the stored carry."""
    again = jax.jit(jax.vmap(lambda carry, steps: relearn(noisy_agent(), carry, steps)[0]))
    for start, steps in rollouts[memory]:
        assert_close(again(start.carry, steps), steps.logits, VALUE_TOL["float32"])
    start, steps = rollouts[memory][1]
    assert steps.reset[:, 1:].any(axis=1).all()  # there is a reset inside every rollout
    if not memory:
        assert steps.reset.all()
    else:
        assert not steps.reset.all(axis=0).any()
        assert not steps.reset[:, 0].all()  # an episode continues in the next rollout
        assert abs(start.carry).max() > 0.1
        lost = again(jnp.zeros_like(start.carry), steps)
        assert abs(lost - steps.logits).max() > 0.01  # so the stored carry matters


def test_episodes_are_what_the_maze_says(rollouts):
    """The observations fit together: a cue, a corridor of allowed length, a junction, a reward."""
    parts = [steps for _, steps in rollouts[True]]
    steps = Steps(*(np.concatenate(both, axis=1) for both in zip(*parts, strict=True)))
    lengths, rewards = set(), set()
    for xs, reset, action, reward, done in zip(*steps[:5], strict=True):
        assert (xs.sum(axis=1) == 1).all()
        np.testing.assert_array_equal(reset, np.r_[True, done[:-1]])
        np.testing.assert_array_equal(reset, xs[:, :2].any(axis=1))
        np.testing.assert_array_equal(done, xs[:, 3] == 1)
        assert (reward[~done] == 0).all()
        ends, starts = np.flatnonzero(done), np.flatnonzero(reset)
        for start, end in zip(starts, ends, strict=False):
            lengths.add(end - start)
            cue = int(xs[start, 1])
            assert reward[end] == (1 if action[end] == cue else -1)
            rewards.add(reward[end])
    assert lengths == {1, 2, 3}
    assert rewards == {-1, 1}


def test_returns_end_with_the_episode():
    done = np.array([False, True, False, False])
    reward = np.array([0.5, 1, 0, -1], np.float32)
    steps = Steps(*(None,) * 3, jnp.asarray(reward), jnp.asarray(done), None)  # pyright: ignore
    found = returns(0.5, steps, jnp.float32(8))
    np.testing.assert_array_equal(found, [0.5 + 0.5 * 1, 1, 0.5 * 3, -1 + 0.5 * 8])


@pytest.fixture(scope="module")
def short(optax_promotes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollout")
    for name, seed in (("one", "3"), ("again", "3"), ("other", "4")):
        assert main([*TINY, "--seed", seed, "--out", str(folder / name)]) == 1
    return folder


def evals(folder):
    lines = [line for lines in read_run(folder / "metrics.jsonl").evals for line in lines]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.slow
def test_a_run_is_a_function_of_its_seed(short):
    assert evals(short / "one") == evals(short / "again")
    assert evals(short / "one") != evals(short / "other")


@pytest.mark.slow
def test_a_run_leaves_a_record_and_a_picture(tmp_path, capsys):
    out = tmp_path / "run"
    flags = [*TINY, "--updates", "1", "--out", str(out)]
    assert main(flags) == 1
    assert "not solved" in capsys.readouterr().out
    run = read_run(out / "metrics.jsonl")
    assert run.header["command"].startswith("python -m experiments.rollout --longest 6")
    assert [lines[-1]["update"] for lines in run.evals] == [1, 1]
    assert run.results[0]["verdict"] == "not solved"
    assert (out / "success.png").read_bytes().startswith(b"\x89PNG")
    assert main(flags) == 2
    assert "is in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--longest", "4"), "--longest must be at least 5 (--shortest), got 4"),
        (("--steps", "0"), "--steps must be at least 1, got 0"),
        (("--discount", "1.5"), "--discount must be in [0, 1], got 1.5"),
        (("--learning-rate", "nan"), "--learning-rate must be positive and finite, got nan"),
    ],
)
def test_a_wrong_value_is_one_line_of_error(flags, expected, tmp_path, capsys):
    assert main([*flags, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {expected}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_default_run_solves_it_by_memory(tmp_path):
    assert main(["--out", str(tmp_path)]) == 0
    run = read_run(tmp_path / "metrics.jsonl")
    memory, none = ([line["success"] for line in lines] for lines in run.evals)
    assert memory[-1] > 0.99
    # A line has about 1,860 episodes. The standard deviation of 50% is 1.2%, and this is five.
    assert max(abs(np.array(none) - 0.5)) < 0.06
