"""Compile programs with the kernel for four TPUs, which need not exist, and print JSON.

tests/test_for_tpus.py runs this with the environment that libtpu needs. For each case it prints the
kernels and the collective operations of the program.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxgru
from jaxgru import backends

STEPS, BATCH, INPUT = 50, 32, 16
SENDS = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def forward(params, xs):
    return jax.vmap(lambda xs: jaxgru.scan(params, xs)[1], in_axes=1, out_axes=1)(xs)


def gradient(params, xs):
    return jax.grad(lambda *arguments: jnp.sum(forward(*arguments) ** 2))(params, xs)


def compiled(devices, run, size, dtype, manual=False):
    mesh = Mesh(np.array(devices), ("x",), axis_types=(AxisType.Explicit,))
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "x"))
    params = jax.eval_shape(lambda: jaxgru.gru_init(jax.random.key(0), INPUT, size, dtype=dtype))
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), params)
    xs = jax.ShapeDtypeStruct((STEPS, BATCH, INPUT), dtype, sharding=split)
    if manual:
        out = P() if run is gradient else P(None, "x")
        run = jax.shard_map(run, in_specs=(P(), P(None, "x")), out_specs=out)
    with jax.set_mesh(mesh):
        text = jax.jit(run).trace(params, xs).lower().compile().as_text()
    return {
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "sends": re.findall(SENDS, text),
    }


def main():
    backends.PLANS["tpu"] = backends.TPU_KERNEL
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    found = {}
    for run in (forward, gradient):
        for name, options in {
            "explicit axes": {"size": 128, "dtype": "float32"},
            "shard_map": {"size": 128, "dtype": "float32", "manual": True},
            "any size, float16": {"size": 10, "dtype": "float16"},
            "512 units in bfloat16": {"size": 512, "dtype": "bfloat16"},
        }.items():
            found[f"{name}, {run.__name__}"] = compiled(devices, run, **options)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
