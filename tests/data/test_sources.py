"""Reading folders, zips and scikit-learn's digits."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metadist.data import prepare
from metadist.data.sources import archive
from metadist.data.sources.base import leaf_folders, natural_key
from metadist.errors import UserError

Maker = Callable[..., Path]
Files = dict[str, Image.Image]

ORDER = ["a/x9/1.png", "a/x10/2.png", "a/x10/10.png", "b/1.png", "b/2.png", "b/3.png"]


def test_natural_order() -> None:
    names = ["x10", "x9", "x09", "x", "10", "9", "a/10", "a/9", "a", "x9b", "x9a10", "x9a9", "x" + "9" * 5000]
    ordered = [
        "9",
        "10",
        "a",
        "a/9",
        "a/10",
        "x",
        "x09",
        "x9",
        "x9a9",
        "x9a10",
        "x9b",
        "x10",
        "x" + "9" * 5000,
    ]
    assert sorted(names, key=natural_key) == ordered
    names.reverse()
    assert sorted(names, key=natural_key) == ordered


def test_leaf_folders() -> None:
    found = {"": ["cover.png"], "a": ["sheet.png"], "a/b/c": ["2.png", "1.png"], "ab": ["1.png"]}
    assert leaf_folders(found) == {"a/b/c": ["1.png", "2.png"], "ab": ["1.png"]}


def test_folder(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    store = prepare(str(make_folder(files)), tmp_path / "store")
    assert store.classes == ("a/x9", "a/x10", "b")
    assert np.array_equal(store.pixels[:, 0], [np.asarray(files[name]) for name in ORDER])


def test_zip_gives_the_same_store_as_the_folder(
    tmp_path: Path, make_folder: Maker, make_zip: Maker, files: Files
) -> None:
    folder = prepare(str(make_folder(files)), tmp_path / "store")
    shuffled = dict(reversed(files.items()))
    assert prepare(str(make_zip(shuffled)), tmp_path / "zipped").sha256 == folder.sha256
    windows = {name.replace("/", "\\"): image for name, image in files.items()}
    assert prepare(str(make_zip(windows, "w.zip")), tmp_path / "windows").sha256 == folder.sha256


def test_other_files_are_passed_over(tmp_path: Path, make_folder: Maker, make_zip: Maker, files: Files) -> None:
    junk = {
        "classes.txt": b"a\nb",
        "cover.png": b"of no class",
        "a/sheet.png": b"of no class",
        "a/x9/notes.csv": b"",
        "a/x9/._1.png": b"resource fork",
        ".hidden/1.png": b"no image",
        "__MACOSX/b/1.png": b"no image",
        "empty/readme.md": b"",
    }
    plain = prepare(str(make_folder(files)), tmp_path / "plain")
    assert prepare(str(make_folder(files | junk, "junk")), tmp_path / "s").sha256 == plain.sha256
    assert prepare(str(make_zip(files | junk)), tmp_path / "z").sha256 == plain.sha256


def test_links_to_folders_are_followed_once(tmp_path: Path, make_folder: Maker, files: Files) -> None:
    plain = prepare(str(make_folder(files)), tmp_path / "plain")
    links = tmp_path / "links"
    links.mkdir()
    for name in ("a", "b"):
        (links / name).symlink_to(tmp_path / "images" / name)
    assert prepare(str(links), tmp_path / "store").sha256 == plain.sha256
    (tmp_path / "images" / "a" / "loop").symlink_to(tmp_path / "images")
    assert prepare(str(tmp_path / "images"), tmp_path / "again").classes == plain.classes


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    store = prepare("sklearn:digits", tmp_path / "store")
    assert store.classes == tuple("0123456789")
    assert store.pixels.shape == (1797, 1, 8, 8)
    digits = load_digits()
    threes = np.rint(digits.images[digits.target == 3] / 16 * 255)
    assert np.array_equal(store.pixels[store.offsets[3] : store.offsets[4], 0], threes)
    assert store.pixels.max() == 255


@pytest.mark.parametrize("entry", ["../evil/1.png", "a/../../1.png", "/etc/1.png", "C:\\a\\1.png", "..\\a\\1.png"])
def test_zip_that_points_outside(tmp_path: Path, make_zip: Maker, files: Files, entry: str) -> None:
    path = make_zip(files | {entry: b"x"})
    with pytest.raises(UserError, match="may be hostile") as raised:
        prepare(str(path), tmp_path / "store")
    assert raised.value.value == entry
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images.zip"]


def test_dots_in_names_are_no_way_out(tmp_path: Path, make_zip: Maker, picture: Callable[..., Image.Image]) -> None:
    store = prepare(str(make_zip({"a..b/1..png.png": picture(0)})), tmp_path / "store")
    assert store.classes == ("a..b",)


def test_zip_bomb(tmp_path: Path, make_zip: Maker, files: Files) -> None:
    path = make_zip(files | {"b/bomb.png": bytes(archive.MAX_FILE_BYTES + 1)})
    with pytest.raises(UserError, match=r"b/bomb\.png: got '67108865 bytes unpacked'"):
        prepare(str(path), tmp_path / "store", skip_bad=True)


def test_zip_bomb_that_lies_about_its_size(tmp_path: Path, make_zip: Maker) -> None:
    """The declared size bounds what is unpacked, whatever the data holds."""
    path = make_zip({"a/1.png": bytes(1 << 20)})
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<L", 1 << 20), struct.pack("<L", 100)))
    with pytest.raises(UserError, match=r"images\.zip:a/1\.png"):
        prepare(str(path), tmp_path / "store")


def test_only_formats_of_images_are_decoded(tmp_path: Path, make_folder: Maker) -> None:
    """PostScript in a file called .png would start an interpreter of it."""
    root = make_folder({"a/1.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"})
    with pytest.raises(UserError, match="cannot identify image file"):
        prepare(str(root), tmp_path / "store")


def test_image_of_too_many_pixels(tmp_path: Path, make_folder: Maker) -> None:
    big = Image.new("1", (8001, 8000))
    root = make_folder({"a/big.png": big})
    with pytest.raises(UserError, match=r"big\.png: got '8001×8000 pixels, more than 64000000'"):
        prepare(str(root), tmp_path / "store", size=8)


def test_broken_zip(tmp_path: Path, make_zip: Maker, files: Files) -> None:
    path = make_zip(files)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="a whole zip archive"):
        prepare(str(path), tmp_path / "store")


def test_encrypted_zip(tmp_path: Path, make_zip: Maker, files: Files) -> None:
    path = make_zip(files)
    data = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(mark) + flags] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="an encrypted entry"):
        prepare(str(path), tmp_path / "store")


def test_entry_that_comes_twice(tmp_path: Path, make_zip: Maker, picture: Callable[..., Image.Image]) -> None:
    path = make_zip({"a/1.png": picture(0)})
    picture(1).save(tmp_path / "1.png")
    with zipfile.ZipFile(path, "a") as more, pytest.warns(UserWarning, match="Duplicate"):
        more.write(tmp_path / "1.png", "a/1.png")
    store = prepare(str(path), tmp_path / "store")
    assert np.array_equal(store.pixels[:, 0], [np.asarray(picture(1))])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "a folder of class folders"),
        ("nowhere/at/all", "There is nothing at /"),
        ("sklearn:digit", "Did you mean 'sklearn:digits'"),
        ("torchvison:MNIST", "Did you mean 'torchvision:MNIST'"),
        ("s3://bucket/store", "A store is used as it is"),
    ],
)
def test_unknown_sources(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        prepare(source, tmp_path / "store")
    assert raised.value.field == "data.source"
    assert list(tmp_path.iterdir()) == []


def test_sources_without_classes(tmp_path: Path, make_folder: Maker, make_zip: Maker) -> None:
    for source in (
        make_folder({"1.png": b"", "x/notes.txt": b""}),
        make_zip({"1.png": b"", "x/notes.txt": b""}),
    ):
        with pytest.raises(UserError, match="a folder of their own"):
            prepare(str(source), tmp_path / "store")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "images.zip"]
