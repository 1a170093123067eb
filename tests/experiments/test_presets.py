"""`--preset` repeats every row of the results with one short command."""

import json
import re
from pathlib import Path

import pytest

from experiments.adding_task.__main__ import main as adding
from experiments.adding_task.settings import PRESETS as ADDING
from experiments.adding_task.settings import AddingSettings
from experiments.common.metrics import read_run
from experiments.common.settings import as_json, check
from experiments.copy_task.__main__ import main as copying
from experiments.copy_task.settings import PRESETS as COPY
from experiments.copy_task.settings import CopySettings

pytestmark = pytest.mark.usefixtures("optax_promotes", "no_pictures")
RESULTS = Path(__file__).parents[2] / "experiments" / "results"
ROWS = sorted(path.parent.name for path in RESULTS.glob("[ac]*_*/metrics.jsonl"))
AGAIN = sorted(path.name for path in (RESULTS / "seed_3").iterdir())
KINDS = {"adding_task": (AddingSettings, ADDING), "copy_task": (CopySettings, COPY)}
# A record does not have these: its place, and flags that its version did not have.
PLACE = ("out", "preset", "resume", "save_every")
LINE = r"\| `(\w+)` \| `python -m experiments\.(\w+) --preset ([\w-]+)` \|"
#: The task and the preset for the folder of each row, from the table of the results page.
COMMANDS = {row: command for row, *command in re.findall(LINE, (RESULTS / "README.md").read_text())}


def header_of(row):
    return json.loads((RESULTS / row / "metrics.jsonl").read_text().splitlines()[0])


def preset_of(task, name):
    kind, presets = KINDS[task]
    return kind(preset=name, **presets[name].settings)


def test_every_row_has_a_command():
    assert len(ROWS) >= 25
    assert sorted(COMMANDS) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_a_preset(row):
    """A preset has every setting of the committed record, and defaults for all others."""
    header = header_of(row)
    task, name = COMMANDS[row]
    assert task == header["task"]
    preset = json.loads(json.dumps(as_json(preset_of(task, name))))
    recorded = json.loads(json.dumps(as_json(KINDS[task][0]()))) | header["settings"]
    for name in PLACE:
        recorded.pop(name)
        preset.pop(name)
    assert preset == recorded


@pytest.mark.parametrize("name", AGAIN)
def test_a_run_with_another_seed_is_the_preset_and_met_its_target(name):
    """The results page names the one that did not meet it."""
    header, _, results = read_run(RESULTS / "seed_3" / name / "metrics.jsonl")
    preset = json.loads(json.dumps(as_json(preset_of(header["task"], name))))
    assert header["settings"] | {"seeds": preset["seeds"], "out": preset["out"]} == preset
    assert preset["seeds"] != header["settings"]["seeds"] == [3]
    failed = name == "urnn-1000-no-clipping"
    assert [result["verdict"] for result in results] == ["not solved" if failed else "solved"]


@pytest.mark.parametrize("task", KINDS)
def test_presets_make_sense_and_are_explained(task, capsys, monkeypatch):
    presets = KINDS[task][1]
    for name in presets:
        check(preset_of(task, name))
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        {"adding_task": adding, "copy_task": copying}[task](["--help"])
    printed = capsys.readouterr().out
    for name, preset in presets.items():
        assert re.search(rf"^- {name} +{re.escape(preset.about)}$", printed, re.M)


def test_a_preset_has_a_folder_of_its_own_and_a_short_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ("--hidden-size", "4", "--updates", "2", "--batch-size", "2", "--test-examples", "3")
    flags = ("--preset", "urnn-200-no-chrono", *small, "--seeds", "1")
    assert copying(flags) == 1
    out = Path("runs/copy_task_urnn-200-no-chrono")
    header = read_run(out / "metrics.jsonl").header
    assert header["command"] == (
        "python -m experiments.copy_task --hidden-size 4 --batch-size 2 --updates 2 "
        "--test-examples 3 --seeds 1 --preset urnn-200-no-chrono"
    )
    assert header["settings"]["chrono"] == 0
    assert header["settings"]["length"] == 200
    capsys.readouterr()
    assert copying(["--preset", "urnn-200-no-chrono", "--resume"]) == 1
    assert copying(["--preset", "urnn-200", "--resume", "--out", str(out)]) == 2
    assert "--preset is urnn-200-no-chrono in " in capsys.readouterr().err
    assert copying(["--preset", "urnn"]) == 2
    assert "error: --preset must be one of urnn-200, urnn-200-" in capsys.readouterr().err
