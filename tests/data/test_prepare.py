"""Preparing: the pixels, bit by bit, and that a failure leaves nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metadist.data import ClassStore, prepare
from metadist.data import prepare as prepare_function
from metadist.errors import UserError

Maker = Callable[..., Path]
Files = dict[str, Image.Image]
Picture = Callable[..., Image.Image]


def listing(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def one(make_folder: Maker, tmp_path: Path, image: Image.Image, **options: object) -> np.ndarray:
    """The pixels [C, H, W] of one image, prepared."""
    store = prepare(str(make_folder({"a/1.png": image})), tmp_path / "store", **options)  # type: ignore[arg-type]
    return store.pixels[0]


def test_resize_is_lanczos(tmp_path: Path, make_folder: Maker, picture: Picture) -> None:
    image = picture(0, 20)
    pixels = one(make_folder, tmp_path, image, size=7)
    assert np.array_equal(pixels[0], np.asarray(image.resize((7, 7), Image.Resampling.LANCZOS)))


def test_bits_are_blended_as_greys(tmp_path: Path, make_folder: Maker, picture: Picture) -> None:
    image = picture(0, 20).convert("1")
    pixels = one(make_folder, tmp_path, image, size=7, invert=True)
    expected = 255 - np.asarray(image.convert("L").resize((7, 7), Image.Resampling.LANCZOS))
    assert np.array_equal(pixels[0], expected)
    assert len(np.unique(pixels)) > 2


def test_colour(tmp_path: Path, make_folder: Maker, picture: Picture) -> None:
    image = picture(0, 20, "RGB")
    pixels = one(make_folder, tmp_path, image, size=7)
    expected = np.asarray(image.resize((7, 7), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    assert np.array_equal(pixels, expected)


def test_colour_to_grey_and_back(tmp_path: Path, make_folder: Maker, picture: Picture) -> None:
    image = picture(0, 6, "RGB")
    assert np.array_equal(one(make_folder, tmp_path, image, channels=1)[0], np.asarray(image.convert("L")))
    root = make_folder({"a/1.png": picture(1)}, "grey")
    grey = prepare(str(root), tmp_path / "grey-store", channels=3).pixels[0]
    assert np.array_equal(grey, np.broadcast_to(np.asarray(picture(1)), (3, 6, 6)))


def test_one_coloured_image_makes_all_coloured(tmp_path: Path, make_folder: Maker, picture: Picture) -> None:
    grey, colour = picture(0), picture(1, 6, "RGB")
    late = prepare(str(make_folder({"a/1.png": grey, "b/1.png": colour}, "late")), tmp_path / "s1")
    early = prepare(str(make_folder({"a/1.png": colour, "b/1.png": grey}, "early")), tmp_path / "s2")
    assert late.shape == early.shape == (3, 6, 6)
    assert np.array_equal(late.pixels[0], early.pixels[1])
    assert np.array_equal(late.pixels[1], early.pixels[0])
    late.verify()


def test_transparency_is_white(tmp_path: Path, make_folder: Maker) -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    pixels = one(make_folder, tmp_path, Image.fromarray(rgba))
    assert pixels[:, 0, 0].tolist() == [10, 20, 30]
    assert (pixels[:, 1:] == 255).all()


def test_sixteen_bits(tmp_path: Path, make_folder: Maker) -> None:
    values = (np.arange(16, dtype=np.uint16) * 4369).reshape(4, 4)
    pixels = one(make_folder, tmp_path, Image.fromarray(values))
    assert np.array_equal(pixels[0], values >> 8)


def test_palette(tmp_path: Path, make_folder: Maker, picture: Picture) -> None:
    image = picture(0, 6, "RGB").quantize(4)
    assert np.array_equal(one(make_folder, tmp_path, image), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_different_sizes(tmp_path: Path, make_folder: Maker, picture: Picture) -> None:
    root = make_folder({"a/1.png": picture(0, 6), "a/2.png": picture(1, 7), "b/1.png": picture(2, 8)})
    with pytest.raises(UserError) as raised:
        prepare(str(root), tmp_path / "store")
    message = str(raised.value)
    assert f"{root}/a/2.png: got '7×7 pixels', expected 6×6 pixels, the size of {root}/a/1.png" in message
    assert "data.size" in message
    assert listing(tmp_path) == ["images"]
    assert prepare(str(root), tmp_path / "store", size=6).shape == (1, 6, 6)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_corrupt_image(tmp_path: Path, make_folder: Maker, make_zip: Maker, files: Files, kind: str) -> None:
    broken = {"b/2.png": b"no image", "b/4.png": b"", "c/1.png": b"\x89PNG\r\n\x1a\n cut"}
    path = (make_folder if kind == "folder" else make_zip)(files | broken)
    with pytest.raises(UserError, match=r"b/2\.png: .*--skip-bad"):
        prepare(str(path), tmp_path / "store")
    assert listing(tmp_path) == [path.name]
    store = prepare(str(path), tmp_path / "store", skip_bad=True)
    assert store.manifest["skipped"] == 3
    assert store.classes == ("a/x9", "a/x10", "b"), "a class of bad images alone is dropped"
    assert store.counts().tolist() == [1, 2, 2]
    store.verify()


def test_image_cut_short(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    root = make_folder(files)
    file = root / "a/x10/10.png"
    file.write_bytes(file.read_bytes()[:-25])
    with pytest.raises(UserError, match=r"a/x10/10\.png"):
        prepare(str(root), tmp_path / "store")


def test_nothing_but_bad_images(tmp_path: Path, make_folder: Maker) -> None:
    root = make_folder({"a/1.png": b"", "b/1.png": b""})
    with pytest.raises(UserError, match="All 2 images were skipped"):
        prepare(str(root), tmp_path / "store", skip_bad=True)
    assert listing(tmp_path) == ["images"]


def test_unreadable_file_is_not_skipped(
    tmp_path: Path, make_folder: Maker, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(files)

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UserError, match="Input/output error"):
        prepare(str(root), tmp_path / "store", skip_bad=True)


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "enough free space"),
        (OSError(errno.EACCES, "Permission denied"), UserError, "a place that can be written"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
    ],
)
def test_a_failure_leaves_nothing(
    tmp_path: Path,
    make_folder: Maker,
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    expected: type[BaseException],
    message: str,
) -> None:
    root = make_folder(files)

    def fail(*_: object) -> None:
        assert any(name.startswith(".store.partial-") for name in listing(tmp_path))
        raise failure

    monkeypatch.setitem(prepare_function.__globals__, "_wrap", fail)
    with pytest.raises(expected, match=message):
        prepare(str(root), tmp_path / "store")
    assert listing(tmp_path) == ["images"]


def test_existing_targets(tmp_path: Path, make_folder: Maker, files: Files, store: ClassStore) -> None:
    source = str(make_folder(dict(list(files.items())[3:]), "other"))
    with pytest.raises(UserError, match="'a store', expected a path where nothing is"):
        prepare(source, store.path)
    (store.path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"mine\.txt"):
        prepare(source, store.path, overwrite=True)
    (store.path / "mine.txt").unlink()
    new = prepare(source, store.path, overwrite=True)
    assert new.classes == ("b",)
    assert store.pixels[0].shape == (1, 6, 6), "who has the old one open keeps it"
    with pytest.raises(UserError, match="not a store"):
        prepare(source, tmp_path / "images", overwrite=True)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="not a store"):
        prepare(source, file, overwrite=True)
    assert listing(tmp_path) == ["file", "images", "other", "store"]
    assert listing(store.path) == ["manifest.json", "pixels.arrow"]


def test_what_comes_there_meanwhile_stays(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    def come(done: int, total: int) -> None:
        (tmp_path / "store").mkdir(exist_ok=True)
        (tmp_path / "store" / "mine.txt").write_text("precious")

    with pytest.raises(UserError, match="came there meanwhile"):
        prepare(str(make_folder(files)), tmp_path / "store", progress=come)
    assert listing(tmp_path) == ["images", "store"]
    assert listing(tmp_path / "store") == ["mine.txt"]


def test_failed_overwrite_keeps_the_old_store(tmp_path: Path, make_folder: Maker, store: ClassStore) -> None:
    with pytest.raises(UserError):
        prepare(str(make_folder({"a/1.png": b"bad"}, "bad")), store.path, overwrite=True)
    assert ClassStore.open(store.path).sha256 == store.sha256


def test_place_that_cannot_be_made(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a path where nothing is"):
        prepare(str(make_folder(files)), tmp_path / "file" / "store")


def test_parents_are_made(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    assert prepare(str(make_folder(files)), tmp_path / "x" / "y" / "store").path.is_dir()


@pytest.mark.parametrize("options", [{"size": 0}, {"size": -1}, {"size": 2.5}, {"size": True}, {"channels": 2}])
def test_options_out_of_range(tmp_path: Path, make_folder: Maker, files: Files, options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"data\.{next(iter(options))}"):
        prepare(str(make_folder(files)), tmp_path / "store", **options)


def test_progress(tmp_path: Path, make_folder: Maker, picture: Picture) -> None:
    root = make_folder({f"a/{number}.png": picture(number, 2) for number in range(70)} | {"a/bad.png": b""})
    seen: list[tuple[int, int]] = []
    prepare(str(root), tmp_path / "s", skip_bad=True, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 71), (64, 71), (71, 71)]


def test_the_store_does_not_depend_on_where_it_was_made(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    one_store = prepare(str(make_folder(files, "one")), tmp_path / "s1")
    two_store = prepare(str(make_folder(files, "two")), tmp_path / "s2")
    assert one_store.sha256 == two_store.sha256
    assert (one_store.path / "pixels.arrow").read_bytes() == (two_store.path / "pixels.arrow").read_bytes()
