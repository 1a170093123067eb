"""The choice of how each platform computes a recurrence. It is made only here."""

import math
import sys
from functools import partial
from typing import Any

import jax

from jaxgru.backends.plan import Declined, Plan

#: The values of `jax.default_matmul_precision` that the products of a kernel satisfy by default.
#: On a GPU these products are at least as exact as TF32. On a TPU their operands are bfloat16.
GPU_DEFAULT = (None, "default", "fastest", "bfloat16", "tensorfloat32")
TPU_DEFAULT = (None, "default", "fastest", "bfloat16")


def hopper_kernel() -> Any:
    """`jaxgru.backends.hopper.scan`, if a Hopper GPU and the modules that the kernel needs exist.

    Otherwise it raises `Declined`, and also if the precision setting asks for more exact products
    than the kernel computes.
    """
    device = _device()
    capability = getattr(device, "compute_capability", None)
    hopper = capability == "9.0" if capability else "H100" in device.device_kind
    known = jax.__version_info__ < (0, 13)  # Pallas for GPUs is still changing
    if not (hopper and known) or _precision() not in GPU_DEFAULT:
        raise Declined
    try:
        from jaxgru.backends.hopper import scan  # imports parts of jax that only a GPU needs
    except ImportError as error:  # absl-py may be missing
        raise Declined from error
    return scan


def tpu_kernel() -> Any:
    """`jaxgru.backends.tpu.scan`. It raises `Declined` if no TPU is known to be present."""
    if not _device().device_kind.startswith("TPU"):
        raise Declined
    from jaxgru.backends.tpu import scan  # imports parts of jax that only a TPU needs

    return partial(scan, exact=_precision() not in TPU_DEFAULT)


def _device() -> Any:
    """The device for which a program is compiled. It may be described only, and not present."""
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def _precision() -> str | None:
    config: Any = jax.config
    return config.jax_default_matmul_precision


#: The measurements are in docs/performance: cpu.md, and accelerators.md for a GPU and a TPU.
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
    batch_first=True,
)
#: Kernel launches dominate the time of a step. So everything that can be computed for the whole
#: sequence at once is, as long as an array [rows, H] of a stretch takes at most 64 MB in float32,
#: or 256 MB in the backward pass.
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
    packed=True,
)
#: These numbers follow estimates of the TPU's compiler.
TPU = CPU._replace(
    in_loop=16,
    hoisted=15_000_000,
    backward=2**20,
    gates_in_loop=False,
    merged=False,
    batch_first=False,
)
#: The plan of a GPU, with the kernel for Hopper.
HOPPER = GPU._replace(kernel=hopper_kernel, loop=GPU)
TPU_KERNEL = TPU._replace(
    in_loop=-1, wide=math.inf, forward=2**24, backward=2**26, kernel=tpu_kernel, loop=TPU
)
#: The kernel for TPUs has been compiled and interpreted, but has not run on a device yet. Until it
#: has, set PLANS["tpu"] to TPU_KERNEL to use it.
PLANS = {"cpu": CPU, "cuda": HOPPER, "rocm": GPU, "tpu": TPU}


def plan(platform: str | None, context: Any) -> Plan:
    """The plan for a platform, in the lowering context of `jax.interpreters.mlir`.

    None stands for the platforms that are not named here.
    """
    found = PLANS[platform or "cpu"]
    if context.module_context.lowering_parameters.for_export:
        found = found.loop or found  # an exported program may run on another GPU
    axes = context.module_context.axis_context
    if hasattr(axes, "manual_axes"):
        local = set(axes.manual_axes) == set(axes.mesh.axis_names)
    else:
        local = getattr(axes, "num_devices", None) == 1
    return found if local else _divided(found)


def portable() -> Plan:
    """The plan for when neither the platform nor the devices are known yet."""
    return _divided(PLANS["cpu"])


def _divided(plan: Plan) -> Plan:
    """The plan for arrays that may lie on several devices.

    It does not merge the axes of a batch, since the result would have to be gathered. The backward
    pass is one stretch, since weight gradients are summed over the devices once per stretch.
    """
    return plan._replace(
        merged=False,
        batch_first=False,
        backward=sys.maxsize,
        divided=True,
        loop=plan.loop and _divided(plan.loop),
    )
