"""Loading never executes code, since no file or mapping is unpickled."""

import ast
import subprocess
import sys

import pytest

from runs import ROOT

FORBIDDEN = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
FOLDERS = ("jaxgru", "experiments", "benchmarks")
#: This file runs the examples of a page of this repository to time them.
EXAMPLES = "benchmarks/own.py"


def complaints(code):
    """Find what could execute its input in some code."""
    found = []
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [name for name in names if FORBIDDEN & set(name.split("."))]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called in ("eval", "exec", "compile", "__import__"):
                found.append(called)
            if called.endswith("load") and options.get("allow_pickle", "False") != "False":
                found.append("allow_pickle")
            if called in ("torch.load", "keras.models.load_model"):
                safe = {"torch.load": "weights_only", "keras.models.load_model": "safe_mode"}
                if options.get(safe[called]) != "True":
                    found.append(called)
    return found


def test_no_file_executes_what_it_reads():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 60
    found = {str(path.relative_to(ROOT)): complaints(path.read_text()) for path in files}
    assert {path: what for path, what in found.items() if what} == {EXAMPLES: ["exec", "compile"]}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import os, joblib.memory",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "eval(text)",
        "exec(text)",
    ],
)
def test_what_the_search_finds(code):
    assert complaints(code)


AUDITED = """
import sys, tempfile
from pathlib import Path

import numpy as np

import jaxgru
from experiments.common.checkpoints import Checkpoints
from onnx_examples import chained, computed
from onnx_models import draw_node, model_of
from cases import draw

folder = Path(tempfile.mkdtemp())
state = {"w": np.arange(6.0), "update": np.full(2, 3, np.int32)}
first = Checkpoints(folder / "checkpoints")
first.save(1, state, {"number": 1})
first.close()
model = model_of(draw_node("GRU")).SerializeToString()
(folder / "model.onnx").write_bytes(model)
weights = {"weight_ih_l0": np.ones((12, 3), "f4"), "weight_hh_l0": np.ones((12, 4), "f4")}
np.savez(folder / "weights.npz", **weights)

seen = []
sys.addaudithook(lambda event, args: event.startswith("pickle.") and seen.append((event, args)))

again = Checkpoints(folder / "checkpoints")
assert again.restore(state, print).facts == {"number": 1}
again.close()
jaxgru.interop.from_onnx(model)
jaxgru.interop.from_onnx(folder / "model.onnx")
jaxgru.interop.from_onnx(computed(chained))
jaxgru.interop.from_torch(weights)
with np.load(folder / "weights.npz") as opened:
    jaxgru.interop.from_torch(opened)
jaxgru.save(folder / "params", draw("mixed", dtype="float32"))
jaxgru.load(folder / "params")
jaxgru.interop.from_haiku(jaxgru.interop.to_haiku(draw("gru", dtype="float32")))
jaxgru.interop.from_linen(jaxgru.interop.to_linen(draw("gru_after", dtype="float32")))
assert not seen, seen

import pickle

pickle.loads(pickle.dumps(print))  # the hook does see one
assert seen
"""


@pytest.mark.slow
def test_nothing_is_unpickled():
    pytest.importorskip("onnx")
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n{AUDITED}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
