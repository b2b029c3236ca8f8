"""Checkpoints come back to the bit, or are refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from metadist.errors import UserError
from metadist.learners import Meta
from metadist.outer import Checkpoint, OuterState, decode_checkpoint, encode_checkpoint, meta_sha256
from metadist.outer.checkpoint import _content_sha256, _read
from metadist.outer.digest import tensors_sha256

PROGRESS = {"best_version": 2, "best_score": 0.1 + 0.2, "since_best": 0, "seconds": 1e-17, "ended_early": False}


@pytest.fixture
def checkpoint(state: OuterState) -> Checkpoint:
    return Checkpoint(state, "identity of the job", PROGRESS)


@pytest.fixture
def data(checkpoint: Checkpoint) -> bytes:
    return encode_checkpoint(checkpoint)


def header(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(data: bytes, **changes: str) -> bytes:
    found, body = header(data)
    found["__metadata__"] |= changes
    text = json.dumps(found).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def test_comes_back_to_the_bit(checkpoint: Checkpoint, data: bytes) -> None:
    back = decode_checkpoint(data, "file")
    state = checkpoint.state
    assert (back.state.version, back.identity, back.progress) == (3, "identity of the job", PROGRESS)
    assert meta_sha256(back.state.meta) == meta_sha256(state.meta)
    assert back.state.optimizer.keys() == state.optimizer.keys()
    assert tensors_sha256(back.state.average) == tensors_sha256(state.average)
    for name, entries in state.optimizer.items():
        assert tensors_sha256(back.state.optimizer[name]) == tensors_sha256(entries)


def test_values_that_are_not_finite_come_back_too(state: OuterState) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    state = replace(state, meta=Meta({"a/b/c": odd, "transposed": torch.randn(3, 4).T}, {}, {}), optimizer={})
    back = decode_checkpoint(encode_checkpoint(Checkpoint(state, "", {})), "file").state
    assert meta_sha256(back.meta) == meta_sha256(state.meta)
    assert back.meta.parameters.keys() == state.meta.parameters.keys()


def test_says_what_it_holds_without_being_loaded(data: bytes, state: OuterState) -> None:
    about = json.loads(header(data)[0]["__metadata__"]["about"])
    assert about["params_sha256"] == meta_sha256(state.meta)
    assert about["version"] == 3


def test_a_cut_off_file_is_refused(data: bytes) -> None:
    lengths = sorted({*range(24), *(len(data) * part // 40 for part in range(40)), len(data) - 1})
    assert len(lengths) > 50
    for length in lengths:
        with pytest.raises(UserError, match=r"^run/file: got .*expected a whole checkpoint"):
            decode_checkpoint(data[:length], "run/file")


def test_a_changed_bit_is_found(data: bytes) -> None:
    """Anywhere in the file: sizes, names, version, progress, identity, values."""
    end = 8 + int.from_bytes(data[:8], "little")
    accepted, crashed = [], {}
    for place in [*range(end), *range(end, len(data), 7)]:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 7
        try:
            decode_checkpoint(bytes(changed), "file")
            accepted.append(place)
        except UserError:
            pass
        except Exception as error:
            crashed[place] = repr(error)
    assert not crashed
    assert not accepted, data[min(accepted) - 30 : min(accepted) + 30]


@pytest.mark.parametrize(
    "foreign",
    [
        safetensors.torch.save({"a": torch.ones(2)}),
        safetensors.torch.save({"a": torch.ones(2)}, metadata={"format": "pt"}),
    ],
)
def test_a_foreign_file_is_refused(foreign: bytes) -> None:
    with pytest.raises(UserError, match="checkpoint"):
        decode_checkpoint(foreign, "file")


def test_a_newer_format_is_refused(data: bytes) -> None:
    assert decode_checkpoint(with_header(data), "file").state.version == 3
    with pytest.raises(UserError, match=r"got '2', expected format version 1\..*another version of metadist"):
        decode_checkpoint(with_header(data, format_version="2"), "file")


@pytest.mark.parametrize("field", ["format", "format_version", "about", "content_sha256"])
def test_a_header_that_is_not_what_we_write_is_refused(data: bytes, field: str) -> None:
    with pytest.raises(UserError, match=r"^file: got"):
        decode_checkpoint(with_header(data, **{field: "{"}), "file")


@pytest.mark.parametrize(
    ("about", "names"),
    [
        ({"version": "3"}, []),
        ({"identity": None}, []),
        ({"progress": [1]}, []),
        ({"frozen_sha256": 5}, []),
        ({}, ["elsewhere/x"]),
        ({}, ["x"]),
        ({}, ["optimizer/x"]),
    ],
)
def test_a_content_of_another_form_is_refused_though_its_digest_is_right(
    data: bytes, about: dict[str, Any], names: list[str]
) -> None:
    old, tensors = _read(data)
    tensors |= {name: torch.ones(1) for name in names}
    content = json.dumps(json.loads(old["about"]) | about)
    signed = old | {"about": content, "content_sha256": _content_sha256(content, tensors)}
    with pytest.raises(UserError, match=r"^file: got .*, expected a checkpoint's content"):
        decode_checkpoint(safetensors.torch.save(tensors, signed), "file")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("prefix", [b"", (64).to_bytes(8, "little")])
def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, prefix: bytes) -> None:
    marker = tmp_path / "executed"
    code = pickle.dumps(Evil(marker))
    pickle.loads(code)
    assert marker.exists(), "the pickle is one that does harm"
    marker.unlink()
    torch.save({"a": Evil(marker)}, tmp_path / "file.pt")
    for content in (prefix + code, prefix + (tmp_path / "file.pt").read_bytes()):
        with pytest.raises(UserError):
            decode_checkpoint(content, "file")
    assert not marker.exists()


def test_the_digest_is_of_names_types_shapes_and_values() -> None:
    start = torch.arange(6, dtype=torch.float32)
    variants = [
        {"a": start},
        {"b": start},
        {"a": start.double()},
        {"a": start.view(torch.int32)},
        {"a": start.reshape(2, 3)},
        {"a": start.reshape(3, 2)},
        {"a": start + 1e-7},
        {"a": -start},
        {"a": start, "b": start},
        {"a": start[:3], "b": start[3:]},
        {},
    ]
    assert len({tensors_sha256(tensors) for tensors in variants}) == len(variants)
    assert tensors_sha256({"a": start, "b": -start}) == tensors_sha256({"b": -start, "a": start.clone()})
    assert tensors_sha256({"a": start.reshape(2, 3).T}) == tensors_sha256({"a": start.reshape(2, 3).T.contiguous()})
    metas = [Meta({"a": start}, {}, {}), Meta({}, {"a": start}, {}), Meta({}, {}, {"a": start})]
    assert len({meta_sha256(meta) for meta in metas}) == 3
