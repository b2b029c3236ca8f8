"""No password gets out, however oddly it is written."""

from __future__ import annotations

import pytest

from metadist.tracking.masking import mask_passwords


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://u:secret@host/db", "postgresql://u:***@host/db"),
        ("postgresql+psycopg2://u:se@cr/et:x@host:5/db", "postgresql+psycopg2://u:***@host:5/db"),
        ("redis://:secret@host", "redis://:***@host"),
        ("mysql://u@server:secret@host/db", "mysql://u@server:***@host/db"),
        ("uri: 's3://k:secret@bucket' # note", "uri: 's3://k:***@bucket' # note"),
        ("postgresql://h/db?user=u&password=secret&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("s3://bucket/runs?region=x&session_token=secret", "s3://bucket/runs?region=x&session_token=***"),
        ("abfss://box@host/runs?sv=1&sig=secret&sr=b", "abfss://box@host/runs?sv=1&sig=***&sr=b"),
        ("http://localhost:5000/a", "http://localhost:5000/a"),
        ("me@example.org", "me@example.org"),
        ("plain: text", "plain: text"),
    ],
)
def test_masked(text: str, masked: str) -> None:
    assert mask_passwords(text) == masked
