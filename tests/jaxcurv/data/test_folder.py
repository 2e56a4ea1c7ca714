"""A user's own images: read where they lie, each with an index of its own and its file's path."""

import hashlib
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxcurv import FiniteDifference, score_dataset
from jaxcurv.data import (
    Arrays,
    Chosen,
    Labelled,
    Normalisation,
    Normalised,
    Preprocessing,
    Source,
    load,
    read,
    with_labels,
)
from jaxcurv.data import folder as folder_module
from jaxcurv.data.datasets import open_folder
from jaxcurv.data.folder import path_indices
from jaxcurv.data.images import decode
from jaxcurv.data.sources import IndexedSource, path_column
from tests.jaxcurv.data.test_data import write_prepared

FOUR = Preprocessing(4, 4)


def save_image(path: Path, height: int, width: int, level: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), level if mode == "L" else (level, 0, 255 - level)).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes, three train images a class in several formats, one test image a class."""
    for label, name in enumerate(["ant", "bee"]):
        for i, suffix in enumerate(["png", "BMP", "webp"]):
            save_image(tmp_path / f"pets/train/{name}/{i}.{suffix}", 6, 8, 100 * label + i)
        save_image(tmp_path / f"pets/val/{name}/0.png", 6, 8, 50 + label)
    (tmp_path / "pets/train/ant/notes.txt").write_text("not an image")
    return tmp_path


def add_five(split: Path) -> list[str]:
    """Adds images before, between and behind those that are there."""
    names = ["ant/-1.png", "ant/00.png", "ant/sub/7.png", "bee/1.png", "bee/9.png"]
    for number, name in enumerate(names):
        save_image(split / name, 6, 8, 200 + number)
    return names


def listing(directory: Path) -> dict[str, int]:
    """Every file and folder in it, with the time of its last change."""
    found = [directory, *directory.rglob("*")]
    return {path.relative_to(directory).as_posix(): path.stat().st_mtime_ns for path in found}


def digest(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


# --- trees


def test_image_tree(tree: Path) -> None:
    pets = load("pets", tree)
    assert isinstance(pets.train, IndexedSource)
    train, test = read(pets.train), read(pets.test)
    assert pets.class_names == ("ant", "bee")
    assert train.images.shape == (6, 6, 8, 3)
    names = ["ant/0.png", "ant/1.BMP", "ant/2.webp", "bee/0.png", "bee/1.BMP", "bee/2.webp"]
    assert train.paths is not None
    assert train.paths.tolist() == names
    assert train.indices.tolist() == [digest(name) for name in names]
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    lossless = train.images[[0, 1, 3, 4], 0, 0, 0]  # WebP is not
    np.testing.assert_array_equal(lossless, [0, 1, 100, 101])
    np.testing.assert_array_equal(test.images[:, 0, 0, 0], [50, 51])
    assert test.indices.tolist() == train.indices[[0, 3]].tolist()  # unique within a split


@pytest.fixture
def read_only(tree: Path) -> Any:
    folders = [path for path in (tree / "pets").rglob("*") if path.is_dir()] + [tree / "pets"]
    for path in folders:
        path.chmod(0o555)
    yield tree
    for path in folders:
        path.chmod(0o755)


@pytest.mark.parametrize("preprocessing", [None, FOUR])
def test_nothing_is_written_among_the_images(
    read_only: Path, preprocessing: Preprocessing | None
) -> None:
    before = listing(read_only)  # root may write in spite of the permissions
    pets = load("pets", read_only, preprocessing)
    for split in (pets.train, pets.test):
        read(split)
        with_labels(split)
    assert listing(read_only) == before


def test_added_images_are_there_and_leave_the_others_as_they_were(tree: Path) -> None:
    before = scored(load("pets", tree).train)
    added = add_five(tree / "pets/train")
    after = scored(load("pets", tree).train)
    assert sorted(after["path"].tolist()) == sorted([*before["path"].tolist(), *added])
    kept = np.flatnonzero(~np.isin(after["path"].tolist(), added))
    # The index keys the probes: the scores are the same to the bit.
    assert after.iloc[kept].reset_index(drop=True).equals(before)
    assert len(set(after["index"].tolist())) == 11


def scored(source: Source) -> pd.DataFrame:
    """The table of a small random network, whose scores depend on their probes."""
    weights = np.random.default_rng(0).normal(size=(6 * 8 * 3, 2)).astype(np.float32)
    normalised = Normalised(source, Normalisation((0.5,) * 3, (0.3,) * 3))
    return score_dataset(
        lambda params, images: jnp.tanh(images.reshape(len(images), -1) @ params / 9),
        normalised,
        key=jax.random.key(0),
        params=weights,
        estimators={"curvature": FiniteDifference(probes=2)},
        batch_size=4,
    )


def test_prepared_copies_of_earlier_versions_are_ignored(tree: Path) -> None:
    write_prepared(tree / "pets/1.0.0")
    add_five(tree / "pets/train")
    assert len(load("pets", tree).train) == 11
    assert len(load("pets", tree).test) == 2
    assert len(open_folder(tree / "pets", "train")) == 11
    (tree / "pets/val").rename(tree / "val")
    with pytest.raises(ValueError, match="has the folder train only"):  # 1.0.0 is no class
        open_folder(tree / "pets")
    with pytest.raises(FileNotFoundError, match="no folder test"):
        load("pets", tree)


def test_images_of_a_kind_that_is_not_read_are_named(tree: Path) -> None:
    for name in ("train/bee/a.HEIC", "train/bee/IM0001"):
        (tree / "pets" / name).write_bytes(b"an image")
    message = r"train: 2 files or links to folders are not read, the first is bee/IM0001: convert"
    with pytest.warns(UserWarning, match=message):
        dataset = load("pets", tree)
    assert len(dataset.train) == 6


def test_doubts_of_pixels_are_told_once_a_folder(tmp_path: Path) -> None:
    for n in range(10):
        place = tmp_path / f"scans/{'ab'[n % 2]}/{n}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * (60 if n else 1000)
        Image.fromarray(levels).save(place)
    source = folder_module.open_image_folder(tmp_path / "scans", channels=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read(source)
        read(source)
        source[3]
    message = r"a/2\.png \(the first of 9 among the 10 images read with it\), .* above 4095.*once"
    assert len(told) == 1
    assert re.search(message, str(told[0].message))
    again = folder_module.open_image_folder(tmp_path / "scans", channels=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for position in range(10):
            again[position]
    assert len(told) == 1
    assert re.search(r"scans/a/2\.png, an image of 16 bits, has no", str(told[0].message))


def test_previews_are_no_samples_and_links_are_named(tree: Path) -> None:
    bee = tree / "pets/train/bee"
    for place in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        save_image(bee / place / "0.png", 6, 8, 1)
    (bee / "more").symlink_to(tree / "pets/train/ant")
    with pytest.warns(UserWarning, match="1 files or links to folders are not read.* bee/more"):
        train = load("pets", tree).train
    assert sorted(train.paths)[3:] == ["bee/0.png", "bee/1.BMP", "bee/2.webp"]


def test_image_tree_with_two_sizes_needs_an_image_size(tree: Path) -> None:
    save_image(tree / "pets/train/bee/9.png", 20, 10, 200, "L")
    unequal = load("pets", tree)
    assert unequal.train[0]["image"].shape == (6, 8, 3)
    with pytest.raises(ValueError, match=r"differ in size.*bee/9\.png.*--data\.image-size"):
        read(unequal.train)
    others = (FOUR, Preprocessing(4, 5), Preprocessing(4, 4, "bilinear"))
    for preprocessing in others:
        arrays = read(load("pets", tree, preprocessing=preprocessing).train)
        assert arrays.images.shape == (7, 4, 4, 3)
        expected = decode(tree / "pets/train/bee/9.png", preprocessing=preprocessing)
        np.testing.assert_array_equal(arrays.images[6], expected)
        np.testing.assert_array_equal(arrays.images[6], 200)  # the gray image
    five = load("pets", tree, preprocessing=Preprocessing(5, 5))
    assert read(five.test).images.shape == (2, 5, 5, 3)
    for name in ("ant", "bee"):
        save_image(tree / f"pets/val/{name}/0.png", 9, 8, 50)
    with pytest.raises(ValueError, match=r"train/ant/0\.png is \(6, 8\), .*val/ant/0\.png is \(9"):
        load("pets", tree)


def test_image_tree_errors(tree: Path) -> None:
    listed = r"no data set 'cats'.*found there: pets; anywhere: digits, cifar10"
    with pytest.raises(FileNotFoundError, match=listed):
        load("cats", tree)
    (tree / "pets/train/cow").mkdir()
    with pytest.raises(FileNotFoundError, match=r"class folder .*cow has no image"):
        load("pets", tree)
    for name in ("0.pgm", "1.dcm", "notes.txt"):
        (tree / "pets/train/cow" / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no image .*2 files .* cow/0\.pgm, .*: convert"):
        load("pets", tree)
    for name in ("0.pgm", "1.dcm"):
        (tree / "pets/train/cow" / name).unlink()
    save_image(tree / "pets/train/cow/0.png", 6, 8, 1)
    with pytest.raises(ValueError, match="only one has cow"):
        load("pets", tree)
    save_image(tree / "pets/val/cow/0.png", 6, 8, 1)
    broken = tree / "pets/val/cow/1.png"
    broken.write_bytes((tree / "pets/val/cow/0.png").read_bytes()[:45])
    for preprocessing in (None, FOUR):
        with pytest.raises(ValueError, match=r"cow/1\.png is not a readable image"):
            read(load("pets", tree, preprocessing).test)
    (tree / "empty/train").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no folder test"):
        load("empty", tree)
    (tree / "empty/test").mkdir()
    with pytest.raises(FileNotFoundError, match="no class folders"):
        load("empty", tree)


# --- folders


@pytest.mark.parametrize("split", ["train", None])
def test_a_split_is_a_folder_of_classes_itself(tree: Path, split: Any) -> None:
    in_place = open_folder(tree / "pets", split, preprocessing=FOUR)
    assert isinstance(in_place, Source)
    assert in_place.channels == 3
    pets = load("pets", tree, preprocessing=FOUR)
    flat = open_folder(tree / "pets" / ("train" if split else "val"), preprocessing=FOUR)
    found = read(in_place)
    for other in (read(pets.train if split else pets.test), read(flat)):
        for name in ("images", "labels", "indices", "paths"):
            np.testing.assert_array_equal(getattr(found, name), getattr(other, name))


def test_folder_errors(tree: Path) -> None:
    pets = tree / "pets"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_folder(tree / "cats")
    with pytest.raises(FileNotFoundError, match="no class folders"):
        open_folder(pets / "train/ant")
    with pytest.raises(ValueError, match="no folders train and test"):
        open_folder(pets / "train", "test")
    with pytest.raises(ValueError, match="at least 1 pixel"):
        open_folder(pets, preprocessing=Preprocessing(0, 0))
    save_image(pets / "val/bee/1.png", 9, 8, 50)
    unequal = open_folder(pets)
    with pytest.raises(
        ValueError, match=r"differ in size.*bee/1\.png.*choose one with --image-size"
    ):
        unequal[2]
    save_image(pets / "val/cow/0.png", 6, 8, 50)
    with pytest.raises(ValueError, match="only one has cow"):
        open_folder(pets)
    (pets / "val").rename(tree / "val")
    with pytest.raises(ValueError, match="has the folder train only"):
        open_folder(pets)


# --- indices


def test_indices_stay_the_same_across_releases() -> None:
    # Written down once: the probes of published scores rest on them.
    found = path_indices(["ant/0.png", "bee/0.png", "dossier/é 1.JPEG"])
    assert found.tolist() == [2526071939, 1247874631, 2623199608]
    assert found.dtype == np.int64


def test_of_images_that_share_a_number_the_first_keeps_it() -> None:
    """Two real pairs of paths whose SHA-256 begins with the same four bytes."""
    pairs = [("ant/26295.png", "ant/29879.png"), ("ant/15853.png", "ant/98829.png")]
    for first, second in pairs:
        number = digest(first)
        assert digest(second) == number
        expected = [number, digest(second + "\0" + "1")]
        assert path_indices([first, second]).tolist() == expected
        assert path_indices([second, first]).tolist() == expected[::-1]
        assert path_indices([second]).tolist() == [number]


@pytest.fixture
def few_numbers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """Many of 48 numbers are shared; the one that a path asks for first."""
    hashed = folder_module._hashed
    monkeypatch.setattr(folder_module, "_hashed", lambda path, number: hashed(path, number) % 48)
    return lambda path: digest(path) % 48


def test_an_added_image_moves_only_those_that_it_collides_with(
    few_numbers: Callable[[str], int],
) -> None:
    paths = [f"c/{number}.png" for number in range(36)]
    rng = np.random.default_rng(0)
    moved = 0
    for added in paths:
        others = [path for path in paths if path != added]
        before = dict(zip(others, path_indices(others).tolist(), strict=True))
        mixed = rng.permutation(paths).tolist()
        after = dict(zip(mixed, path_indices(mixed).tolist(), strict=True))
        assert len(set(after.values())) == len(paths)
        assert dict(zip(paths, path_indices(paths).tolist(), strict=True)) == after
        for path in others:
            if before[path] == few_numbers(path) != few_numbers(added):
                assert after[path] == before[path]
        changed = [path for path in others if after[path] != before[path]]
        asked = {few_numbers(path) for path in others}
        if few_numbers(added) not in {*asked, *before.values()}:
            assert not changed
        moved += len(changed)
    assert moved > 0  # or nothing was tried


# --- paths


def test_views_know_the_files_of_their_samples(tree: Path) -> None:
    pets = load("pets", tree).train
    labelled = with_labels(pets)
    positions = np.array([4, 1])
    chosen = Chosen(labelled, positions)
    arrays = read(chosen)
    other = Labelled(arrays, np.array([1, 0], np.int32), arrays.indices)
    normalised = Normalised(other, Normalisation((0.5,) * 3, (0.3,) * 3))
    for view in (chosen, arrays, other, normalised, arrays.take(np.arange(2))):
        assert path_column(view, [0, 1])["path"].tolist() == ["bee/1.BMP", "ant/1.BMP"]
        assert path_column(view, slice(1, 2))["path"].tolist() == ["ant/1.BMP"]
    assert path_column(chosen.take(np.array([1])), slice(0, 9))["path"].tolist() == ["ant/1.BMP"]


def test_what_has_no_files_gets_no_column() -> None:
    digits = load("digits").test
    for source in (digits, Chosen(digits, np.arange(3)), with_labels(digits), [{"image": 0}]):
        assert path_column(source, [0]) == {}
    assert read(digits, [0, 1]).paths is None


def test_paths_must_be_one_a_sample() -> None:
    with pytest.raises(ValueError, match="2 samples and 1 paths"):
        Arrays(
            np.zeros((2, 1, 1, 1), np.uint8),
            np.zeros(2, np.int32),
            np.arange(2),
            np.array(["only"], object),
        )


def test_names_that_are_no_unicode_are_escaped_in_tables(tree: Path) -> None:
    image = tree / "pets/train/ant/0.png"
    try:
        image.rename(os.fsdecode(os.fsencode(image.parent) + b"/caf\xe9.png"))
    except OSError:
        pytest.skip("the file system takes names in Unicode only")
    table = scored(load("pets", tree).train)
    assert "ant/caf\\xe9.png" in table["path"].tolist()


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_every_row_of_several_checkpoints_names_its_file(tree: Path) -> None:
    source = Normalised(load("pets", tree).test, Normalisation((0.5,) * 3, (0.3,) * 3))
    weights = [np.full((6 * 8 * 3, 2), value, np.float32) for value in (0.1, 0.2)]

    def table(**settings: Any) -> pd.DataFrame:
        return score_dataset(
            lambda params, images: images.reshape(len(images), -1) @ params,
            source,
            key=jax.random.key(0),
            checkpoints=weights,
            estimators=settings.pop("estimators", {"curvature": FiniteDifference(probes=1)}),
            **settings,
        )

    assert table()["path"].tolist() == ["ant/0.png"] * 2 + ["bee/0.png"] * 2
    assert table(average=True)["path"].tolist() == ["ant/0.png", "bee/0.png"]
    with pytest.raises(ValueError, match="an estimator cannot be named path"):
        table(estimators={"path": FiniteDifference()})
