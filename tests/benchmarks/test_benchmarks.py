"""The benchmarks compare the same function everywhere, take turns, and compute correct ratios."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import by_hand, newton, own, peers, report, suites, timing
from benchmarks.timing import Row, Times, interleave
from cases import GRAD_TOL, VALUE_TOL, assert_close, slow


@pytest.fixture(autouse=True)
def x32():
    """Everything is timed in float32, whatever the environment says."""
    with jax.enable_x64(False):
        yield


def test_turns_are_taken_in_a_drawn_order(monkeypatch):
    pauses = []
    monkeypatch.setattr(timing.time, "sleep", pauses.append)
    made = []
    calls = {name: lambda name=name: made.append(name) for name in "abc"}
    times = interleave(calls, rounds=20, repeat=2)
    assert made[:3] == list("abc")  # each program runs once before anything is timed
    turns = ["".join(made[k : k + 3]) for k in range(3, len(made), 3)]
    # One call for warming up, and two that are timed.
    assert all(turn[0] * 3 == turn for turn in turns)
    rounds = {"".join(turn[0] for turn in turns[k : k + 3]) for k in range(0, 60, 3)}
    assert all(sorted(order) == list("abc") for order in rounds)
    assert len(rounds) == 6  # every order of the three occurs
    assert pauses == [timing.PAUSE] * 60
    assert list(times) == ["a", "b", "c"]
    assert all(0 < t.minimum <= t.low <= t.median <= t.high for t in times.values())


@pytest.mark.usefixtures("lenient")  # the peer is written in the usual way
@pytest.mark.parametrize("inputs", [3, slow(20)])  # projected in the loop, or before it
def test_the_gru_by_hand_is_the_gru(inputs):
    problem = peers.problem("gru_after", 4, 18, inputs, 5)
    params = jax.tree.map(lambda w: w + 0.1, problem.params)  # no bias is zero
    xs, ct = (jnp.asarray(a).swapaxes(0, 1) for a in (problem.xs, problem.cotangent))
    expected = peers.batched(params, xs, time_major=True)
    assert_close(by_hand.forward(params, xs), expected, VALUE_TOL["float32"])
    pull = peers.pullback(lambda p, x: peers.batched(p, x, time_major=True))
    assert_close(by_hand.gradient(params, xs, ct), pull(params, xs, ct), GRAD_TOL["float32"])


def operations(run, *args):
    """Count the operations of a compiled program by name and result."""
    text = jax.jit(run).lower(*args).compile().as_text()
    return Counter(re.findall(r"= (\S+ [\w-]+)\(", text))


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("sizes", [(5, 9, 3, 7), slow((1, 9, 3, 7))])
def test_a_cell_of_your_own_costs_what_lax_scan_costs(sizes):
    """The two programs are equal, so their times differ only by noise."""
    problem = peers.problem("gru_before", *sizes)
    programs = {
        name: operations(peers.pullback(apply), weights, problem.xs, problem.cotangent)
        for name, (apply, weights) in own.cells(problem).items()
    }
    assert programs["jaxgru"] == programs["lax.scan"]
    assert programs["jaxgru"] != programs["with weights"]


@pytest.mark.slow
@pytest.mark.usefixtures("lenient")
def test_a_world_model_costs_what_lax_scan_costs():
    args = (own.world_params(), own.world_data())
    one, other = (operations(run, *args) for run in own.world_models().values())
    assert one == other


def test_a_contestant_that_computes_something_else_is_found():
    ys = np.ones((2, 3, 4), np.float32)
    good = peers.Model(False, lambda: ys, lambda: ys)
    turned = peers.Model(True, lambda: ys.swapaxes(0, 1), lambda: ys.swapaxes(0, 1))
    suites._agree({"one": good, "other": turned})
    for bad in (good._replace(forward=lambda: 1.01 * ys), good._replace(gradient=lambda: 0 * ys)):
        with pytest.raises(AssertionError):
            suites._agree({"one": good, "other": bad})


def test_ratios_compare_like_layouts():
    values = {
        "jaxgru": Times(1.0, 1.5, 2.0, 2.5),
        "jaxgru time-major": Times(0.5, 0.5, 1.0, 3.5),
        "flax.nnx": Times.of(3.0),
        "torch": Times.of(3.0),
        "equinox": Times.of(1.0),
    }
    row = Row("grid", "B=1", "forward", "s", values)
    found = {"flax.nnx": (3.0, 1.5, 1), "torch": (6.0, 3.0, 0), "equinox": (1.0, 0.5, -1)}
    assert report.ratios(row) == found
    table = report.markdown([row, row])
    own = "2e+03 (1.5e+03 to 2.5e+03)"
    assert f"| B=1 | {own} | **1.50 (3.00)** | 3.00 (6.00) | _0.50 (1.00)_ |" in table
    assert "| geometric mean |  | 1.50 (3.00) | 3.00 (6.00) | 0.50 (1.00) |" in table


def test_a_picture_and_a_file_are_written(tmp_path):
    values = {"jaxgru": Times.of(2.0), "flax.nnx": Times.of(3.0)}
    rows = [Row("grid", f"B={k}", "forward", "s", values) for k in range(3)]
    report.picture(tmp_path / "grid.png", "title", rows)
    report.to_json(tmp_path / "grid.json", {"machine": "here"}, rows)
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert '"machine": "here"' in (tmp_path / "grid.json").read_text()


def test_numbers_that_stand_alone_are_told_as_they_are():
    counts = {"dense": Times.of(3.0), "diagonal": Times.of(np.inf)}
    row = Row("newton", "T=100", "iterations", "steps", counts)
    assert report.ratios(row) == {}
    table = report.markdown([row])
    assert "|  | dense, steps | diagonal, steps |" in table
    assert "| T=100 | 3 | none |" in table


def test_the_map_has_a_number_for_every_size_and_says_what_is_left_out(tmp_path):
    values = {"jaxgru": Times.of(1.0), "diagonal": Times.of(3.0)}
    rows = [Row("newton", newton.MAP.format(1, 100, 1), "forward", "s", values)]
    newton.crossover(tmp_path / "map.png", "title", rows)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
