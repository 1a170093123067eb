"""Kernels for a batch on several devices. Each device runs the kernel on its own examples."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard

from jaxgru.backends.plan import Declined


def divided(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Run the kernel on each device of the mesh in the types of its arguments.

    Only the axis of examples may be divided.

    Raises:
        Declined: the types do not say where the examples lie, as on a mesh with automatic axes, or
            another axis is divided.
    """

    def run(step: Any, weights: Any, constants: Any, carry: Any, xs: Any, reverse: bool) -> Any:
        sharding = jax.typeof(jax.tree.leaves(xs)[0]).sharding
        mesh, (time, examples, *units) = sharding.mesh, sharding.spec
        of_weights = [axis for w in weights for axis in jax.typeof(w).sharding.spec]
        explicit = all(kind is AxisType.Explicit for kind in mesh.axis_types)
        if mesh.empty or not explicit or any((time, *units, *of_weights)):
            raise Declined

        def alone(weights, constants, carry, xs):
            return kernel(step, weights, constants, carry, xs, reverse)

        fixed, moving = PartitionSpec(examples), PartitionSpec(None, examples)
        places = (PartitionSpec(), fixed, fixed, moving)
        values = [
            jax.tree.map(lambda a, place=place: reshard(a, NamedSharding(mesh, place)), part)
            for place, part in zip(places, (weights, constants, carry, xs), strict=True)
        ]
        outs = (fixed, moving)
        return jax.shard_map(alone, mesh=mesh, in_specs=places, out_specs=outs, check_vma=False)(
            *values
        )

    return run
