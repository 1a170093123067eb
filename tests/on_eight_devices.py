"""All checks over eight devices, in one process: prints JSON, {check: largest difference}.

Run by tests/test_sharding.py with XLA_FLAGS=--xla_force_host_platform_device_count=8.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgru
import recipes
from cases import draw

HIDDEN, INPUT, STEPS, BATCH = 16, 3, 5, 8  # 8 devices divide H and B, and not I or T


def weighted(hs):
    return jnp.sum(jnp.cos(jnp.arange(hs.size, dtype=hs.dtype).reshape(hs.shape)) * hs), hs


def loss(params, xs):
    return weighted(jax.vmap(jaxgru.scan, in_axes=(None, 0))(params, xs)[1])


def one(params, xs):
    return weighted(jaxgru.scan(params, xs)[1])


def difference(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(jax.device_get(x) - jax.device_get(y)))) for x, y in leaves)


def shardings(mesh, params, axis):
    """The last axis of every leaf over the devices, or the first of w_hh alone."""

    def spec(name, leaf):
        if axis == "output":
            return P(*[None] * (leaf.ndim - 1), "model")
        return P("model") if name == "w_hh" else P()

    leaves = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
    given = {k: v for k, v in leaves.items() if isinstance(v, jax.Array)}
    return dataclasses.replace(
        params, **{k: NamedSharding(mesh, spec(k, v)) for k, v in given.items()}
    )


def main():
    found = {}
    wide = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    both = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    xs = jax.random.normal(jax.random.key(1), (BATCH, STEPS, INPUT), "float64")
    kinds = {kind: draw(kind, INPUT, HIDDEN) for kind in ("gru", "gru_after", "lstm")}

    for kind, params in kinds.items():
        for what, run, data in (("one", one, xs[0]), ("batch", loss, xs)):
            gradient = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
            expected = jax.jit(gradient)(params, data)
            for axis in ("output", "input"):
                mesh = both if what == "batch" else wide
                where = shardings(mesh, params, axis)
                split = NamedSharding(mesh, P("data") if mesh is both else P())
                args = jax.device_put((params, data), (where, split))
                assert args[0].w_hh.addressable_shards[0].data.size < params.w_hh.size
                out = ((None, None), (where, split))
                actual = jax.jit(gradient, out_shardings=out)(*args)
                name = f"{kind}, {what}, {axis} axis, {'x'.join(map(str, mesh.devices.shape))}"
                found[name] = difference(actual, expected)

    recipe = recipes.run("tensor_parallel.md")
    for kind, params in kinds.items():
        gradient = jax.grad(lambda p, xs: jnp.sum(loss(p, xs)[1] ** 2))
        expected = jax.jit(gradient)(params, xs)
        used = recipes.run("tensor_parallel.md", "py", **{**recipe, "params": params, "xs": xs})
        for tree in (used["params"], used["gradients"]):
            assert tree.w_ih.addressable_shards[0].data.size == params.w_ih.size // 8
        actual = used["gradients"]
        found[f"{kind}, recipe"] = difference(actual, expected)

        def summed(params, xs):  # without check_vma: no cast, but the sum is ours
            own = jax.grad(lambda p: jnp.sum(loss(p, xs)[1] ** 2))(params)
            return lax.psum(own, "model")

        unchecked = jax.shard_map(
            summed, mesh=wide, in_specs=(P(), P("model")), out_specs=P(), check_vma=False
        )
        found[f"{kind}, shard_map, check_vma=False"] = difference(
            jax.jit(unchecked)(params, xs), expected
        )

    # What docs say of a zero carry under check_vma.
    plain = jax.shard_map(
        lambda p, xs: jax.vmap(jaxgru.scan, in_axes=(None, 0))(p, xs)[1],
        mesh=wide, in_specs=(P(), P("model")), out_specs=P("model"),
    )  # fmt: skip
    try:
        jax.jit(plain)(kinds["gru"], xs)
        refused = ""
    except TypeError as error:
        refused = str(error)
    print(json.dumps({"differences": found, "refused": refused}))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert jax.device_count() == 8
    main()
