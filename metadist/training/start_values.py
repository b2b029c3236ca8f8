"""Reads what a job starts from, and keeps what never changes, in run folders."""

from __future__ import annotations

from dataclasses import dataclass

import safetensors
import safetensors.torch
from torch import Tensor

from metadist.errors import UserError
from metadist.outer import decode_checkpoint, tensors_sha256
from metadist.training.run_folder import CHECKPOINT, RunFolder, checkpoint_name

#: a run's meta-parameters that never change, which its checkpoints do not repeat
FROZEN = "frozen.safetensors"


@dataclass(frozen=True)
class StartValues:
    """Tensors by name.

    Attributes:
        path: the very file they come from.
        sha256: of the tensors.
        folder: where it lies: a run's, unless the file is another one.
    """

    path: str
    sha256: str
    tensors: dict[str, Tensor]
    folder: RunFolder


def read_start(path: str, sha256: str | None = None, field: str = "init_from") -> StartValues:
    """The meta-parameters of a run as tests judge them, or the tensors of a plain safetensors file.

    Args:
        path: run folder (its best version on validation), one of its checkpoints, or any safetensors file.
        sha256: what they must be.
        field: where a job names them.

    Raises:
        UserError: there are none, or others.
    """
    folder, name = _file(path, field)
    place = f"{folder.location}/{name}"
    data = folder.read(name)
    tensors = _plain(data, place)
    if any(key.startswith("parameters/") for key in tensors):
        meta = decode_checkpoint(data, place).state.judged
        tensors = meta.parameters | meta.statistics | read_frozen(folder)
    found = tensors_sha256(tensors)
    if sha256 not in (None, found):
        hint = "The run or file has changed since; name the one that it was."
        raise UserError(f"{field}.sha256", sha256, f"the sha256 of {place}, {found}", hint)
    return StartValues(place, found, tensors, folder)


def best_checkpoint(folder: RunFolder) -> str:
    """Name of a run's best version on validation, or of its last where there was none."""
    names = folder.checkpoints()
    if not names:
        raise UserError(folder.location, "no checkpoint", "a run with at least one checkpoint")
    last = decode_checkpoint(folder.read(names[-1]), f"{folder.location}/{names[-1]}")
    best = last.progress.get("best_version")
    name = names[-1] if best is None else checkpoint_name(best) if isinstance(best, int) else best
    if name not in names:
        raise UserError(f"{folder.location}/{names[-1]}", best, "a best version with a checkpoint in its run folder")
    return name


def read_frozen(folder: RunFolder) -> dict[str, Tensor]:
    """What never changes in a run: its own copy, so that it does not need the run that it started from."""
    return _plain(folder.read(FROZEN), f"{folder.location}/{FROZEN}") if folder.exists(FROZEN) else {}


def keep_frozen(folder: RunFolder, frozen: dict[str, Tensor]) -> None:
    """Write the copy that `read_frozen` reads, where there is anything."""
    if frozen:
        folder.write(FROZEN, safetensors.torch.save({name: value.contiguous() for name, value in frozen.items()}))


def _file(path: str, field: str) -> tuple[RunFolder, str]:
    if not path.endswith(".safetensors"):
        folder = RunFolder(path.rstrip("/")).anchored()
        if not folder.exists():
            raise UserError(f"{field}.path", path, "a run folder or a safetensors file", "There is nothing there.")
        return folder, best_checkpoint(folder)
    above, _, name = path.rpartition("/")
    root, _, last = above.rpartition("/")
    if last == "checkpoints" and CHECKPOINT.fullmatch(name):
        above, name = root, f"checkpoints/{name}"
    return RunFolder(above or ".").anchored(), name


def _plain(data: bytes, place: str) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(
            place, str(error)[:200], "a whole safetensors file", "The file is cut off or another's."
        ) from error
    # Each an allocation of its own: in the file they lie where they may, and that can change bits.
    return {name: value.clone() for name, value in tensors.items()}
