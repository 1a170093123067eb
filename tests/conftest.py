"""Settings for all tests, in which dtypes are not promoted and ranks do not broadcast silently.

The environment variable `JAX_ENABLE_X64` of JAX switches 64-bit types on. The tests pass in both
modes. Tests that claim float64 accuracy use the fixture `x64`, so they prove it in both modes.
"""

import ast
import gc
import importlib.util
import os

import hypothesis
import jax
import pytest

# The suite compiles some thousand small programs and runs each for microseconds. It takes half the
# time without the optimizations of LLVM, and half of that without the fusion emitters. Newer
# releases of JAX have no such flag. XLA reads the flags when it compiles the first program.
flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# Older releases cannot interpret kernels for GPUs, and the compiler for TPUs may be missing.
collect_ignore = ["test_hopper.py"] if jax.__version_info__ < (0, 11) else []
collect_ignore += [] if importlib.util.find_spec("libtpu") else ["test_for_tpus.py"]
# Keras chooses a back end when it is imported, and its default is TensorFlow.
os.environ.setdefault("KERAS_BACKEND", "jax")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Each example may compile, so a deadline would measure the compiler. The examples are not random,
# since CI must not fail by chance after an unrelated change.
hypothesis.settings.register_profile(
    "jaxgru", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("jaxgru")


def pytest_collection_finish():
    """Make the garbage collector run less often.

    Tracing makes many objects that live briefly, and the imported modules have a million. The
    collector would search all of them again and again.
    """
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Drop compiled programs after every module.

    A compiled program maps regions of memory. Linux allows a process 65,530 of them, and ends it
    when it needs more.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def x64():
    """Switch 64-bit types on for one test module, whatever the environment says."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def lenient():
    """Use the standard promotion rules of JAX, for peers that were not written for strict ones."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def optax_promotes():
    """Allow standard promotion: the Adam of optax raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def no_pictures():
    """Draw no pictures, for tests that do not look at them."""
    from runs import without_pictures  # not imported if only the library is tested

    with without_pictures():
        yield


def pytest_collection_modifyitems(items):
    """Skip examples in docstrings that import a library which is not installed."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            code = "".join(example.source for example in item.dtest.examples)
            for name in sorted(_imported(code) - {"jax", "jaxgru"}):
                # Deprecations of other libraries do not matter here.
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
