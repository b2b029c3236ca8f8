"""A checkpoint is one safetensors file: the server's tensors, and JSON in the header for the rest.

Safetensors and JSON hold data only: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from metadist.errors import UserError
from metadist.learners import Meta
from metadist.outer.digest import meta_sha256, tensors_sha256
from metadist.outer.server import OuterState
from metadist.reading import parse_json

FORMAT = "metadist-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        state: the server's state.
        identity: sha of the job's identity; another job's checkpoint is refused.
        progress: what the driver must remember, plain JSON.
        frozen_sha256: of the meta-parameters that never change and that no checkpoint repeats; empty without any.
    """

    state: OuterState
    identity: str
    progress: dict[str, Any]
    frozen_sha256: str = ""


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as the bytes of a safetensors file."""
    import safetensors.torch  # here, so that measuring the engine needs torch and numpy only

    state = checkpoint.state
    tensors = _tensors(state)
    about = {
        "version": state.version,
        "identity": checkpoint.identity,
        "params_sha256": meta_sha256(state.meta),
        "progress": checkpoint.progress,
    } | ({"frozen_sha256": checkpoint.frozen_sha256} if checkpoint.frozen_sha256 else {})
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "about": json.dumps(about)}
    return safetensors.torch.save(tensors, header | {"content_sha256": _content_sha256(header["about"], tensors)})


def decode_checkpoint(data: bytes, path: str) -> Checkpoint:
    """The checkpoint in `data`, which was read from `path`.

    Raises:
        UserError: the file is cut off, was changed, is no checkpoint, or is from a newer version.
    """
    import safetensors

    try:
        header, tensors = _read(data)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            path,
            str(error)[:200],
            "a whole checkpoint in the safetensors format",
            "The file is cut off, or is something else; use another one of the run's checkpoints.",
        ) from error
    if header.get("format") != FORMAT:
        hint = "It is not a metadist checkpoint."
        raise UserError(path, header.get("format"), f"a file of format {FORMAT}", hint)
    if header.get("format_version") != str(FORMAT_VERSION):
        raise UserError(
            path,
            header.get("format_version"),
            f"format version {FORMAT_VERSION}",
            "It was written by another version of metadist: use that one.",
        )
    found = _content_sha256(header.get("about", ""), tensors)
    if header.get("content_sha256") != found:
        raise UserError(
            path,
            found,
            f"content with sha256 {header.get('content_sha256')}",
            "The file was changed after it was written; use another one of the run's checkpoints.",
        )
    try:
        return _assemble(parse_json(header["about"]), tensors)
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(path, str(error)[:200], "a checkpoint's content", "It is not as metadist writes it.") from error


def _assemble(about: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "statistics": {}, "optimizer": {}, "average": {}}
    for name in sorted(tensors):
        group, rest = name.split("/", 1)
        groups[group][rest] = tensors[name]
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, value in groups["optimizer"].items():
        parameter, key = name.rsplit("/", 1)
        optimizer.setdefault(parameter, {})[key] = value
    meta = Meta(groups["parameters"], groups["statistics"], {})
    state = OuterState(about["version"], meta, optimizer, groups["average"])
    read = Checkpoint(state, about["identity"], about["progress"], about.get("frozen_sha256", ""))
    of_types = isinstance(read.identity, str) and isinstance(read.frozen_sha256, str)
    if not of_types or not isinstance(state.version, int) or not isinstance(read.progress, dict):
        raise TypeError("a value of another type")
    return read


def _read(data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    import safetensors.torch

    length = int.from_bytes(data[:8], "little")
    header: dict[str, str] = dict(parse_json(data[8 : 8 + length])["__metadata__"])
    return header, safetensors.torch.load(data)


def _content_sha256(about: str, tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256(f"{about}\n{tensors_sha256(tensors)}".encode()).hexdigest()


def _tensors(state: OuterState) -> dict[str, Tensor]:
    tensors = {f"parameters/{name}": value for name, value in state.meta.parameters.items()}
    tensors |= {f"statistics/{name}": value for name, value in state.meta.statistics.items()}
    tensors |= {f"average/{name}": value for name, value in state.average.items()}
    for parameter, entries in state.optimizer.items():
        tensors |= {f"optimizer/{parameter}/{key}": value for key, value in entries.items()}
    return {name: value.contiguous() for name, value in tensors.items()}
