"""Reads YAML that anybody may have written: data only, of a bounded size and depth.

A leaf of the package, as `errors` is; apart from `reading`, for the core does without YAML.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from metadist.errors import UserError

#: bytes of a YAML file that are read
MOST_YAML = 1 << 20
#: characters of a YAML text, those of an alias counted wherever it stands: a few lines can stand for billions
MOST_MEANT = 1 << 22
#: bits of a whole number in YAML, of which Python would not print many more
MOST_BITS = 1000


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and a key stands once."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError("job", f"a list or section as a key in line {line}", "a name before the colon")
        if key.value in seen:
            raise UserError(str(key.value), f"twice, again in line {line}", "each key once", "Remove one of them.")
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    number = loader.construct_yaml_int(node)
    if number.bit_length() > MOST_BITS:
        found = f"a whole number of {number.bit_length()} bits in line {node.start_mark.line + 1}"
        raise UserError(node.start_mark.name, found, f"whole numbers of at most {MOST_BITS} bits")
    return number


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def _size(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Characters and values of a YAML node, those of an alias counted wherever it stands."""
    if node not in known:
        known[node] = 1  # where it stands within itself, which is refused when it is constructed
        if isinstance(node, yaml.ScalarNode):
            known[node] += len(node.value)
        else:
            parts = (part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,)))
            known[node] += sum(_size(part, known) for part in parts)
    return known[node]


def parse_yaml(text: str | bytes, source: str) -> Any:
    """The value in a YAML text, or in its bytes.

    Raises:
        UserError: it is not YAML, or too large; names `source`, line and column.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        hint = "Check the path; jobs/ has examples."
        raise UserError(source, "not a text file", "a job file (YAML)", hint) from error
    try:
        loader = _Loader(text)
        loader.name = source
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if (size := _size(node, {})) > MOST_MEANT:
                hint = "An alias counts wherever it stands."
                raise UserError(source, f"{size} characters", f"at most {MOST_MEANT} characters", hint)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(source, "too many brackets within brackets", "a job file (YAML)") from error
    except (ValueError, OverflowError) as error:  # of a date, say, that the calendar does not have
        raise UserError(source, str(error), "YAML", "Put text in quotes.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(source, f"{problem}{where}", "YAML", "Check quotes, colons and indentation.") from error
