"""Exported programs: symbolic sizes, several platforms in one, and no jaxgru where they run."""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxgru
import recipes
from cases import (
    CELLS,
    KINDS,
    assert_close,
    assert_same,
    draw,
    draw_carry,
    draw_xs,
    only,
    planned,
    slow,
)
from jaxgru.backends import CPU
from jaxgru.backends.plan import Declined

PLATFORMS = ("cpu", "cuda", "tpu")
#: For two programs of the same float32 sums of some hundred terms, relative to the largest number.
TOL = 2e-5


def of_batch(params, xs, lengths, reset, **options):
    """Return everything that `scan` returns."""

    def one(xs, length, reset):
        return jaxgru.scan(params, xs, length=length, reset=reset, **options)

    return jax.vmap(one)(xs, lengths, reset)


def gradient(params, xs, *rest, **options):
    def loss(params, xs):
        leaves = jax.tree.leaves(of_batch(params, xs, *rest, **options))
        return functools.reduce(jnp.add, [jnp.sum(leaf**2) for leaf in leaves])

    return jax.grad(loss, argnums=(0, 1))(params, xs)


def exported(run, params):
    """Export a function of a batch, with symbolic sizes for all platforms, to bytes and back."""
    batch, time = export.symbolic_shape("batch, time")
    inputs = jax.tree.leaves(params)[0].shape[0]
    xs = jax.ShapeDtypeStruct((batch, time, inputs), np.float32)
    lengths = jax.ShapeDtypeStruct((batch,), np.int32)
    reset = jax.ShapeDtypeStruct((batch, time), np.bool)
    program = export.export(jax.jit(run), platforms=PLATFORMS)(params, xs, lengths, reset)
    return export.deserialize(program.serialize())


def batch_of(count, steps, inputs):
    rng = np.random.default_rng(count)
    lengths = np.asarray(rng.permutation(np.linspace(0, steps, count)), np.int32)
    xs = np.asarray(rng.standard_normal((count, steps, inputs)), np.float32)
    return xs, lengths, rng.random((count, steps)) < 0.3


def assert_same_numbers(run, params, sizes=((3, 7), (1, 1))):
    program = exported(run, params)
    inputs = jax.tree.leaves(params)[0].shape[0]
    for count, steps in sizes:
        arguments = (params, *batch_of(count, steps, inputs))
        # If the plan for known sizes cuts time into stretches, the order of sums differs.
        actual, expected = jax.jit(program.call)(*arguments), jax.jit(run)(*arguments)
        largest = max(1, *(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected)))
        assert_close(actual, expected, TOL * largest)


@pytest.mark.parametrize("reverse", [False, slow(True)])
@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (run, kind) if (run, kind) in ((of_batch, "mixed"), (gradient, "lstm")) else slow(run, kind)
        for run in (of_batch, gradient)
        for kind in KINDS
    ],
)
def test_open_sizes(run, kind, reverse):
    params = draw(kind, dtype="float32")
    assert_same_numbers(functools.partial(run, reverse=reverse), params)


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [slow(3), 40])
@pytest.mark.parametrize("kind", only(("gru_after", "lstm"), CELLS))
@pytest.mark.parametrize("run", [of_batch, gradient])
def test_open_sizes_of_wide_inputs(kind, run, inputs):
    """There are more inputs than a CPU projects step by step, and saved gates."""
    # The network is not chaotic.
    params = jax.tree.map(lambda a: a / 8, draw(kind, inputs, 80, "float32"))
    assert_same_numbers(run, params, sizes=((3, 7), (2, 300)))


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [3, slow(40)])
@pytest.mark.parametrize("kind", only(("gru",), CELLS))
@pytest.mark.parametrize("run", [slow(of_batch), gradient])
def test_open_sizes_of_wide_cells(kind, run, inputs):
    """From H = 768 on, a CPU keeps 32 states as columns, but an open number of them as rows."""
    params = jax.tree.map(lambda a: a / 16, draw(kind, inputs, 800, "float32"))
    assert_same_numbers(run, params, sizes=((32, 3),))


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [slow(False), True])
def test_checkpoints_of_an_open_length(reverse):
    """The last segment is padded with steps that change nothing."""
    run = functools.partial(gradient, checkpoint=3, reverse=reverse)
    assert_same_numbers(run, draw("gru_after", dtype="float32"), ((2, 2), (2, 7)))


@pytest.mark.slow
def test_checkpoints_without_marks():
    """As above, but only the padding marks steps that are not real."""

    def run(params, xs, *_):
        return jax.grad(lambda params: jnp.sum(jaxgru.scan(params, xs[0], checkpoint=3)[0]))(params)

    assert_same_numbers(run, draw("gru", dtype="float32"), ((1, 4), (1, 6)))


@pytest.mark.slow
def test_open_numbers_of_networks_and_of_lengths():
    """A population, and a length that is a number or computed from a symbolic size."""
    params = draw("stack", dtype="float32")
    many = jax.tree.map(lambda a: jnp.stack([a, a / 2, -a]), params)
    count, time = export.symbolic_shape("count, time")

    def run(params, xs):
        short = jax.vmap(functools.partial(jaxgru.scan, length=2))(params, xs)
        return short, jax.vmap(functools.partial(jaxgru.scan, length=xs.shape[1] - 1))(params, xs)

    types = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype), many)
    xs = jax.ShapeDtypeStruct((count, time, 3), np.float32)
    program = export.export(jax.jit(run), platforms=PLATFORMS)(types, xs)
    xs = batch_of(3, 9, 3)[0]
    assert_close(program.call(many, xs), run(many, xs), TOL)


def test_a_negative_length_is_refused_whatever_the_size():
    xs = jax.ShapeDtypeStruct(export.symbolic_shape("time, 3"), np.float32)
    run = jax.jit(lambda xs: jaxgru.scan(draw("gru", dtype="float32"), xs, length=-1))
    with pytest.raises(ValueError, match=r"an integer in \[0, time\]"):
        export.export(run)(xs)


def test_newton_scan_needs_the_number_of_steps():
    params = draw("gru", dtype="float32")
    run = jax.jit(lambda xs: jax.vmap(lambda xs: jaxgru.newton_scan(params, xs))(xs))
    for shape in ("batch, time, 3", "batch, 5, 3"):
        xs = jax.ShapeDtypeStruct(export.symbolic_shape(shape), np.float32)
        if "time" in shape:
            with pytest.raises(ValueError, match=r"newton_scan: xs must be of a known length"):
                export.export(run)(xs)
        else:
            data = export.export(run)(xs).serialize()
            info = export.deserialize(data).call(batch_of(2, 5, 3)[0])[2]
            assert isinstance(info, jaxgru.NewtonInfo)
            assert info.converged.all()


def test_each_platform_has_its_own_program():
    """One artifact has the products of each platform, and their numbers differ."""
    params = draw("gru_after", 3, 256, "float32")
    batch, time = export.symbolic_shape("batch, time")
    xs, reset = ((batch, time, 3), np.float32), ((batch, time), np.bool)
    types = [jax.ShapeDtypeStruct(*of) for of in (xs, ((batch,), np.int32), reset)]

    def products(*platforms):
        program = export.export(jax.jit(gradient), platforms=platforms)(params, *types)
        return program.mlir_module().count("stablehlo.dot_general")

    each = list(map(products, PLATFORMS))
    assert products(*PLATFORMS) == sum(each)
    assert len(set(each)) > 1


def test_a_kernel_is_for_known_sizes():
    asked, params = [], draw("gru", dtype="float32")

    def kernel():
        asked.append("how it runs")
        raise Declined

    with planned(kernel=kernel, loop=CPU):
        jax.jit(of_batch).lower(params, *batch_of(2, 5, 3))
        assert asked
        asked.clear()
        exported(gradient, params)
    assert not asked


@pytest.mark.parametrize("kind", only(("gru", "mixed"), KINDS))
def test_params_and_carries_as_arguments(kind):
    """If jaxgru is imported, an exported program takes and returns its classes."""
    params, xs = draw(kind, dtype="float32"), draw_xs(dtype="float32")
    carry = draw_carry(params)
    data = export.export(jax.jit(jaxgru.scan))(params, xs, carry).serialize()
    assert_same(
        export.deserialize(data).call(params, xs, carry), jax.jit(jaxgru.scan)(params, xs, carry)
    )


def test_the_page_where_jaxgru_is_not(tmp_path):
    """The last block of docs/recipes/export.md runs in a new process that cannot import jaxgru."""
    pytest.importorskip("safetensors")
    *ours, theirs = recipes.blocks("recipes/export.md")
    names = {"folder": tmp_path}
    for block in ours:
        exec(compile(block, "export.md", "exec"), names)
    code = f"""
import sys
sys.modules["jaxgru"] = None
from pathlib import Path
folder = Path({str(tmp_path)!r})
{theirs}
np.savez(folder / "found", ys=ys, carry=carry[-1], **grads)
try:
    serve(old, x) if (old := carry) and serve(carry, x) else None
except (RuntimeError, ValueError) as error:
    assert "delete" in str(error), error
else:
    raise AssertionError("the carry was not donated")
assert not [name for name in sys.modules if name.startswith("jaxgru.")]
"""
    command = [sys.executable, "-I", "-c", code]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr

    params, outputs = names["params"], names["outputs"]
    xs, lengths = np.ones((5, 33, 3), np.float32), np.array([33, 20, 7, 1, 0], np.int32)
    weights = jaxgru.to_dict(params)
    grads = jax.grad(lambda weights: (outputs(weights, xs, lengths) ** 2).mean())(weights)
    last = jax.vmap(jaxgru.scan, (None, 0))(params, xs)[1][:, -1]
    with np.load(Path(tmp_path) / "found.npz") as found:
        assert_close(found["ys"], outputs(weights, xs, lengths), TOL)
        assert_close(found["carry"], last, TOL)
        assert_close({name: found[name] for name in grads}, grads, TOL)
