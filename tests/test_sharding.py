"""Batches, populations and weights over eight devices, computed by tests/on_eight_devices.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cases import BUILT_IN, GRAD_TOL, LAYERS

pytestmark = pytest.mark.slow  # about two hundred programs for eight devices
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def found():
    # Fusion is off. It would compute, and count, cheap operations once for each user, wherever the
    # compiler chooses to.
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
        " --xla_disable_hlo_passes=fusion"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "on_eight_devices.py")],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def failing(found, wrong):
    return {name: check for name, check in found["checks"].items() if wrong(name, check)}


def test_every_kind_was_checked_in_every_way(found):
    names = set(found["checks"])
    for way in ("automatic axes", "explicit axes", "shard_map, set_mesh"):
        for what in ("forward", "gradient"):
            for kind in (*BUILT_IN, *LAYERS, "own_gru"):
                assert f"{kind}, marked, {way}, {what}" in names
            assert f"gru_after, plain, {way}, {what}" in names


def test_equals_one_device(found):
    """Values and gradients in float64.

    Partial sums over devices have another order, so the tolerance is that of derivatives.
    """
    assert not failing(found, lambda _, c: not c["difference"] < GRAD_TOL["float64"])


def test_results_stay_where_the_batch_is(found):
    """Fresh biases are zero, and the compiler keeps constants on every device."""
    assert not failing(
        found, lambda n, c: not c["split"] and n != "gru, init, automatic axes, forward"
    )


def test_nothing_is_sent_forward(found):
    """The only exception is Newton iterations, which end for the whole batch at once."""

    def sends(name, check):
        agreed = {"all-reduce"} if "Newton" in name and "axes" in name else set()
        return name.endswith("forward") and (check["loop"] or set(check["outside"]) - agreed)

    assert not failing(found, sends)


def test_gradients_are_summed_once(found):
    """There are no more collective operations than if JAX differentiates `lax.scan` over the step.

    These are two, and none in a loop. A checkpoint sums once for each segment, and Newton
    iterations agree when to end. A cell defined by its step alone sums at every step of the loop.
    """

    def sends(name, check):
        if not name.endswith("gradient"):
            return False
        apart = "axes" in name and ("checkpoint" in name or "Newton" in name)
        apart = apart or name.startswith("own_gru, marked")
        allowed = 5 if apart else 2
        return (
            set(check["outside"]) | set(check["loop"]) != {"all-reduce"}
            or check["outside"].get("all-reduce", 0) > allowed
            or (bool(check["loop"]) and not apart)
        )

    assert not failing(found, sends)


def test_each_device_does_an_eighth(found):
    assert not failing(found, lambda _, c: c["work"] > 1.1 / 8)


def test_types_have_the_axis_of_the_batch(found):
    assert found["types"] == {"automatic axes": True, "explicit axes": True}


@pytest.mark.parametrize(
    "what",
    [
        "replicas",
        "output axis, one sequence",
        "output axis, batch over data",
        "output axis, batch in parts",
        "input axis, one sequence",
        "input axis, batch over data",
        "input axis, batch in parts",
        "without checks",
    ],
)
def test_other_layouts_equal_one_device(found, what):
    layouts = {k: v for k, v in found["layouts"].items() if what in k}
    assert layouts
    for name, layout in layouts.items():
        assert layout["difference"] < GRAD_TOL["float64"], name


def test_replicas_times_batch_send_the_gradient_once(found):
    for name, layout in found["layouts"].items():
        if "replicas" in name:
            assert layout["loop"] == {}, name
            assert layout["outside"].keys() == {"all-reduce"}, name
            assert layout["outside"]["all-reduce"] <= 2, name


def test_bad_input_is_told(found):
    errors = found["errors"]
    assert len(errors) == 5
    for name, message in errors.items():
        expected = "devices" if "different meshes" in name else "divi"
        assert expected in message, (name, message)


def test_recipes_equal_one_device(found):
    assert set(found["recipes"]) == {"recipes/tensor_parallel.md", "recipes/many_devices.md"}
    for page, difference in found["recipes"].items():
        assert difference < GRAD_TOL["float32"], page


@pytest.mark.parametrize("direction", ["forward", "gradient"])
def test_a_kernel_runs_where_the_batch_is_known_to_lie(found, direction):
    """On automatic axes a program does not know this when it is made, so the loop runs."""
    kernels = {way: check for way, check in found["kernels"].items() if direction in way}
    for way, check in kernels.items():
        assert check["difference"] < GRAD_TOL["float32"], way
        assert check["split"], way
        assert check["work"] < 1.1 / 8, way
        assert check["loop"] == {}, way
        assert check["outside"] == ({"all-reduce": 1} if direction == "gradient" else {}), way
        launches = 0 if "automatic" in way else 1 + (direction == "gradient")
        assert check["shapes"] == [[16, 16]] * launches, way
    assert len(kernels) == 3
