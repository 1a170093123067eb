"""Reading the trained networks of a run from its folder."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.checkpoints import newest
from experiments.common.metrics import Line, read_run
from experiments.common.model import Network, network_init
from experiments.common.settings import Settings, UsageError, from_json
from experiments.common.training import first_state


def load(
    out: Path | str, *, seed: int | None = None, learning_rate: float | None = None
) -> Network:
    """The trained network of one replica of a run, from its last checkpoint.

    Its `cell` holds params that `jaxgru.scan` takes, and `read_out(network, hs)` computes outputs
    from the states. If the run has several seeds or learning rates, say which one to load. The task
    is not needed. The folder is only read, so the run may still be in progress.

    Raises: UsageError for a folder without a checkpoint, and for a replica that is not in it.
    """
    header, networks = all_networks(Path(out))
    replicas = enumerate(header["replicas"])
    found = [k for k, replica in replicas if _fits(replica, seed, learning_rate)]
    if len(found) != 1:
        told = "Several replicas fit" if found else "No replica fits"
        raise UsageError(
            f"{told} seed={seed}, learning_rate={learning_rate}. Name one of those in {out}: "
            + "; ".join(
                f"seed={replica['seed']}, learning_rate={replica['learning_rate']:g}"
                for replica in header["replicas"]
            )
        )
    return jax.tree.map(lambda leaf: leaf[found[0]], networks)


def all_networks(out: Path) -> tuple[Line, Network]:
    """The header of a run and its networks, with leaves `[replicas, ...]`. Raises: UsageError."""
    path = out / "metrics.jsonl"
    try:
        header = read_run(path).header
        settings = _settings(header["settings"])
        sizes = header["input_size"], header["output_size"]
    except OSError as error:
        raise UsageError(f"no run in {out}: {path.name}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"no run in {out} that can be loaded: {error!r}") from error
    if settings.dtype == "float64" and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise UsageError(
            f"the run in {out} has float64 weights; call jax.config.update('jax_enable_x64', True) "
            "before loading"
        )

    def start(_: Any) -> Any:
        zero = jnp.zeros((), jnp.uint32)
        network = network_init(jax.random.key(zero), settings, *sizes)
        return first_state(settings, network, zero, jnp.zeros((), jnp.float32))

    shapes = jax.eval_shape(jax.vmap(start), jnp.zeros(len(header["replicas"])))
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = newest(out / "checkpoints", like)
    return header, jax.tree.map(jnp.asarray, state.network)


def _fits(replica: Line, seed: int | None, learning_rate: float | None) -> bool:
    """Whether this is the replica. The record holds learning rates with six digits."""
    known = replica["learning_rate"]
    near = learning_rate is None or math.isclose(learning_rate, known, rel_tol=1e-5)
    return near and seed in (None, replica["seed"])


def _settings(fields: dict[str, Any]) -> Settings:
    """The settings that all tasks have."""
    names = {field.name for field in dataclasses.fields(Settings)}
    return from_json(Settings, {name: fields[name] for name in names & fields.keys()})
