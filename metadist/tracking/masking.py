"""Keeps passwords out of everything that is sent to a store, said or written down."""

from __future__ import annotations

import re

# The user part may hold an "@" (some managed databases want user@server), and a password may hold
# nearly anything when nobody percent-encoded it, so all up to the word's last "@" is taken as the
# password: rather mask too much than too little.
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://[^\s/:]*):\S*@")
_OPTION = re.compile(
    r"([?&;][\w\-]*(?:password|passwd|pwd|token|secret|access_?key|api_?key|signature|sig)[\w\-]*=)[^\s&;]+",
    re.IGNORECASE,
)


def mask_passwords(text: str) -> str:
    """`text` with the password of every `scheme://user:password@host` in it replaced by `***`."""
    return _OPTION.sub(r"\1***", _LOGIN.sub(r"\1:***@", text))
