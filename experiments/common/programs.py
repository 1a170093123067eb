"""The compiled programs of a run, and how they share its devices."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.common.settings import Settings, UsageError, require
from experiments.common.task import Stage, Task
from experiments.common.training import Chunk, TrainState, make_evaluate, make_train_chunk

Devices = list[Any]  # of jax.Device, which type checkers do not see as a type
REPLICAS, BATCH = "replicas", "batch"  # the axes of a mesh


def devices_of(settings: Settings) -> Devices:
    """The requested number of devices of every process. Raises: UsageError."""
    found = []
    for process in range(jax.process_count()):
        own = [device for device in jax.devices() if device.process_index == process]
        if len(own) < settings.devices:
            raise UsageError(
                f"--devices must be at most {len(own)}, the devices that jax finds, got "
                f"{settings.devices}; XLA_FLAGS=--xla_force_host_platform_device_count="
                f"{settings.devices} divides a CPU"
            )
        found += own[: settings.devices]
    expected = f"a multiple of {len(found)}, the number of devices"
    require(settings, "batch_size", settings.batch_size % len(found) == 0, expected)
    return found


def make_mesh(devices: Devices, replicas: int) -> Mesh:
    """Divide replicas over as many devices as possible, and each batch over the others."""
    rows = math.gcd(replicas, len(devices))
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(
        (rows, len(devices) // rows), (REPLICAS, BATCH), axis_types=axes, devices=devices
    )


class Programs:
    """The programs, each of which is compiled when it is first needed.

    They take and return states as NumPy arrays `[replicas, ...]`, whole on every process. So a
    checkpoint does not depend on the devices, and code between two programs needs none.
    """

    def __init__(self, task: Task, settings: Settings, devices: Devices) -> None:
        self.seconds = 0.0  # spent on compiling
        self.settings, self._task, self._devices = settings, task, devices
        self._cache: dict[tuple[Any, ...], Any] = {}

    def train(self, states: TrainState, count: int, stage: Stage) -> tuple[TrainState, Chunk]:
        make = partial(make_train_chunk, self._task, self.settings, stage.length, BATCH)
        args = (states, *(np.int32(value) for value in (count, stage.level, stage.decay)))
        return self._run("train", make, stage, args)

    def evaluate(self, states: TrainState, stage: Stage) -> dict[str, Any]:
        make = partial(make_evaluate, self._task, self.settings, stage, BATCH)
        return self._run("evaluate", make, stage, (states.network,))

    def _run(
        self, name: str, make: Callable[[], Callable[..., Any]], stage: Stage, args: Any
    ) -> Any:
        replicas = jax.tree.leaves(args[0])[0].shape[0]
        key = (name, stage.length, replicas)
        if key not in self._cache:
            start = time.perf_counter()
            self._cache[key] = self._compile(make(), replicas, args)
            self.seconds += time.perf_counter() - start
        return jax.device_get(self._cache[key](*args))

    def _compile(self, function: Callable[..., Any], replicas: int, args: Any) -> Any:
        """Compile by shard_map, so that devices add their gradients once per update.

        If the compiler divided the work, it would do the same, except that with `checkpoint` it
        adds them once per segment.
        """
        mesh = make_mesh(self._devices, replicas)
        rest = len(args) - 1
        each = jax.shard_map(
            jax.vmap(function, in_axes=(0, *(None,) * rest)),
            mesh=mesh,
            in_specs=(P(REPLICAS), *(P(),) * rest),
            out_specs=P(REPLICAS),
        )
        whole = NamedSharding(mesh, P())
        return jax.jit(each, in_shardings=whole, out_shardings=whole).lower(*args).compile()
