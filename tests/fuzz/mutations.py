"""Valid input, spoilt: values of other types and extreme ones, keys gone or misspelt; bytes changed, cut off, added."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, -1, 1, 2, 7, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, 16**400]
NUMBERS += [-0.0, 0.5, 1.5, -1.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", " ", "\0", "a\nb", "\x1b[31m", "ä" * 300, "🦊", "\u202e", "../../etc", "/dev/null", "~nobody/x", "*", "["]
TEXTS += ["!!", "a.b", "os.path", "torch.nn.Linear", "file:///x", "s3://", "foo://x", "sqlite://x", "1" * 5000, "none"]
OTHERS = [True, False, None, [], {}, [[]], [{}], [None], [1], ["*"], ["a", "a"], [1e308], {"": ""}, {"kind": "maml"}]
OTHERS += [{"min": 1, "max": 10**30}, {"path": "\0"}, [{"match": "*"}], [{"match": "*", "lr": -1}]]
#: what YAML has and JSON has not
PLAIN_ONLY = [datetime.date(2020, 1, 1), b"x", {None: 1}, {1: 2}, "\ud800"]


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Each container with each of its keys."""
    for key, value in list(content.items()) if isinstance(content, dict) else list(enumerate(content)):
        yield content, key
        if isinstance(value, dict | list):
            yield from _places(value)


@st.composite
def trees(draw: st.DrawFn, content: Any, further: list[Any] | None = None) -> Any:
    """Plain data with up to three changes."""
    spoilt = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(spoilt))
        if not places:
            break
        parent, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["alike", "alike", "alike", "other", "gone", "misspelt", "moved"]))
        value = parent[key]
        if how == "alike" and isinstance(value, str | int | float) and not isinstance(value, bool):
            parent[key] = draw(st.sampled_from(TEXTS if isinstance(value, str) else NUMBERS))
        elif how == "gone":
            del parent[key]
        elif how == "misspelt" and isinstance(parent, dict):
            parent[draw(st.sampled_from([f"{key}x", str(key)[:-1], str(key).upper(), f"{key}\0"]))] = parent.pop(key)
        elif how == "moved":
            other, place = draw(st.sampled_from(places))
            parent[key] = copy.deepcopy(other[place]) if place in other or isinstance(other, list) else None
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(NUMBERS + TEXTS + OTHERS + (further or []))))
    return spoilt


@st.composite
def cut_up(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with up to four changes."""
    spoilt = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(spoilt)))
        how = draw(st.sampled_from(["flip", "flip", "set", "large", "cut", "add", "again", "zeros"]))
        if how == "flip" and at < len(spoilt):
            spoilt[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and at < len(spoilt):
            spoilt[at] = draw(st.sampled_from([0, 255, 127, 128, ord("{"), ord("["), ord('"'), ord("\n")]))
        elif how == "large":
            spoilt[at : at + 8] = draw(st.sampled_from([2**31, 2**62, 2**64 - 1, 0])).to_bytes(8, "little")
        elif how == "cut":
            del spoilt[at:]
        elif how == "add":
            spoilt[at:at] = draw(st.binary(min_size=1, max_size=9))
        elif how == "again":
            spoilt += spoilt[at:]
        else:
            spoilt[at:at] = bytes(draw(st.sampled_from([1, 64, 5000])))
    return bytes(spoilt)
