"""Finding, preparing and fetching the store of a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from metadist.data import (
    ClassStore,
    DataConfig,
    fetched_store,
    find_store,
    keep_store,
    prepare,
    read_store,
    resolve_store,
)
from metadist.data.locations import cache_folder
from metadist.errors import UserError

Maker = Callable[..., Path]
Files = dict[str, Image.Image]


def stores(cache: Path) -> list[str]:
    """Names of what is in the cache and not hidden; fails on anything half-written."""
    names = [file.name for file in cache.iterdir()]
    assert not [name for name in names if "partial" in name]
    return sorted(name for name in names if not name.startswith("."))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("METADIST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/metadist")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/metadist")
    monkeypatch.setenv("METADIST_CACHE", "/metadist")
    assert cache_folder() == Path("/metadist")
    assert cache_folder("~/c") == Path("/home/somebody/c")


def test_sent_in_pieces_and_kept_once(make_folder: Maker, files: Files, cache: Path, tmp_path: Path) -> None:
    store = prepare(str(make_folder(files)), tmp_path / "store", size=8)
    assert fetched_store(store.sha256, cache) is None
    manifest, pieces = read_store(store.path, 100)
    content = list(pieces)
    assert {len(piece) for piece in content[:-1]} == {100}
    kept = keep_store(manifest, content, cache, "node a")
    kept.verify()
    assert (kept.sha256, kept.classes) == (store.sha256, store.classes)
    assert fetched_store(store.sha256, cache) == kept.path
    assert keep_store(manifest, never(), cache, "node b").path == kept.path
    assert stores(cache) == [kept.path.name]


def never() -> Iterator[bytes]:
    raise AssertionError("the store is there: nothing is to be sent")
    yield b""


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_on_the_way(make_folder: Maker, files: Files, cache: Path, tmp_path: Path, damage: str) -> None:
    store = prepare(str(make_folder(files)), tmp_path / "store", size=8)
    manifest, pieces = read_store(store.path, 1 << 20)
    (content,) = pieces
    pixels = store.pixels.tobytes()
    assert pixels in content
    spoilt = content[: len(content) // 2] if damage == "cut" else content.replace(pixels, bytes(len(pixels)))
    with pytest.raises(UserError, match="node a"):
        keep_store(manifest, [spoilt], cache, "node a")
    assert stores(cache) == []


def test_prepared_once(make_folder: Maker, files: Files, cache: Path) -> None:
    config = DataConfig(source=str(make_folder(files)), cache=str(cache))
    calls: list[int] = []
    first = resolve_store(config, lambda done, total: calls.append(done))
    assert calls
    calls.clear()
    again = resolve_store(config, lambda done, total: calls.append(done))
    assert calls == []
    assert again.path == first.path
    assert first.path.name.startswith("images-")
    assert stores(cache) == [first.path.name]


def test_found_without_preparing(make_folder: Maker, files: Files, cache: Path, tmp_path: Path) -> None:
    images = DataConfig(source=str(make_folder(files)), cache=str(cache))
    assert find_store(images) is None
    assert not cache.exists()
    made = resolve_store(images)
    found = find_store(images)
    assert found is not None
    assert found.path == made.path
    opened = find_store(DataConfig(source=str(made.path)))
    assert opened is not None
    assert opened.path == made.path
    remote = DataConfig(source=made.path.as_uri(), cache=str(tmp_path / "other"))
    assert find_store(remote) is None
    assert not (tmp_path / "other").exists()
    fetched = resolve_store(remote)
    again = find_store(remote)
    assert again is not None
    assert again.path == fetched.path
    with pytest.raises(UserError, match=r"data\.size"):
        find_store(DataConfig(source=str(made.path), size=made.shape[1] + 1))


def test_each_option_has_its_store(make_folder: Maker, files: Files, cache: Path) -> None:
    source = str(make_folder(files))
    configs = [
        DataConfig(source=source, cache=str(cache)),
        DataConfig(source=source, cache=str(cache), size=5),
        DataConfig(source=source, cache=str(cache), channels=3),
        DataConfig(source=source, cache=str(cache), invert=True),
        DataConfig(source=source, cache=str(cache), skip_bad=True),
        DataConfig(source="sklearn:digits", cache=str(cache)),
    ]
    assert len({resolve_store(config).path for config in configs}) == len(configs)
    assert len(stores(cache)) == len(configs)


def test_a_changed_source_is_prepared_anew(
    make_folder: Maker, make_zip: Maker, files: Files, cache: Path, picture: Callable[..., Image.Image]
) -> None:
    folder, path = make_folder(files), make_zip(files)
    first = [resolve_store(DataConfig(source=str(source), cache=str(cache))) for source in (folder, path)]
    make_folder({"c/1.png": picture(9)})
    os.utime(path, ns=(1, 1))
    second = [resolve_store(DataConfig(source=str(source), cache=str(cache))) for source in (folder, path)]
    assert second[0].classes == (*first[0].classes, "c")
    assert second[1].sha256 == first[1].sha256
    assert len(stores(cache)) == 4
    os.utime(folder / "c/1.png", ns=(1, 1))
    resolve_store(DataConfig(source=str(folder), cache=str(cache)))
    assert len(stores(cache)) == 5


def test_a_failure_leaves_no_store(make_folder: Maker, files: Files, cache: Path) -> None:
    config = DataConfig(source=str(make_folder(files | {"b/9.png": b"bad"})), cache=str(cache))
    with pytest.raises(UserError, match=r"b/9\.png"):
        resolve_store(config)
    assert stores(cache) == []


def test_what_a_killed_process_left_is_removed(make_folder: Maker, files: Files, cache: Path) -> None:
    config = DataConfig(source=str(make_folder(files)), cache=str(cache))
    name = resolve_store(config).path.name
    (cache / name).rename(cache / f".{name}.partial-999999999")
    resolve_store(config)
    assert stores(cache) == [name]


SCRIPT = """
import json, sys
from metadist.data import DataConfig, resolve_store
calls = []
print("ready", flush=True)
sys.stdin.readline()
store = resolve_store(DataConfig(**json.loads(sys.argv[1])), lambda done, total: calls.append(done))
store.verify()
print(json.dumps({"path": str(store.path), "prepared": bool(calls)}))
"""


def race(config: dict[str, str], processes: int = 2) -> list[dict[str, object]]:
    """Resolve the same settings in several processes that start at once; what each found."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [json.loads(process.communicate(timeout=60)[0]) for process in running]


def test_two_processes_prepare_once(make_folder: Maker, cache: Path, picture: Callable[..., Image.Image]) -> None:
    root = make_folder({f"{n % 3}/{n}.png": picture(n, 40) for n in range(150)})
    found = race({"source": str(root), "cache": str(cache)})
    assert sorted(str(each["prepared"]) for each in found) == ["False", "True"]
    assert len({str(each["path"]) for each in found}) == 1
    assert len(stores(cache)) == 1


def test_two_processes_fetch_once(store: ClassStore, cache: Path) -> None:
    found = race({"source": store.path.as_uri(), "cache": str(cache)})
    assert {each["path"] for each in found} == {str(cache / f"fetched-{store.sha256}")}
    assert len(stores(cache)) == 1


def test_a_store_is_used_where_it_lies(store: ClassStore, cache: Path) -> None:
    found = resolve_store(DataConfig(source=str(store.path), cache=str(cache), size=6, channels=1))
    assert found.path == store.path
    assert not cache.exists()


@pytest.mark.parametrize("as_uri", [False, True])
def test_settings_that_disagree_with_a_store(store: ClassStore, cache: Path, as_uri: bool) -> None:
    source = store.path.as_uri() if as_uri else str(store.path)
    with pytest.raises(UserError, match=r"data\.size: got 28, expected 6×6"):
        resolve_store(DataConfig(source=source, cache=str(cache), size=28))
    with pytest.raises(UserError, match=r"data\.channels: got 3, expected 1"):
        resolve_store(DataConfig(source=source, cache=str(cache), channels=3))
    with pytest.raises(UserError, match=r"data\.invert: got True, expected false"):
        resolve_store(DataConfig(source=source, cache=str(cache), invert=True))


def test_an_inverted_store_agrees(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    store = prepare(str(make_folder(files)), tmp_path / "inverted", invert=True)
    assert resolve_store(DataConfig(source=str(store.path), invert=True)).sha256 == store.sha256


def test_fetched_once(store: ClassStore, cache: Path) -> None:
    config = DataConfig(source=store.path.as_uri(), cache=str(cache))
    first = resolve_store(config)
    assert first.sha256 == store.sha256
    assert first.path == cache / f"fetched-{store.sha256}"
    # The pixels are not looked at again: not even their absence is noticed.
    (store.path / "pixels.arrow").unlink()
    assert resolve_store(config).path == first.path
    assert stores(cache) == [first.path.name]


def test_a_damaged_store_is_not_fetched(store: ClassStore, cache: Path) -> None:
    file = store.path / "pixels.arrow"
    data = bytearray(file.read_bytes())
    data[data.find(store.pixels[3].tobytes())] ^= 1
    file.write_bytes(data)
    config = DataConfig(source=store.path.as_uri(), cache=str(cache))
    with pytest.raises(UserError, match="a whole store"):
        resolve_store(config)
    file.unlink()
    with pytest.raises(UserError, match=r"a store that can be read .*pixels\.arrow"):
        resolve_store(config)
    assert stores(cache) == []


def test_uris_of_nothing(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source: .*can be read"):
        resolve_store(DataConfig(source=f"file://{tmp_path}/nowhere", cache=str(cache)))
    with pytest.raises(UserError, match="another scheme that pyarrow knows"):
        resolve_store(DataConfig(source="gopher://host/store", cache=str(cache)))


def test_cache_that_cannot_be_made(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache: .*a folder that can be written"):
        resolve_store(DataConfig(source=str(make_folder(files)), cache=str(tmp_path / "file")))


def test_options_are_checked(store: ClassStore) -> None:
    with pytest.raises(UserError, match=r"data\.size: got 0"):
        resolve_store(DataConfig(source=str(store.path), size=0))


def test_no_source() -> None:
    with pytest.raises(UserError, match=r"data\.source: got ''"):
        resolve_store(DataConfig(source=""))
