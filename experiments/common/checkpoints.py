"""The checkpoints of a run. Orbax writes them, and a digest tells whether they are intact."""

import hashlib
import itertools
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.common.folder import writing
from experiments.common.processes import array_from_first, from_first, is_first
from experiments.common.settings import UsageError

KEPT = 3
PIECE = 2**16  # bytes; orbax may need one piece more than the state takes


class Restored(NamedTuple):
    state: Any
    facts: dict[str, Any]


class Checkpoints:
    """The last few checkpoints in a folder, by number.

    A checkpoint is a pytree and some facts, as JSON. Every process of a study has the whole state,
    so only the first process writes and reads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._manager = _manager(self._folder) if is_first() else None

    def save(self, number: int, state: Any, facts: dict[str, Any]) -> None:
        """Write a checkpoint elsewhere and rename it, so that a kill leaves the others intact.

        Raises: NotWritten, for any error of orbax and tensorstore, as on a full disk.
        """
        if not self._manager:
            return
        facts = facts | {"digest": _digest(state, facts)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts)
        )
        with writing(self._folder / str(number), Exception):
            _check_room(self._folder, state)
            self._manager.save(number, args=args)

    def latest(self) -> int | None:
        numbers = _numbers(self._folder)
        return numbers[0] if numbers else None

    def restore(self, like: Any, say: Callable[[str], None]) -> Restored | None:
        """The newest intact checkpoint, or None. Damaged ones are reported and moved aside."""
        found = self._newest(self._manager, like, say) if self._manager else None
        facts = from_first(lambda: found and found.facts)
        if facts is None:
            return None
        return Restored(array_from_first(found.state if found else like), facts)

    def close(self) -> None:
        if self._manager:
            self._manager.close()

    def _newest(
        self, manager: ocp.CheckpointManager, like: Any, say: Callable[[str], None]
    ) -> Restored | None:
        for number in _numbers(self._folder):
            try:
                return _read(partial(manager.restore, number), like)
            except Exception as error:  # whatever orbax, tensorstore or JSON make of damaged bytes
                reason = _reason(error)
            aside = self._aside(number)
            with writing(aside):
                (self._folder / str(number)).rename(aside)
            manager.reload()
            say(f"Checkpoint {number} is damaged ({reason}); moved to {aside.name}.")
        return None

    def _aside(self, number: int) -> Path:
        """A free path for a damaged checkpoint, even if others had the same number."""
        names = (f"damaged_checkpoint_{number}{'_' * k}" for k in itertools.count())
        return next(path for path in map(self._folder.parent.joinpath, names) if not path.exists())


def newest(folder: Path, like: Any) -> Any:
    """The state of the newest checkpoint, which is only read. Raises: UsageError."""
    numbers = _numbers(folder)
    if not numbers:
        raise UsageError(f"{folder.parent} has no checkpoint yet")
    path = folder.absolute() / str(numbers[0])
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        try:
            return _read(partial(checkpointer.restore, path), like).state
        except Exception as error:  # whatever orbax, tensorstore or JSON make of damaged bytes
            raise UsageError(
                f"checkpoint {path.name} of {folder.parent} cannot be read ({_reason(error)}); "
                "--resume moves a damaged one aside and takes the one before it"
            ) from error


def _numbers(folder: Path) -> list[int]:
    """The numbers of the checkpoints in the folder, newest first, including unfinished ones."""
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _manager(folder: Path) -> ocp.CheckpointManager:
    alone = ocp.options.MultiprocessingOptions(
        active_processes={0}, barrier_sync_key_prefix="first"
    )
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        create=False,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=True,
        multiprocessing_options=alone,
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(folder, options=options)


def _read(restore: Callable[..., Any], like: Any) -> Restored:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract), facts=ocp.args.JsonRestore()
    )
    found = restore(args=args)
    facts = dict(found["facts"])
    if facts.pop("digest") != _digest(found["state"], facts):
        raise ValueError("its content has changed since it was written")
    return Restored(found["state"], facts)


def _check_room(folder: Path, state: Any) -> None:
    """Check that the disk has room. Raises: OSError, that of the system, once.

    Orbax writes all leaves at once, and on a full disk each of its threads prints a traceback.
    """
    size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(state))
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(size // PIECE + 2):
            file.write(bytes(PIECE))


def _digest(state: Any, facts: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
