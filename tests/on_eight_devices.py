"""Run all checks over eight devices in one process, and print JSON: {check: result}.

tests/test_sharding.py runs this with XLA_FLAGS=--xla_force_host_platform_device_count=8. A check
runs a function of (params, *data) with data split over a mesh, in one of the ways that JAX has, and
compares with one device. Its result has the largest difference, the collective operations inside
and outside the time loop, and the operations of one of eight devices over those of one alone.
"""

import contextlib
import dataclasses
import json
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgru
import own_gru
import recipes
from benchmarks import collectives
from benchmarks.collectives import count
from cases import BUILT_IN, LAYERS, draw, planned, weigh
from jaxgru import diagnostics
from jaxgru.backends import TPU_KERNEL, tpu

HIDDEN, INPUT, STEPS, BATCH = 16, 3, 5, 128  # 8 divides H and B, but not I or T

AUTOMATIC, EXPLICIT = "automatic axes", "explicit axes"
MANUAL, MANUAL_SET = "shard_map", "shard_map, set_mesh"
WAYS = (AUTOMATIC, EXPLICIT, MANUAL, MANUAL_SET)


class Check(NamedTuple):
    name: str
    params: Any
    run: Any
    """(params, *data) -> results, a batch each."""
    data: tuple
    ways: tuple = (AUTOMATIC, EXPLICIT, MANUAL_SET)
    gradient: bool = True
    """Whether that is looked at too."""


def batched(run, **options):
    """Make a function of one sequence a function of a batch, with data over axis 0."""

    def many(params, *data):
        return jax.vmap(partial(run, params), **options)(*data)

    return many


def scan(params, xs, *rest, reverse=False, checkpoint=None):
    carry, length, reset, reset_carry = rest or (None,) * 4
    return jaxgru.scan(
        params, xs, carry, length=length, reset=reset, reset_carry=reset_carry,
        reverse=reverse, checkpoint=checkpoint,
    )  # fmt: skip


def one_step(params, xs, carry):
    return jaxgru.step(params, carry, xs[0])


def dropped(params, xs, key):
    return jaxgru.scan(params, xs, dropout=0.5, key=key)


def looped(params, xs, carry, length, reset, reset_carry):
    def step(h, x):
        h = jaxgru.gru_step(params, h, x)
        return h, h

    marks = {"length": length, "reset": reset, "reset_carry": reset_carry}
    return jaxgru.loop(step, carry, xs, **marks)


def newton(params, xs):
    return jaxgru.newton_scan(params, xs)[:2]


def looked_at(params, xs):
    norms = diagnostics.gradient_norms(lambda hs: jnp.sum(hs[-1] ** 2), params, xs)
    memory = diagnostics.memory_gradient(params, xs)
    spectrum = diagnostics.lyapunov_spectrum(params, xs, warm_up=1)
    return norms, memory, spectrum.exponents, diagnostics.state_jacobians(params, xs)


@dataclasses.dataclass(frozen=True)
class BentParams:
    """Of a cell whose equations contain numbers, and functions with derivatives of their own."""

    w_ih: Any
    w_hh: Any


def bent_step(params, carry, parts, products):
    del params
    (h, _), (x,) = carry, parts
    a, b = products[0](h)
    (n,) = products[1](jax.nn.relu(x + a))
    h = 0.5 * jnp.where(n > 0, 1.0, 0.5) * h + jax.nn.softplus(n + b)
    return (h, jnp.full_like(h, 0.1)), h


own_gru.register(BentParams, step=bent_step, **own_gru.TWO_PRODUCTS)


def bent():
    like = draw("own_gru", INPUT, HIDDEN, "float64")
    return BentParams(like.w_ih[:, :1], 0.2 * like.w_hh)


def checks():
    kinds = {kind: draw(kind, INPUT, HIDDEN, "float64") for kind in (*BUILT_IN, *LAYERS, "own_gru")}
    kinds["bent"] = bent()
    keys = jax.random.split(jax.random.key(1), 5)
    xs = jax.random.normal(keys[0], (BATCH, STEPS, INPUT))
    lengths = jax.random.randint(keys[1], (BATCH,), 1, STEPS + 1)
    resets = jax.random.bernoulli(keys[2], 0.3, (BATCH, STEPS))
    for kind, params in kinds.items():
        carry = jax.tree.map(
            lambda a: jax.random.normal(keys[3], (BATCH, *a.shape)), jaxgru.initial_carry(params)
        )
        marked = (xs, carry, lengths, resets, carry)
        yield Check(f"{kind}, marked", params, batched(scan), marked)
        if kind in ("gru_after", "stack"):
            yield Check(f"{kind}, plain", params, batched(scan), (xs,), WAYS)
            yield Check(f"{kind}, step", params, batched(one_step), (xs, carry))
        if kind == "gru":
            yield Check("gru, loop", params, batched(looped), marked, gradient=False)
    back = batched(partial(scan, reverse=True))
    yield Check("lstm, reverse", kinds["lstm"], back, (xs,))
    yield Check("gru, Newton", kinds["gru"], batched(newton), (xs,))
    yield Check("own_gru, Newton", kinds["own_gru"], batched(newton), (xs,))
    segments = batched(partial(scan, checkpoint=4))
    yield Check("gru, checkpoint", kinds["gru"], segments, (xs,))
    masks = jax.random.split(keys[4], BATCH)
    yield Check("stack, dropout", kinds["stack"], batched(dropped), (xs, masks))
    for kind in ("lstm", "own_gru"):
        yield Check(f"{kind}, diagnostics", kinds[kind], batched(looked_at), (xs,), gradient=False)
    named = batched(scan, spmd_axis_name="x")
    yield Check("gru, spmd_axis_name", kinds["gru"], named, (xs,), (AUTOMATIC,))
    twice = batched(batched(scan))
    pairs = xs.reshape(BATCH, 1, STEPS, INPUT).repeat(3, 1)
    yield Check("gru, nested batches", kinds["gru"], twice, (pairs,))
    many = jax.vmap(lambda k: jaxgru.gru_init(k, INPUT, HIDDEN, dtype="float64"))(masks)
    gradient = jax.grad(lambda params, xs: weigh(scan(params, xs)))
    for name, run in (("outputs", scan), ("gradients", gradient)):
        each = jax.vmap(lambda _, params, xs, run=run: run(params, xs), in_axes=(None, 0, 0))
        yield Check(f"gru, population, {name}", {}, each, (many, xs), gradient=False)

    def draw_one(_, key):
        return jaxgru.gru_init(key, INPUT, HIDDEN, dtype="float64")

    drawn = jax.vmap(draw_one, in_axes=(None, 0))
    yield Check("gru, init", {}, drawn, (masks,), gradient=False)


#: Plans for every method of the loops, with sizes that are small enough for a test.
SWITCHES: dict[str, dict[str, Any]] = {
    "inputs in the loop": {"hoisted": 0},
    "stretches": {"hoisted": 0, "in_loop": 0, "rows": 32},
    "stretches back": {"hoisted": 0, "rows": 32, "backward": 1},
    "columns": {"wide": 1, "wide_batch": 1},
    "wide tangent": {"wide_tangent": 1},
    "gates saved": {"saved": True},
    "as on a GPU": {"platform": "cuda"},
    "as on a GPU, gates saved": {"platform": "cuda", "saved": True},
}


def place(way, axes=("x",), shape=(8,)):
    """Return (mesh, the context of the call)."""
    kind = AxisType.Explicit if way == EXPLICIT else AxisType.Auto
    mesh = jax.make_mesh(shape, axes, axis_types=(kind,) * len(axes))
    inside = jax.set_mesh(mesh) if way in (EXPLICIT, MANUAL_SET) else contextlib.nullcontext()
    return mesh, inside


def difference(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(jax.device_get(x) - jax.device_get(y)))) for x, y in leaves)


def gradient_of(run):
    return jax.grad(lambda params, *data: weigh_rows(run(params, *data)))


def weigh_rows(results):
    """Like `weigh`, with the same weights for every example on any device."""
    return jnp.sum(jax.vmap(weigh)(results))


def alone(run, check):
    """Return (results, operations) on one device."""
    compiled = jax.jit(run).lower(check.params, *check.data).compile()
    return compiled(check.params, *check.data), compiled.cost_analysis()["flops"]


def examine(check, run, expected, way, gradient):
    expected, operations = expected
    mesh, inside = place(way)
    params = jax.device_put(check.params, NamedSharding(mesh, P()))
    data = jax.device_put(check.data, NamedSharding(mesh, P("x")))
    if way in (MANUAL, MANUAL_SET):
        given = {} if way == MANUAL_SET else {"mesh": mesh}
        specs = (P(), *(P("x") for _ in data))
        out = P() if gradient else P("x")
        run = jax.shard_map(run, in_specs=specs, out_specs=out, **given)
    with inside:
        compiled = jax.jit(run).lower(params, *data).compile()
    actual = compiled(params, *data)
    sent = count(compiled.as_text())
    split = all("x" in leaf.sharding.spec[:1] for leaf in jax.tree.leaves(actual))
    return {
        "difference": difference(actual, expected),
        "loop": sent.loop,
        "outside": sent.outside,
        "work": compiled.cost_analysis()["flops"] / operations,
        "split": gradient or split,
    }


def of_types():
    """On explicit axes the type of the outputs has the batch axis, even without `jit`."""
    params, xs = draw("gru", INPUT, HIDDEN), jnp.ones((BATCH, STEPS, INPUT))
    found = {}
    for way in (AUTOMATIC, EXPLICIT):
        mesh, inside = place(way)
        with inside:
            on_mesh = jax.device_put(params, NamedSharding(mesh, P()))
            split = jax.device_put(xs, NamedSharding(mesh, P("x")))
            _, hs = batched(scan)(on_mesh, split)
        typed = jax.typeof(hs).sharding.spec[0] == "x"
        found[way] = typed if way == EXPLICIT else hs.sharding.spec[0] == "x"
    return found


def of_layouts():
    """Divide replicas and batch, params, or the hidden axis: {layout: result}."""
    found = {}
    xs = jax.random.normal(jax.random.key(1), (BATCH, STEPS, INPUT))

    many = jax.vmap(lambda k: jaxgru.gru_init(k, INPUT, HIDDEN, dtype="float64"))(
        jax.random.split(jax.random.key(0), 2)
    )
    each = jax.vmap(gradient_of(batched(scan)), in_axes=(0, None))
    expected = jax.jit(each)(many, xs)
    for way in (AUTOMATIC, EXPLICIT):
        mesh, inside = place(way, ("replica", "batch"), (2, 4))
        with inside:
            args = (
                jax.device_put(many, NamedSharding(mesh, P("replica"))),
                jax.device_put(xs, NamedSharding(mesh, P("batch"))),
            )
            compiled = jax.jit(each).lower(*args).compile()
        sent = count(compiled.as_text())
        found[f"replicas times batch, {way}"] = {
            "difference": difference(compiled(*args), expected),
            "loop": sent.loop,
            "outside": sent.outside,
        }

    wide, both = place(AUTOMATIC, ("model",))[0], place(AUTOMATIC, ("data", "model"), (2, 4))[0]
    runs = {
        "one sequence": (wide, P(), xs[0], lambda p, x: weigh(scan(p, x))),
        "batch over data": (both, P("data"), xs, lambda p, x: weigh_rows(batched(scan)(p, x))),
        "batch in parts": (wide, P("model"), xs, lambda p, x: weigh_rows(batched(scan)(p, x))),
    }
    for kind in ("gru", "gru_after", "lstm"):
        params = draw(kind, INPUT, HIDDEN)
        for name, (mesh, spec, data, run) in runs.items():
            gradient = jax.value_and_grad(run, argnums=(0, 1))
            expected = jax.jit(gradient)(params, data)
            for axis in ("all weights, output axis", "w_hh, input axis"):
                where = collectives.place(params, mesh, collectives.LAYOUTS[axis].specs)
                split = NamedSharding(mesh, spec)
                args = jax.device_put((params, data), (where, split))
                assert args[0].w_hh.addressable_shards[0].data.size < params.w_hh.size
                compiled = jax.jit(gradient, out_shardings=(None, (where, split))).lower(*args)
                actual = compiled.compile()(*args)
                found[f"{kind}, {axis}, {name}"] = {"difference": difference(actual, expected)}

        def summed(params, xs):  # without checks, the caller must sum over devices
            own = gradient_of(batched(scan))(params, xs)
            return jax.lax.psum(own, "model")

        unchecked = jax.shard_map(
            summed, mesh=wide, in_specs=(P(), P("model")), out_specs=P(), check_vma=False
        )
        expected = jax.jit(gradient_of(batched(scan)))(params, xs)
        actual = jax.jit(unchecked)(params, xs)
        found[f"{kind}, shard_map without checks"] = {"difference": difference(actual, expected)}
    return found


def of_kernels():
    """Interpret a kernel: {way and direction: result, and the shapes of carries that it got}."""
    params = draw("gru_after", INPUT, HIDDEN, "float32")
    xs = jax.random.normal(jax.random.key(1), (BATCH, STEPS, INPUT), "float32")
    tpu.pl.pallas_call = partial(pl.pallas_call, interpret=True)
    shapes, found = [], {}

    def kernel(step, weights, constants, carry, *rest):
        shapes.append(jax.tree.leaves(carry)[0].shape)
        return tpu.scan(step, weights, constants, carry, *rest, exact=True)

    for gradient, run in enumerate((batched(scan), gradient_of(batched(scan)))):
        check = Check("kernel", params, run, (xs,))
        with planned(saved=False):
            expected = alone(run, check)
        for way in (AUTOMATIC, EXPLICIT, MANUAL_SET):
            shapes.clear()
            with planned("cpu", False, **TPU_KERNEL._replace(kernel=lambda: kernel)._asdict()):
                result = examine(check, run, expected, way, gradient)
            name = f"{way}, {'gradient' if gradient else 'forward'}"
            found[name] = result | {"shapes": list(shapes)}
    tpu.pl.pallas_call = pl.pallas_call
    return found


def of_errors():
    """The errors for bad input: {case: message}."""
    params, xs = draw("gru", INPUT, HIDDEN), jnp.ones((BATCH, STEPS, INPUT))
    found = {}
    for way in WAYS:
        mesh, inside = place(way)
        with inside:
            try:
                odd = xs[:12]
                if way in (MANUAL, MANUAL_SET):
                    run = jax.shard_map(
                        batched(scan), mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x")
                    )
                    jax.jit(run)(params, odd)
                else:
                    jax.device_put(odd, NamedSharding(mesh, P("x")))
            except ValueError as error:
                found[f"12 examples, {way}"] = str(error)
    halves = [jax.make_mesh((4,), ("x",), devices=jax.devices()[k : k + 4]) for k in (0, 4)]
    one, other = (NamedSharding(mesh, P()) for mesh in halves)
    try:
        jax.jit(batched(scan))(jax.device_put(params, one), jax.device_put(xs, other))
    except ValueError as error:
        found["params and batch on different meshes"] = str(error)
    return found


def of_recipes():
    """Compare the recipes of the documentation with one device: {page: difference}."""
    found = {}
    for page in ("recipes/tensor_parallel.md", "recipes/many_devices.md"):
        params = draw("gru", INPUT, HIDDEN, "float32")
        xs = jax.random.normal(jax.random.key(1), (BATCH, STEPS, INPUT), "float32")
        used = recipes.run(page, params=params, xs=xs)
        found[page] = difference(used["gradients"], jax.jit(jax.grad(used["loss"]))(params, xs))
    return found


def main():
    found = {"checks": {}}

    def add(check):
        for gradient in (False, True) if check.gradient else (False,):
            run = gradient_of(check.run) if gradient else check.run
            expected = alone(run, check)
            for way in check.ways:
                name = f"{check.name}, {way}, {'gradient' if gradient else 'forward'}"
                found["checks"][name] = examine(check, run, expected, way, gradient)

    with planned(saved=False):  # one device would save what an eighth of the batch recomputes
        for check in checks():
            add(check)
    plain = next(check for check in checks() if check.name == "gru_after, plain")
    # There are two stretches of eight steps, the shortest possible, and a rest.
    xs = jax.random.normal(jax.random.key(2), (BATCH, 19, INPUT))
    plain = plain._replace(data=(xs,))
    for name, changes in SWITCHES.items():
        # On a mesh with automatic axes, the backward pass is one stretch.
        ways = (MANUAL_SET,) if "backward" in changes else (AUTOMATIC, EXPLICIT, MANUAL_SET)
        with planned(**({"saved": False} | changes)):
            add(plain._replace(name=name, ways=ways))
    saved = next(check for check in checks() if check.name == "bent, marked")
    with planned(saved=True):
        add(saved._replace(name="bent, gates saved"))
    found |= {"types": of_types(), "layouts": of_layouts(), "errors": of_errors()}
    with jax.enable_x64(False):
        found |= {"recipes": of_recipes(), "kernels": of_kernels()}
    print(json.dumps(found))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert jax.device_count() == 8
    main()
