"""A checkpoint is one safetensors file: the server's tensors, and JSON in the header for the rest.

Safetensors and JSON hold data only: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from metadist.errors import UserError
from metadist.learners import Meta
from metadist.outer.digest import meta_sha256, tensors_sha256
from metadist.outer.server import OuterState

FORMAT = "metadist-checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        state: the server's state.
        identity: sha of the job's identity; another job's checkpoint is refused.
        progress: what the driver must remember, plain JSON.
    """

    state: OuterState
    identity: str
    progress: dict[str, Any]


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """The checkpoint as the bytes of a safetensors file."""
    state = checkpoint.state
    tensors = _tensors(state)
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "version": str(state.version),
        "identity": checkpoint.identity,
        "params_sha256": meta_sha256(state.meta),
        "content_sha256": tensors_sha256(tensors),
        "progress": json.dumps(checkpoint.progress),
    }
    return safetensors.torch.save(tensors, metadata=header)


def decode_checkpoint(data: bytes, path: str) -> Checkpoint:
    """The checkpoint in `data`, which was read from `path`.

    Raises:
        UserError: the file is cut off, was changed, is no checkpoint, or is from a newer version.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        tensors = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(
            path,
            str(error)[:200],
            "a whole checkpoint in the safetensors format",
            "The file is cut off, or is something else; use another one of the run's checkpoints.",
        ) from error
    if header.get("format") != FORMAT:
        raise UserError(path, header.get("format"), f"a file of format {FORMAT}", "It is not a metadist checkpoint.")
    if int(header["format_version"]) > FORMAT_VERSION:
        raise UserError(
            path,
            header["format_version"],
            f"format version {FORMAT_VERSION} or older",
            "It was written by a newer metadist: upgrade.",
        )
    if header["content_sha256"] != tensors_sha256(tensors):
        raise UserError(
            path,
            tensors_sha256(tensors),
            f"tensors with sha256 {header['content_sha256']}",
            "The file was changed after it was written; use another one of the run's checkpoints.",
        )
    groups: dict[str, dict[str, Tensor]] = {"parameters": {}, "statistics": {}, "optimizer": {}}
    for name, value in tensors.items():
        group, rest = name.split("/", 1)
        groups[group][rest] = value
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, value in groups["optimizer"].items():
        parameter, key = name.rsplit("/", 1)
        optimizer.setdefault(parameter, {})[key] = value
    meta = Meta(groups["parameters"], groups["statistics"], {})
    state = OuterState(int(header["version"]), meta, optimizer)
    return Checkpoint(state, header["identity"], json.loads(header["progress"]))


def _tensors(state: OuterState) -> dict[str, Tensor]:
    tensors = {f"parameters/{name}": value for name, value in state.meta.parameters.items()}
    tensors |= {f"statistics/{name}": value for name, value in state.meta.statistics.items()}
    for parameter, entries in state.optimizer.items():
        tensors |= {f"optimizer/{parameter}/{key}": value for key, value in entries.items()}
    return {name: value.contiguous() for name, value in tensors.items()}
