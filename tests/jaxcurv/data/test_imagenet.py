"""Tiny-ImageNet and ImageNet in the layouts of their archives."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcurv.data import Chosen, ImageDataset, IndexedSource, Preprocessing, load, read, subset

WNIDS = ["n01", "n02", "n07"]
SMALL = Preprocessing(4, 5, "bilinear")


def save(path: Path, level: int, mode: str = "RGB", size: tuple[int, int] = (9, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = level if mode == "L" else (level,) * len(mode)
    Image.new(mode, size, color).save(path, "JPEG")


def levels(dataset: ImageDataset, split: str) -> dict[int, tuple[int, int]]:
    """Label and gray level of every sample by index; the levels as they were saved."""
    arrays = read(getattr(dataset, split))
    np.testing.assert_array_equal(getattr(dataset, split).indices, arrays.indices)
    np.testing.assert_array_equal(getattr(dataset, split).labels, arrays.labels)
    found = arrays.images.mean((1, 2, 3)).round().astype(int)
    columns = (arrays.indices.tolist(), arrays.labels.tolist(), found.tolist())
    return {index: (label, level) for index, label, level in zip(*columns, strict=True)}


# --- Tiny-ImageNet


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for number in range(2):
            save(folder / f"train/{wnid}/images/{wnid}_{number}.JPEG", 60 * label + 10 * number)
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text("boxes")
    lines = []
    for number, wnid in ((10, "n07"), (2, "n01"), (7, "n02"), (0, "n07")):
        save(folder / f"val/images/val_{number}.JPEG", 20 * number, "L")
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    save(folder / "test/images/test_0.JPEG", 1)
    (folder / "wnids.txt").write_text("n07\nn01\nn02\n")  # not sorted, as the archive's
    (folder / "words.txt").write_text("n00\tanything\nn02\tbee, insect\nn01\tant\n")
    return folder


def test_tiny_imagenet(tiny: Path) -> None:
    dataset = load("tiny_imagenet", tiny.parent)
    assert dataset.class_names == ("ant", "bee, insect", "n07")
    train = {0: (0, 0), 1: (0, 10), 2: (1, 60), 3: (1, 70), 4: (2, 120), 5: (2, 130)}
    assert levels(dataset, "train") == train
    assert levels(dataset, "test") == {0: (2, 0), 2: (0, 40), 7: (1, 140), 10: (2, 200)}
    assert read(dataset.test).images.shape == (4, 6, 9, 3)
    assert isinstance(dataset.test, IndexedSource)
    assert dataset.test.indices.dtype == dataset.test.labels.dtype == np.int64
    small = load("tiny_imagenet", tiny.parent, SMALL)
    assert read(small.train).images.shape == (6, 4, 4, 3)
    # Nothing is copied.
    left = ["test", "train", "val", "wnids.txt", "words.txt"]
    assert sorted(path.name for path in tiny.iterdir()) == left


def test_tiny_imagenet_without_its_lists_and_by_its_other_name(tiny: Path) -> None:
    for name in ("wnids.txt", "words.txt"):
        (tiny / name).unlink()
    tiny.rename(tiny.parent / "tiny_imagenet")
    dataset = load("tiny_imagenet", tiny.parent)
    assert dataset.class_names == tuple(WNIDS)
    assert levels(dataset, "test")[10] == (2, 200)


def test_tiny_imagenet_of_a_part_of_the_classes(tiny: Path) -> None:
    for path in sorted((tiny / "train/n01").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tiny / "train/n01").rmdir()
    dataset = load("tiny_imagenet", tiny.parent)
    assert dataset.train.labels.tolist() == [1, 1, 2, 2]
    (tiny / "wnids.txt").unlink()
    with pytest.raises(ValueError, match=r"val has images of n01, not among the 2 classes of .*tr"):
        load("tiny_imagenet", tiny.parent)


def annotate(text: str) -> Callable[[Path], object]:
    return lambda tiny: (tiny / "val/val_annotations.txt").write_text(text)


def more(line: str) -> Callable[[Path], object]:
    def change(tiny: Path) -> None:
        path = tiny / "val/val_annotations.txt"
        path.write_text(path.read_text() + line)

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda tiny: (tiny / "val/val_annotations.txt").unlink(),
            FileNotFoundError,
            r"val_annotations\.txt is missing.*take it from the archive tiny-imagenet-200\.zip",
        ),
        (
            lambda tiny: (tiny / "val/images/val_7.JPEG").unlink(),
            FileNotFoundError,
            r"images lacks val_7\.JPEG, listed in .*val_annotations\.txt: add .*or remove their",
        ),
        (
            lambda tiny: save(tiny / "val/images/val_8.JPEG", 1),
            ValueError,
            r"does not list val_8\.JPEG of .*images: add lines",
        ),
        (
            lambda tiny: [save(tiny / f"val/images/val_8{i}.JPEG", 1) for i in range(5)],
            ValueError,
            r"not list val_80\.JPEG, val_81\.JPEG, val_82\.JPEG and 2 more of",
        ),
        (
            lambda tiny: (tiny / "val/images").rename(tiny / "val/pictures"),
            FileNotFoundError,
            r"images lacks val_0\.JPEG, val_10\.JPEG, val_2\.JPEG and 1 more",
        ),
        (more("val_9.JPEG n01\n"), ValueError, r"line 5 of .*tab separated, but is 'val_9"),
        (more("val_7.JPEG\tn01\n"), ValueError, r"line 5 of .*not listed before"),
        (
            lambda tiny: (more("val_9.JPEG\tn03\n")(tiny), save(tiny / "val/images/val_9.JPEG", 1)),
            ValueError,
            r"val has images of n03, not among the 3 classes of .*wnids\.txt: complete that",
        ),
        (
            lambda tiny: save(tiny / "train/n05/images/n05_0.JPEG", 1),
            ValueError,
            r"train has images of n05, not among the 3 classes of .*wnids\.txt",
        ),
        (
            lambda tiny: (
                more("val_07.JPEG\tn02\n")(tiny),
                save(tiny / "val/images/val_07.JPEG", 1),
            ),
            ValueError,
            r"images/val_7\.JPEG in .*val has the number 7 of another image: remove one",
        ),
        (
            lambda tiny: (tiny / "wnids.txt").write_text("n01\nn02\nn07\nn02\n"),
            ValueError,
            r"wnids\.txt must have every wnid of the data set once",
        ),
        (
            lambda tiny: (tiny / "train").rename(tiny / "training"),
            FileNotFoundError,
            r"has no folder train: put train of the tiny_imagenet archive there",
        ),
        (
            lambda tiny: [path.unlink() for path in (tiny / "train/n02/images").iterdir()],
            FileNotFoundError,
            r"class folder .*n02 has no image.*add its images, or remove it",
        ),
        (
            lambda tiny: tiny.rename(tiny.parent / "tiny"),
            FileNotFoundError,
            r"no data set 'tiny_imagenet' in .*put the folders train and val of its archive in "
            r".*/tiny-imagenet-200 or .*/tiny_imagenet$",
        ),
    ],
)
def test_tiny_imagenet_errors(
    change: Callable[[Path], object], error: type[Exception], message: str, tiny: Path
) -> None:
    change(tiny)
    with pytest.raises(error, match=message):
        load("tiny_imagenet", tiny.parent)


def test_tiny_imagenet_that_lists_no_image(tiny: Path) -> None:
    annotate("")(tiny)
    for path in (tiny / "val/images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="lists no image"):
        load("tiny_imagenet", tiny.parent)


def test_tiny_imagenet_sorted_into_classes_is_an_image_tree(tiny: Path) -> None:
    annotations = tiny / "val/val_annotations.txt"
    for line in annotations.read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        (tiny / "val" / wnid).mkdir(exist_ok=True)
        (tiny / "val/images" / name).rename(tiny / "val" / wnid / name)
    annotations.unlink()
    (tiny / "val/images").rmdir()
    with pytest.raises(FileNotFoundError, match=r"is an image tree: move .*test away"):
        load("tiny_imagenet", tiny.parent)
    (tiny / "test").rename(tiny.parent / "unlabelled")
    tree = load("tiny-imagenet-200", tiny.parent)
    assert tree.class_names == tuple(WNIDS)
    assert len(tree.test) == 4


# --- ImageNet


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    folder = tmp_path / "imagenet"
    for label, wnid in enumerate(WNIDS):
        for number in (3, 12):
            save(folder / f"train/{wnid}/{wnid}_{number}.JPEG", 60 * label + number)
    for number, wnid, size in ((3, "n02", (9, 6)), (1, "n07", (8, 20)), (2, "n01", (5, 5))):
        save(folder / f"val/{wnid}/ILSVRC2012_val_{number:08d}.JPEG", 50 * number, size=size)
    return folder


def test_imagenet(imagenet: Path) -> None:
    dataset = load("imagenet", imagenet.parent, SMALL)
    assert dataset.class_names == tuple(WNIDS)
    # By path: n01_12 comes before n01_3.
    train = {0: (0, 12), 1: (0, 3), 2: (1, 72), 3: (1, 63), 4: (2, 132), 5: (2, 123)}
    assert levels(dataset, "train") == train
    assert levels(dataset, "test") == {1: (2, 50), 2: (0, 100), 3: (1, 150)}
    assert read(dataset.test).images.shape == (3, 4, 4, 3)
    assert sorted(path.name for path in imagenet.iterdir()) == ["train", "val"]
    unequal = load("imagenet", imagenet.parent).test
    with pytest.raises(ValueError, match=r"differ in size.*--image-size, or --data\.image-size"):
        read(unequal)


@pytest.mark.parametrize("folder", ["ILSVRC2012", "imagenet-1k"])
def test_imagenet_in_other_folders(folder: str, imagenet: Path) -> None:
    imagenet.rename(imagenet.parent / folder)
    assert len(load("imagenet", imagenet.parent, SMALL).test) == 3


def test_imagenet_without_numbers_is_in_sorted_order(imagenet: Path) -> None:
    save(imagenet / "val/n02/another.JPEG", 200)
    dataset = load("imagenet", imagenet.parent, SMALL)
    assert levels(dataset, "test") == {0: (0, 100), 1: (1, 150), 2: (1, 200), 3: (2, 50)}


def test_imagenet_in_gray_and_cmyk(imagenet: Path) -> None:
    save(imagenet / "val/n02/ILSVRC2012_val_00000003.JPEG", 150, "L")
    save(imagenet / "val/n01/ILSVRC2012_val_00000002.JPEG", 0, "CMYK")
    dataset = load("imagenet", imagenet.parent, SMALL)
    assert levels(dataset, "test") == {1: (2, 50), 2: (0, 255), 3: (1, 150)}


def only(imagenet: Path, split: str, *kept: str) -> None:
    for folder in (imagenet / split).iterdir():
        if folder.name not in kept:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()


def test_labels_of_a_part_are_those_of_the_whole(imagenet: Path) -> None:
    only(imagenet, "val", "n07")
    assert load("imagenet", imagenet.parent, SMALL).test.labels.tolist() == [2]  # from train
    only(imagenet, "train", "n02")
    (imagenet / "wnids.txt").write_text("n07\nn02\nn01\nn05\n")
    dataset = load("imagenet", imagenet.parent, SMALL)
    assert dataset.class_names == ("n01", "n02", "n05", "n07")
    assert dataset.train.labels.tolist() == [1, 1]
    assert dataset.test.labels.tolist() == [3]
    (imagenet / "wnids.txt").unlink()
    with pytest.raises(ValueError, match=r"val has images of n07, not among the 1 classes of"):
        load("imagenet", imagenet.parent, SMALL)


def test_labels_of_a_table(imagenet: Path) -> None:
    only(imagenet, "val", "n07")
    table = imagenet / "classes.tsv"
    header = "class_index\twnid\tname\n"
    table.write_text(header + '0\tn01\t"ant"\n1\tn02\tbee\n2\tn03\tcow\n3\tn07\tdog\n')
    dataset = load("imagenet", imagenet.parent, SMALL)
    assert dataset.class_names == ('"ant"', "bee", "cow", "dog")
    assert dataset.test.labels.tolist() == [3]
    # A table of a part of the classes: there are 1,000 all the same.
    table.write_text(header + "2\tn01\tant\n5\tn02\tbee\n998\tn07\tdog\n")
    dataset = load("imagenet", imagenet.parent, SMALL)
    assert len(dataset.class_names) == 1000
    assert [dataset.class_names[label] for label in (2, 3, 998)] == ["ant", "class 3", "dog"]
    assert dataset.train.labels.tolist() == [2, 2, 5, 5, 998, 998]
    # Without numbers, ranks; wnids.txt comes first, and the table names its wnids.
    table.write_text("wnid\tname\nn07\tdog\nn01\tant\nn02\tbee\n")
    assert load("imagenet", imagenet.parent, SMALL).class_names == ("ant", "bee", "dog")
    (imagenet / "wnids.txt").write_text("n01\nn02\nn04\nn07\n")
    assert load("imagenet", imagenet.parent, SMALL).class_names == ("ant", "bee", "n04", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wnids\nn01\n", r"classes\.tsv must begin with the line class_index, wnid, name"),
        ("", r"must begin with the line"),
        ("wnid\tname\n", "lists no class"),
        ("wnid\nn01\nn01\n", r"line 3 of .*another wnid than those before"),
        ("class_index\twnid\nx\tn01\n", "line 2 of .*a class_index from 0"),
        ("class_index\twnid\n1\tn01\n0\tn02\n", "must rise with the wnid"),
        ("class_index\twnid\n1\tn01\n1\tn02\n", "must rise with the wnid"),
        ("class_index\twnid\n0\tn01\n1\tn02\n", r"train has images of n07, not among the 2 class"),
    ],
)
def test_table_errors(text: str, message: str, imagenet: Path) -> None:
    (imagenet / "classes.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load("imagenet", imagenet.parent, SMALL)


def test_imagenet_errors(imagenet: Path) -> None:
    save(imagenet / "val/n02/ILSVRC2012_val_00000001.JPEG", 200)
    with pytest.raises(ValueError, match=r"n07/ILSVRC2012_val_00000001\.JPEG in .* number 1 of"):
        load("imagenet", imagenet.parent)
    only(imagenet, "val")
    with pytest.raises(FileNotFoundError, match=r"val has no class folders"):
        load("imagenet", imagenet.parent)
    (imagenet / "val").rmdir()
    with pytest.raises(FileNotFoundError, match="has no folder val: put val of the imagenet"):
        load("imagenet", imagenet.parent)


def test_a_choice_of_samples_keeps_indices_and_labels(imagenet: Path) -> None:
    source = load("imagenet", imagenet.parent, SMALL).test
    chosen = Chosen(source, subset(source.indices, 2, seed=0))
    arrays = read(chosen)
    np.testing.assert_array_equal(chosen.indices, arrays.indices)
    np.testing.assert_array_equal(chosen.labels, arrays.labels)
    assert np.all(np.diff(arrays.indices) > 0)


# --- the real thing, in part


def shared(name: str) -> Path:
    folder = Path(os.environ.get("JAXCURV_DATA_DIR") or "nowhere") / name
    if not folder.is_dir():
        pytest.skip(f"JAXCURV_DATA_DIR does not name a folder with {name}")
    return folder


def test_real_tiny_imagenet(tmp_path: Path) -> None:
    source, folder = shared("tiny-imagenet-200"), tmp_path / "tiny-imagenet-200"
    (folder / "val/images").mkdir(parents=True)
    wnids = sorted(path.name for path in (source / "val").iterdir())
    lines = []
    for wnid in wnids:
        images = folder / f"train/{wnid}/images"
        images.mkdir(parents=True)
        for file in (source / "val" / wnid).iterdir():
            (images / file.name).symlink_to(file)
            (folder / "val/images" / file.name).symlink_to(file)
            lines.append(f"{file.name}\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    (folder / "classes.tsv").symlink_to(source / "classes.tsv")
    dataset = load("tiny_imagenet", tmp_path)
    assert len(dataset.class_names) == 200
    assert dataset.class_names[0] == "goldfish, Carassius auratus"
    assert len(dataset.test) == 2000
    assert np.bincount(dataset.test.labels).tolist() == [10] * 200
    position = int(np.flatnonzero(dataset.test.indices == 1230)[0])
    sample = dataset.test[position]
    assert (sample["label"], sample["index"]) == (0, 1230)
    file = source / "val/n01443537/val_1230.JPEG"
    with Image.open(file) as image:
        np.testing.assert_array_equal(sample["image"], np.asarray(image.convert("RGB")))
    # All of one class, and the gray ones among them, are 64x64 RGB.
    assert read(dataset.test, range(0, 2000, 7)).images.shape[1:] == (64, 64, 3)


def test_real_imagenet_sample(tmp_path: Path) -> None:
    source, folder = shared("imagenet-sample"), tmp_path / "imagenet"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / split).symlink_to(source / "val")
    (folder / "classes.tsv").symlink_to(source / "classes.tsv")
    weights = Preprocessing(224, 256, "bilinear")
    dataset = load("imagenet", tmp_path, weights)
    assert len(dataset.class_names) == 1000
    assert dataset.class_names[0] == "tench"
    assert dataset.class_names[2] == "great white shark"
    assert dataset.class_names[997] == "bolete"
    assert len(dataset.test) == 400
    assert dataset.test.labels[[0, 1, -1]].tolist() == [0, 2, 997]
    np.testing.assert_array_equal(dataset.test.indices, np.arange(400))
    images = read(dataset.test, range(0, 400, 10)).images
    assert images.shape == (40, 224, 224, 3)
    assert 90 < images.mean() < 140
