"""A study on eight devices equals the same study on one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.adding_task.__main__ import main as adding
from experiments.common.metrics import read_run
from experiments.copy_task.__main__ import main as copy
from runs import ROOT, on_devices

HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("optax_promotes")

# The runs use float64, where the order of sums hardly matters. A record has six digits, and the
# last one may differ by one.
DIGITS = 2e-5
DOUBLE = ("--dtype", "float64", "--save-every", "0")
ADDING = (*DOUBLE, "--length", "9", "--hidden-size", "6", "--batch-size", "16", "--updates", "30",
          "--eval-every", "10", "--test-examples", "13")  # fmt: skip
COPY = (*DOUBLE, "--length", "12", "--cell", "elman", "--chrono", "0", "--hidden-size", "16",
        "--batch-size", "8", "--first-symbols", "9", "--pass-symbols", "0.1", "--pass-nats", "23.6",
        "--updates", "60", "--eval-every", "5", "--test-examples", "20")  # fmt: skip
#: The batch of one replica is divided by eight. Two replicas are divided two by four. The
#: curriculum has three replicas, of which one to three train together.
STUDIES = {
    "one": ("adding", (*ADDING, "--seeds", "3")),
    "two": ("adding", (*ADDING, "--seeds", "0", "1")),
    "curriculum": ("copy", (*COPY, "--seeds", "0", "1", "2")),
}
MAINS = {"adding": adding, "copy": copy}


def without_times(lines):
    return [{k: v for k, v in line.items() if k not in ("seconds", "kind")} for line in lines]


def assert_same(evals, others):
    assert len(evals) == len(others)
    for mine, theirs in zip(evals, others, strict=True):
        for a, b in zip(without_times(mine), without_times(theirs), strict=True):
            assert a == pytest.approx(b, rel=DIGITS)


@pytest.fixture(scope="module")
def alone(optax_promotes, tmp_path_factory):
    """Run on the one device of this process."""
    before, folder = jax.config.jax_enable_x64, tmp_path_factory.mktemp("alone")
    for name, (task, flags) in STUDIES.items():
        assert MAINS[task]([*flags, "--out", str(folder / name)]) == 1
    jax.config.update("jax_enable_x64", before)
    return folder


@pytest.fixture(scope="module")
def eight(alone, tmp_path_factory):
    """Run on eight devices. The last run began on one device, and lost its last checkpoint."""
    folder = tmp_path_factory.mktemp("eight")
    jobs = [
        (task, [*flags, "--devices", "8", "--out", str(folder / name)])
        for name, (task, flags) in STUDIES.items()
    ]
    resumed = folder / "resumed"
    shutil.copytree(alone / "two", resumed)
    last = max(int(path.name) for path in (resumed / "checkpoints").iterdir())
    shutil.rmtree(resumed / "checkpoints" / str(last))
    jobs.append(("adding", ["--out", str(resumed), "--resume", "--devices", "8"]))
    done = subprocess.run(
        [sys.executable, HERE / "on_devices.py", json.dumps(jobs)],
        cwd=ROOT,
        env=on_devices(8),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.partition("found:")[2])
    return found | {"runs": dict(zip([*STUDIES, "resumed"], found["runs"], strict=True))}


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_eight_devices_compute_what_one_does(name, alone, eight):
    code, evals = eight["runs"][name]
    assert code == 1
    assert_same(evals, read_run(alone / name / "metrics.jsonl").evals)


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(alone, eight):
    code, evals = eight["runs"]["resumed"]
    assert code == 1
    assert_same(evals, read_run(alone / "two" / "metrics.jsonl").evals)


@pytest.mark.slow
def test_devices_meet_once_an_update(eight):
    """Gradients and means take one all-reduce, and no loop over time has one."""
    inside = {k: v for k, v in eight["collectives"].items() if not k.endswith(" in 0 loops")}
    assert inside == {"all-reduce in 1 loops": 1}


@pytest.mark.slow
def test_replicas_first_then_batches(eight):
    expected = {"1": [1, 8], "2": [2, 4], "3": [1, 8], "4": [4, 2], "8": [8, 1], "12": [4, 2]}
    assert eight["meshes"] == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--devices", "0"), "--devices must be at least 1, got 0"),
        (("--devices", "9"), "--devices must be at most 1, the devices that jax finds"),
        (("--processes", "2"), "--processes must be 1 without --coordinator, got 2"),
        (("--coordinator", "a:1"), "--coordinator must be given with --processes of 2 or more"),
        (("--coordinator", "a:1", "--processes", "2", "--process-id", "2"),
         "--process-id must be 0 to 1, got 2"),
        (("--coordinator", "auto", "--processes", "2"),
         "--processes must be left out with --coordinator auto, got 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_of_error(flags, expected, tmp_path, capsys):
    assert adding(["--out", str(tmp_path / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
