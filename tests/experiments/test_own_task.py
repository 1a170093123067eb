"""A task in one file outside the repository, which experiments/README.md shows."""

import dataclasses
import gc
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgru
from experiments.common import metrics, training
from experiments.framework import Example, Mark, Settings, UsageError, load, main, read_out
from experiments.report.__main__ import main as report

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("optax_promotes")

SMALL = ("--length", "12", "--curriculum", "1.2", "--seeds", "5", "3", "--hidden-size", "8",
         "--cell", "elman", "--batch-size", "8", "--test-examples", "50")  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a package `lab`, which contains the file that the README shows."""
    folder = tmp_path_factory.mktemp("outside")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "experiments/README.md").read_text(), re.S)
    (source,) = (block for block in blocks if "def make_task" in block)
    (folder / "lab").mkdir()
    (folder / "lab" / "__init__.py").touch()
    (folder / "lab" / "order.py").write_text(source)
    return folder


@pytest.fixture(scope="module")
def order(lab):
    """Import the module of the task."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(lab))
        yield importlib.import_module("lab.order")
    for name in ("lab", "lab.order"):
        del sys.modules[name]


def start(lab, *flags):
    # A shell makes background processes ignore the signal, and their children inherit this.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL)"
    heed += "; os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", heed, sys.executable, "-m", "lab.order", *flags]
    return subprocess.Popen(
        command,
        cwd=lab,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_train_interrupt_resume_report_load(lab, capsys):
    out = lab / "runs" / "order"
    training = start(lab, *SMALL, "--updates", "100000", "--eval-every", "1",
                     "--learning-rate", "1e-9")  # fmt: skip
    while "updates, " not in (line := training.stdout.readline()):
        assert line, training.communicate()[1]
    training.send_signal(signal.SIGINT)
    printed, errors = training.communicate(timeout=60)
    assert training.returncode == 130, errors
    assert "To continue: python -m lab.order --out runs/order --resume" in printed
    assert errors == ""
    before = metrics.read_run(out / "metrics.jsonl")
    assert before.header["module"] == "python -m lab.order"
    assert before.header["command"].startswith("python -m lab.order --length 12 ")
    assert not before.results

    resumed = start(lab, "--resume")
    while "updates, " not in (line := resumed.stdout.readline()):
        assert line, resumed.communicate()[1]
    resumed.send_signal(signal.SIGTERM)
    assert resumed.communicate(timeout=60)[1] == ""
    after = metrics.read_run(out / "metrics.jsonl")
    assert after.header == before.header
    for old, new in zip(before.evals, after.evals, strict=True):
        assert new[: len(old)] == old
    assert sum(map(len, after.evals)) > sum(map(len, before.evals))

    networks = [load(out, seed=seed) for seed in (5, 3)]
    assert networks[0].cell.w_ih.shape == (4, 8)
    xs = jax.nn.one_hot(jnp.array([2, 3, 0, 3, 1]), 4, dtype="float32")
    answers = [read_out(n, jaxgru.scan(n.cell, xs)[1]) for n in networks]
    assert answers[0].shape == (5, 2)
    assert not jnp.allclose(*answers)

    assert report([str(out), "--out", str(lab / "report")]) == 0
    printed = capsys.readouterr().out
    assert "## temporal order, T=12" in printed
    assert "| network | parameters | test loss | accuracy | solved | updates | minutes |" in printed
    assert "| no memory: the baseline |  | 0.693 | 50.0% |" in printed
    assert "| elman of 8 | 122 |" in printed


def run(order, out, *flags):
    return main(order.OrderSettings, order.make_task, [*SMALL, *flags, "--out", str(out)],
                check=order.check)  # fmt: skip


@pytest.fixture(scope="module")
def finished(order, optax_promotes, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run(order, out, "--updates", "12", "--eval-every", "4") == 1
    return out


def test_a_finished_run_has_its_pictures_and_is_not_run_again(order, finished, capsys):
    names = ["checkpoints", "learning_curves.png", "lock", "metrics.jsonl"]
    # Without gates there is no picture of them.
    assert sorted(path.name for path in finished.iterdir()) == names
    assert run(order, finished) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: the run in {finished} is finished (not solved: 2); look at it")
    assert "To run anew, choose another folder with --out" in error
    assert error.count("\n") == 1
    assert main(order.OrderSettings, order.make_task, ["--out", str(finished), "--resume"]) == 1
    assert "Seed 3, rate 0.01: not solved" in capsys.readouterr().out


def test_what_is_loaded_is_what_was_tested(order, finished):
    """The task computes the test measures of the record again from the loaded network."""
    run_ = metrics.read_run(finished / "metrics.jsonl")
    settings = order.OrderSettings(length=12)
    task = order.make_task(settings)
    for seed, result in zip((5, 3), run_.results, strict=True):
        network = load(finished, seed=seed)

        def one(key, network=network):
            example = task.sampler(12)(key, jnp.int32(0))
            hs = jaxgru.scan(network.cell, example.xs.astype("float32"))[1]
            return task.measure(read_out(network, hs), example)

        found = jax.jit(lambda keys, one=one: jax.vmap(one)(keys))(training.test_keys(50))
        for name in ("loss", "accuracy"):
            assert float(found[name].mean()) == pytest.approx(result[f"test_{name}"], rel=1e-4)


def test_a_network_is_loaded_by_name(finished, tmp_path):
    with pytest.raises(UsageError, match=r"Several replicas fit seed=None.*seed=5.*; seed=3"):
        load(finished)
    with pytest.raises(UsageError, match="No replica fits seed=7"):
        load(str(finished), seed=7)
    a, b = load(finished, seed=3), load(finished, seed=3, learning_rate=0.01)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    with pytest.raises(UsageError, match="no run in"):
        load(tmp_path)


# Orbax leaves files of a damaged checkpoint open. The garbage collector closes them here.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_only_whole_checkpoints_are_loaded(finished, tmp_path):
    """Loading leaves a damaged checkpoint where it is. Only --resume moves it."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    last = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
    data = max(last.rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    with pytest.raises(UsageError, match=f"checkpoint {last.name} of .* cannot be read"):
        load(out, seed=5)
    gc.collect()
    assert data.exists()
    shutil.rmtree(out / "checkpoints")
    with pytest.raises(UsageError, match="has no checkpoint yet"):
        load(out, seed=5)
    header = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    header["settings"]["dtype"] = "float64"
    (out / "metrics.jsonl").write_text(json.dumps(header) + "\n")
    if not jax.config.jax_enable_x64:
        with pytest.raises(UsageError, match="jax_enable_x64"):
            load(out, seed=5)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--preset", "x"), "--preset must be left out, for there are none, got 'x'"),
        (("--length", "3"), "--length must be at least 4, got 3"),
        (("--distractors", "0"), "--distractors must be at least 1, got 0"),
    ],
)
def test_wrong_values_are_one_line(order, flags, expected, tmp_path, capsys):
    assert run(order, tmp_path / "out", *flags) == 2
    assert capsys.readouterr().err == f"error: {expected}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"input_size": 5},
            "xs of the sampler must be of shape [T, 5], as input_size is 5, got [10, 4]",
        ),
        (
            {"sampler": lambda length: lambda key, level: jnp.zeros((length, 4))},
            "what the sampler returns must be an Example, got",
        ),
        ({"measures": ("accuracy",)}, "measures must be names that include loss, got"),
        (
            {"measures": ("loss", "error")},
            "what measure returns must be named loss and error, got ['accuracy', 'loss']",
        ),
        (
            {"measure": lambda hs, _: {"loss": hs[:, 0], "accuracy": hs[0, 0]}},
            "loss of measure must be a scalar, got shape [10]",
        ),
        (
            {"solved": (Mark("recall", 0.9),)},
            "a measure of passed, solved, marks and chances must be loss and accuracy, got recall",
        ),
    ],
)  # fmt: skip
def test_parts_of_a_task_that_do_not_fit_are_one_line(order, changes, expected, tmp_path, capsys):
    def make_task(settings):
        return dataclasses.replace(order.make_task(settings), **changes)

    flags = [*SMALL, "--out", str(tmp_path / "out")]
    assert main(order.OrderSettings, make_task, flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: task temporal order: {expected}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_settings_that_are_no_dataclass_are_refused():
    class Plain(Settings):
        own: int = 3

    with pytest.raises(TypeError, match=r"Plain needs @dataclasses.dataclass"):
        main(Plain, lambda settings: None, [])


def test_targets_are_what_measure_takes():
    """Targets may be any pytree, here a dict of a scalar and a vector. Weights may be left out."""
    example = Example(xs=jnp.zeros((3, 1)), targets={"a": jnp.int32(1), "b": jnp.zeros(7)})
    assert example.weights == ()
    assert len(jax.tree.leaves(example)) == 3
