"""Fingerprints of named tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from metadist.learners import Meta


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        # By bytes: numpy does not know every type that a file may have.
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def meta_sha256(meta: Meta) -> str:
    """SHA-256 of what training changes: parameters and statistics."""
    return tensors_sha256(
        {f"parameters/{name}": value for name, value in meta.parameters.items()}
        | {f"statistics/{name}": value for name, value in meta.statistics.items()}
    )
