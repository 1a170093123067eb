"""A strict world for every test: nothing promotes or broadcasts silently.

Whether 64-bit types are on is JAX's own switch, the environment variable `JAX_ENABLE_X64`; the
suite passes both ways. Tests that claim float64 accuracy ask for the fixture `x64`, so the claim is
proven in both modes.
"""

import ast
import gc
import importlib.util
import os

import hypothesis
import jax
import pytest

# The suite compiles some thousand small programs and runs each for microseconds. Without LLVM's
# optimisations it takes half the time, without the fusion emitters (a flag that is gone from newer
# releases) half of that. Read when the first program is compiled, so not too late here.
flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# Older releases cannot interpret kernels for GPUs, and the compiler for TPUs is not always there.
collect_ignore = ["test_hopper.py"] if jax.__version_info__ < (0, 11) else []
collect_ignore += [] if importlib.util.find_spec("libtpu") else ["test_for_tpus.py"]
# Keras chooses when it is imported, by itself TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "jax")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Each example may compile, so a deadline would measure the compiler. Derandomized: CI must not
# fail by chance on an unrelated change.
hypothesis.settings.register_profile(
    "jaxgru", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("jaxgru")


def pytest_collection_finish():
    """Tracing makes many objects that live briefly, beside a million of imported modules, through
    which Python would look again and again for what is no longer needed.
    """
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Dropped after every module. A compiled program maps regions of memory; Linux grants a process
    65,530, and beyond them it dies.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def x64():
    """64-bit types for one whole test module, whatever the environment says."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def lenient():
    """Plain JAX promotion rules, for peers that were not written for the strict ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def optax_promotes():
    """Optax's Adam raises a float to an integer power, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def no_pictures():
    """For runs whose pictures are not looked at."""
    from runs import without_pictures  # not where only the library is tested

    with without_pictures():
        yield


def pytest_collection_modifyitems(items):
    """Examples in docstrings that import another library: skipped where it is not installed."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            code = "".join(example.source for example in item.dtest.examples)
            for name in sorted(_imported(code) - {"jax", "jaxgru"}):
                # What it deprecates is not our business.
                item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
                if importlib.util.find_spec(name) is None:
                    reason = f"{name} is not installed: pip install 'jaxgru[interop]'"
                    item.add_marker(pytest.mark.skip(reason=reason))


def _imported(code):
    """The packages that some code imports."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    return found
