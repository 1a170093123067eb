"""What computes a recurrence on which platform: the one place that says so."""

import math
import sys
from typing import Any

import jax

from jaxgru.backends.loop import Plan

#: Of `jax.default_matmul_precision`: those that the kernel is at least as exact as.
PRECISIONS = (None, "default", "fastest", "bfloat16", "tensorfloat32")


def hopper_kernel(*arguments: Any) -> Any:
    """`jaxgru.backends.hopper.scan`, or None: on another GPU, or for more exact products."""
    config: Any = jax.config
    device: Any = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    hopper = capability == "9.0" if capability else "H100" in device.device_kind
    if not hopper or config.jax_default_matmul_precision not in PRECISIONS:
        return None
    from jaxgru.backends.hopper import scan  # needs parts of jax that only a GPU needs

    return scan(*arguments)


#: docs/performance.md has the measurements, docs/accelerators.md those for a GPU and a TPU.
CPU = Plan(
    in_loop=64,
    hoisted=7_000_000,
    wide=768,
    wide_tangent=512,
    rows=512,
    forward=0,
    backward=2**17,
    unroll=1,
    gates_in_loop=True,
)
#: A step costs its launches, so whatever can be computed for all of time at once is, as long as an
#: array [rows, H] of a stretch takes at most 64 MB in float32, or 256 MB in the backward pass.
GPU = Plan(
    in_loop=-1,
    hoisted=0,
    wide=math.inf,
    wide_tangent=math.inf,
    rows=512,
    forward=2**24,
    backward=2**26,
    unroll=8,
    gates_in_loop=False,
)
#: The same with a kernel. It is compiled and interpreted, and has not run on a GPU yet: until then,
#: whoever wants it sets PLANS["cuda"] to this.
HOPPER = GPU._replace(kernel=hopper_kernel)
#: By the estimates of the TPU's compiler.
TPU = CPU._replace(in_loop=16, hoisted=15_000_000, gates_in_loop=False, merged=False)
PLANS = {"cpu": CPU, "cuda": GPU, "rocm": GPU, "tpu": TPU}


def plan(platform: str | None, context: Any) -> Plan:
    """How to run what is lowered for a platform, in the context of `jax.interpreters.mlir`.

    None stands for the platforms that are not named here.
    """
    found = PLANS[platform or "cpu"]
    axes = context.module_context.axis_context
    if hasattr(axes, "manual_axes"):
        local = set(axes.manual_axes) == set(axes.mesh.axis_names)
    else:
        local = getattr(axes, "num_devices", None) == 1
    return found if local else _divided(found)


def portable() -> Plan:
    """How to run where neither the platform nor the devices are known yet."""
    return _divided(PLANS["cpu"])


def _divided(plan: Plan) -> Plan:
    """For arrays that may lie on several devices.

    The axes of a batch are not merged, since the result would have to be gathered. The backward
    pass is one stretch, since weight gradients are summed over the devices once a stretch.
    """
    return plan._replace(merged=False, backward=sys.maxsize, kernel=None)
