"""What importing metadist.data loads."""

from __future__ import annotations

import subprocess
import sys

from pydantic import TypeAdapter

from metadist.data import DataConfig


def test_import_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'torchvision', 'PIL', 'sklearn', 'ray', 'mlflow', 'pydantic', 'pandas'}"
    code = f"import metadist.data, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_configuration_is_readable_by_pydantic() -> None:
    given = {"source": "x.zip", "channels": 1, "split": {"train": 64, "valid": None, "test": ["a/*", 3]}}
    config = TypeAdapter(DataConfig).validate_python(given)
    assert config.split.train == 64
    assert isinstance(config.split.train, int)
    assert config.split.valid is None
    assert config.split.test == ["a/*", 3]
    assert isinstance(TypeAdapter(DataConfig).validate_python({"split": {"train": 1.0}}).split.train, float)
