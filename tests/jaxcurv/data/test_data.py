"""Data sources: splits, normalisation, preparation from archives, and real CIFAR."""

import hashlib
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcurv.data import (
    Arrays,
    ImageDataset,
    Normalisation,
    Normalised,
    Preprocessing,
    Source,
    load,
    read,
    split_validation,
    subset,
)
from jaxcurv.data import cifar as cifar_module
from jaxcurv.data.datasets import open_folder
from jaxcurv.data.images import decode
from jaxcurv.data.prepared import Examples, PreparedSplit, prepare
from tests.conftest import ROOT

# Nothing may leave this machine by accident: port 9 of the loopback refuses at once.
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def some_arrays(count: int = 6, channels: int = 3) -> Arrays:
    rng = np.random.default_rng(0)
    return Arrays(
        images=rng.integers(0, 256, (count, 4, 5, channels), dtype=np.uint8),
        labels=np.arange(count, dtype=np.int32) % 3,
        indices=np.arange(count, dtype=np.int64)[::-1] * 10,
    )


# --- arrays and reading


def test_arrays_are_a_source_and_read_gives_them_back() -> None:
    arrays = some_arrays()
    assert isinstance(arrays, Source)
    again = read(arrays, [4, 1])
    np.testing.assert_array_equal(again.images, arrays.images[[4, 1]])
    np.testing.assert_array_equal(again.labels, arrays.labels[[4, 1]])
    np.testing.assert_array_equal(again.indices, [10, 40])
    assert len(read(arrays)) == 6


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.zeros((6, 4, 5, 3), np.float32)}, "images must be uint8"),
        ({"images": np.zeros((6, 4, 5), np.uint8)}, "with 4 axes"),
        ({"labels": np.zeros(6, np.int64)}, "labels must be int32"),
        ({"labels": np.zeros(5, np.int32)}, "one of each a sample"),
        ({"labels": np.array([0, 0, -1, 0, 0, 0], np.int32)}, "labels .* position 2 is -1"),
        ({"indices": np.array([0, 1, 2, 3, 4, -7])}, "indices .* position 5 is -7"),
        ({"indices": np.array([0, 1, 2, 3, 4, 1])}, "1 occurs 2 times"),
    ],
)
def test_arrays_refuse_what_is_not_a_data_set(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(some_arrays(), **changed)


def test_read_refuses_images_that_are_not_uint8() -> None:
    arrays = some_arrays()
    with pytest.raises(ValueError, match="float32"):
        read(Normalised(arrays, Normalisation.of(arrays.images)))


def test_labels_without_a_class_name_are_refused() -> None:
    arrays = some_arrays()
    with pytest.raises(ValueError, match="train, position 2: label 2 is outside the 2 classes"):
        ImageDataset("two", ("a", "b"), arrays, arrays)


# --- normalisation


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_images_have_mean_0_and_std_1(channels: int) -> None:
    images = some_arrays(50, channels).images
    normalisation = Normalisation.of(images)
    np.testing.assert_allclose(normalisation.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(normalisation.std, (images / 255).std((0, 1, 2)), rtol=1e-12)
    normalised = normalisation.apply(images)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised.mean((0, 1, 2), np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(normalised.std((0, 1, 2), np.float64), 1, atol=1e-6)


def test_normalised_view_agrees_with_the_whole_array() -> None:
    arrays = some_arrays()
    normalisation = Normalisation((0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    view = Normalised(arrays, normalisation)
    assert isinstance(view, Source)
    assert len(view) == 6
    np.testing.assert_array_equal(view[2]["image"], normalisation.apply(arrays.images)[2])
    assert (view[2]["label"], view[2]["index"]) == (2, 30)


def test_normalisation_errors() -> None:
    constant = some_arrays().images.copy()
    constant[..., 1] = 77
    with pytest.raises(ValueError, match="must be positive"):
        Normalisation.of(constant)
    with pytest.raises(ValueError, match="no images"):
        Normalisation.of(constant[:0])
    with pytest.raises(ValueError, match="3 channels, but the normalisation has 1"):
        Normalisation((0.5,), (0.5,)).apply(constant)
    with pytest.raises(ValueError, match="1 means but 2"):
        Normalisation((0.5,), (0.5, 0.5))
    for mean, std in ((123.7, 0.2), (0.5, 58.4), (-0.1, 0.2)):
        with pytest.raises(
            ValueError, match=r"must be on the scale 0\.\.1: divide those of .* 255"
        ):
            Normalisation((mean,), (std,))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"on the scale 0\.\.1 .* by 255"):
            Normalisation((value,), (0.2,))


# --- choices of samples


@pytest.mark.parametrize("choose", [partial(subset, limit=30), partial(subset, limit=None)])
def test_subset_depends_on_indices_not_on_storage(choose: Callable[..., np.ndarray]) -> None:
    indices = np.random.default_rng(1).choice(10_000, 100, replace=False)
    shuffled = np.random.default_rng(2).permutation(indices)
    chosen = indices[choose(indices, seed=3)]
    np.testing.assert_array_equal(chosen, shuffled[choose(shuffled, seed=3)])
    assert np.all(np.diff(chosen) > 0)


def test_split_validation_depends_on_indices_not_on_storage() -> None:
    indices = np.random.default_rng(1).choice(10_000, 100, replace=False)
    shuffled = np.random.default_rng(2).permutation(indices)
    train, validation = split_validation(indices, 0.1, seed=3)
    assert len(validation) == 10
    np.testing.assert_array_equal(np.sort(np.r_[train, validation]), np.arange(100))
    for one, other in zip((train, validation), split_validation(shuffled, 0.1, 3), strict=True):
        np.testing.assert_array_equal(indices[one], shuffled[other])
        assert np.all(np.diff(indices[one]) > 0)
    assert not np.array_equal(validation, split_validation(indices, 0.1, seed=4)[1])


def test_choices_stay_the_same_across_releases() -> None:
    # Written down once: published numbers rest on these choices.
    np.testing.assert_array_equal(subset(np.arange(1000), 5, seed=0), [7, 130, 259, 289, 720])
    np.testing.assert_array_equal(
        split_validation(np.arange(1000), 0.005, seed=0)[1], [11, 269, 850, 855, 921]
    )


def test_subsets_are_nested() -> None:
    indices = np.arange(500)
    small, large = (set(subset(indices, limit, seed=7).tolist()) for limit in (100, 200))
    assert len(small) == 100
    assert small < large
    assert len(subset(indices, 10_000, seed=7)) == 500


def test_choice_errors() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        split_validation(np.arange(10), 1.0, 0)
    with pytest.raises(ValueError, match="leaves a side empty"):
        split_validation(np.arange(10), 0.01, 0)
    with pytest.raises(ValueError, match="at least 1"):
        subset(np.arange(10), 0, 0)
    assert len(split_validation(np.arange(10), 0.0, 0)[1]) == 0


# --- digits


def test_digits() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    digits = load("digits")
    train, test = read(digits.train), read(digits.test)
    assert digits.class_names == tuple("0123456789")
    assert (len(train), len(test)) == (1201, 596)
    np.testing.assert_array_equal(np.sort(np.r_[train.indices, test.indices]), np.arange(1797))
    share = np.bincount(test.labels) / np.bincount(bunch.target)
    np.testing.assert_allclose(share, 1 / 3, atol=0.01)
    np.testing.assert_array_equal(test.labels, bunch.target[test.indices])
    assert test.images.shape == (596, 8, 8, 1)
    # Injective: the 17 grey levels can be had back.
    levels = np.rint(test.images[..., 0] / 255 * 16)
    np.testing.assert_array_equal(levels, bunch.images[test.indices])
    assert test.images.max() == 255
    with pytest.raises(ValueError, match="8x8 only"):
        load("digits", preprocessing=Preprocessing(32, 32))


# --- CIFAR from archives in the official layout


PurePickler: Any = pickle._Pickler  # the one in Python: its methods can be replaced


class Python2Pickler(PurePickler):
    """Writes what Python 2 and its NumPy wrote: byte strings, flags as integers, old names."""

    dispatch = PurePickler.dispatch.copy()

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes
    dispatch[str] = lambda self, value: self.save_bytes(value.encode())
    dispatch[bool] = lambda self, value: self.save_long(int(value))


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def batch(start: int, count: int, **labels: int) -> dict[str, Any]:
    """A file of CIFAR's, with pixels that tell the image, the channel and the place."""
    number = np.arange(start, start + count)[:, None, None, None]
    channel = np.arange(3)[:, None, None]
    row, column = np.mgrid[:32, :32]
    planes = (number * 7 + channel * 50 + row * 3 + column).astype(np.uint8)
    return {
        "data": planes.reshape(count, 3072),
        "filenames": [f"{i}.png" for i in range(count)],
        **{key: (number.ravel() % classes).tolist() for key, classes in labels.items()},
    }


def archive_bytes(folder: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {"readme.html": b"hello", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def twin(name: str) -> bytes:
    """A small CIFAR archive."""
    if name == "cifar10":
        files: dict[str, Any] = {"batches.meta": {"label_names": list("abcdefghij")}}
        files |= {f"data_batch_{i}": batch(4 * (i - 1), 4, labels=10) for i in range(5, 0, -1)}
        files["test_batch"] = batch(100, 6, labels=10)
    else:
        names = [f"fine {i}" for i in range(100)], [f"coarse {i}" for i in range(20)]
        files = {"meta": dict(zip(("fine_label_names", "coarse_label_names"), names, strict=True))}
        files["train"] = batch(0, 20, fine_labels=100, coarse_labels=20)
        files["test"] = batch(100, 6, fine_labels=100, coarse_labels=20)
    pickles = {file: python2_pickle(content) for file, content in files.items()}
    return archive_bytes(cifar_module.ARCHIVES[name].folder, pickles)


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Declare an archive the official one of `name`, at `host`."""

    def declare(name: str, content: bytes, host: str = CLOSED) -> None:
        archive = cifar_module.ARCHIVES[name]
        changed = replace(
            archive,
            url=f"{host}/{archive.file_name}",
            md5=hashlib.md5(content).hexdigest(),
        )
        monkeypatch.setitem(cifar_module.ARCHIVES, name, changed)

    return declare


def check_twin(dataset: ImageDataset, num_classes: int) -> None:
    train, test = read(dataset.train), read(dataset.test)
    assert (len(train), len(test)) == (20, 6)
    assert len(dataset.class_names) == num_classes
    assert sorted(train.indices) == list(range(20))
    assert list(train.indices) != list(range(20))  # TFDS's shuffled order
    np.testing.assert_array_equal(train.labels, train.indices % num_classes)
    np.testing.assert_array_equal(test.labels, (test.indices + 100) % num_classes)
    # number * 7 + channel * 50 + row * 3 + column, at the image's [row, column, channel]
    expected = train.indices * 7 + 2 * 50 + 5 * 3 + 30
    np.testing.assert_array_equal(train.images[:, 5, 30, 2], expected.astype(np.uint8))
    assert dataset.train[3]["index"] == train.indices[3]


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_from_a_local_archive(
    name: str, num_classes: int, tmp_path: Path, official: Callable[..., None]
) -> None:
    content = twin(name)
    official(name, content)
    archive = tmp_path / f"{'cifar-10' if name == 'cifar10' else 'cifar-100'}-python.tar.gz"
    archive.write_bytes(content)
    check_twin(load(name, tmp_path), num_classes)
    archive.unlink()  # prepared once, the archive is needed no more
    check_twin(load(name, str(tmp_path)), num_classes)

    import tensorflow_datasets as tfds

    theirs = tfds.data_source(name, split="train", data_dir=tmp_path)
    sample = theirs[0]
    assert set(sample) == {"id", "image", "label"} | (
        {"coarse_label"} if name == "cifar100" else set()
    )
    mine = load(name, tmp_path).train[0]
    assert sample["id"] == f"train_{mine['index']:05d}".encode()
    np.testing.assert_array_equal(sample["image"], mine["image"])
    if name == "cifar100":
        assert sample["coarse_label"] == mine["index"] % 20
    assert "tensorflow" not in sys.modules


def test_cifar_is_downloaded(tmp_path: Path, official: Callable[..., None]) -> None:
    served, data_dir = tmp_path / "served", tmp_path / "data"
    served.mkdir()
    content = twin("cifar10")
    (served / "cifar-10-python.tar.gz").write_bytes(content)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        official("cifar10", b"another file", host)
        with pytest.raises(ValueError, match="arrived with the md5"):
            load("cifar10", data_dir)
        assert list(data_dir.iterdir()) == []
        official("cifar10", content, f"{host}/nowhere")
        with pytest.raises(FileNotFoundError, match=r"download failed.*404.*md5"):
            load("cifar10", data_dir)
        official("cifar10", content, host)
        check_twin(load("cifar10", data_dir), 10)
        server.shutdown()
    assert (data_dir / "cifar-10-python.tar.gz").read_bytes() == content


@pytest.mark.parametrize("host", [CLOSED, "http://192.0.2.1"])  # refused; and never answered
def test_cifar_without_a_network_fails_at_once(
    host: str, tmp_path: Path, official: Callable[..., None]
) -> None:
    official("cifar100", b"", host)
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python.tar.gz.*http.*md5 d41d8") as e:
        load("cifar100", tmp_path)
    assert time.perf_counter() - start < 5
    assert "\n" not in str(e.value)


def test_cifar_with_a_wrong_md5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(twin("cifar10"))
    with pytest.raises(ValueError, match="instead of c58f30108f718f92721af3b95e74349a"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "cifar10").exists()


def test_an_archive_without_its_files_is_refused(
    tmp_path: Path, official: Callable[..., None]
) -> None:
    content = archive_bytes("../cifar-100-python", {"train": b"never read"})
    official("cifar100", content)
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"lacks \['meta', 'test', 'train'\]"):
        load("cifar100", tmp_path)


# --- decoding


@pytest.mark.parametrize(("height", "width"), [(9, 15), (15, 9), (6, 6), (3, 4)])
def test_resizing_keeps_the_centre(height: int, width: int) -> None:
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8) * 10
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = decode(file.getvalue(), preprocessing=Preprocessing(3, 3)).astype(float)
    assert image.shape == (3, 3, 3)
    centre = 10 * (np.array([height, width]) - 1) / 2
    np.testing.assert_allclose(image[1, 1, :2], centre, atol=10 * min(height, width) / 3)
    # Steps along the axes are the original's times the scale: the aspect ratio is kept.
    step = 10 * min(height, width) / 3
    np.testing.assert_allclose(image[2, 1, 0] - image[0, 1, 0], 2 * step, rtol=0.25)
    np.testing.assert_allclose(image[1, 2, 1] - image[1, 0, 1], 2 * step, rtol=0.25)


# --- prepared data sets


def write_prepared(directory: Path) -> None:
    """A version of six images a split, as CIFAR is prepared."""
    images = [np.full((6, 8, 3), level, np.uint8) for level in range(6)]
    splits = {
        split: Examples(6, ({"image": image, "label": n % 2} for n, image in enumerate(images)))
        for split in ("train", "test")
    }
    prepare(
        directory,
        splits,
        label_names={"label": ["ant", "bee"]},
        image_shape=(6, 8, 3),
        description="Six images.",
    )


def test_folder_of_a_prepared_data_set(tmp_path: Path) -> None:
    write_prepared(tmp_path / "pets/1.0.0")
    labels = read(load("pets", tmp_path).train).labels
    # The newest version in it, or the version itself.
    for folder in (tmp_path / "pets", tmp_path / "pets/1.0.0"):
        gray = open_folder(folder, "train", channels=1, preprocessing=Preprocessing(3, 3))
        assert gray.channels == 1
        arrays = read(gray)
        assert arrays.images.shape == (6, 3, 3, 1)
        np.testing.assert_array_equal(gray.indices, arrays.indices)
        np.testing.assert_array_equal(gray.labels, labels)
        assert gray.indices.dtype == gray.labels.dtype == np.int64


def test_a_killed_preparation_does_not_look_prepared(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from jaxcurv.data.prepared import Examples, prepare\n"
        "def dying():\n"
        "    yield {'image': np.zeros((6, 8, 3), np.uint8), 'label': 0}\n"
        "    os._exit(7)\n"
        "prepare(Path(sys.argv[1]), {'train': Examples(2, dying())}, image_shape=(6, 8, 3),\n"
        "        label_names={'label': ['ant', 'bee']}, description='Two images.')"
    )
    version = tmp_path / "pets/1.0.0"
    killed = subprocess.run([sys.executable, "-c", script, str(version)], capture_output=True)
    assert killed.returncode == 7, killed.stderr.decode()
    assert [path.name for path in (tmp_path / "pets").glob("incomplete.*")]
    with pytest.raises(FileNotFoundError, match="no data set 'pets'"):
        load("pets", tmp_path)
    write_prepared(version)
    assert len(read(load("pets", tmp_path).train)) == 6


def test_an_incomplete_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "pets/1.0.0").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"1\.0\.0 is not a complete data set"):
        write_prepared(tmp_path / "pets/1.0.0")


# --- TFDS data sets of other makers


@pytest.fixture
def write_tfds(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Write a data set as its maker might: features and file format at will."""
    import tensorflow_datasets as tfds

    def write(features: dict[str, Any], splits: dict[str, list], version: str = "1.0.0") -> None:
        class OtherBuilder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):  # type: ignore[call-arg]
            def _split_generators(self, dl_manager: object) -> dict:
                return {k: iter(enumerate(v)) for k, v in splits.items()}

        OtherBuilder(
            name="other",
            version=version,
            data_dir=tmp_path,
            features=tfds.features.FeaturesDict(features),
            split_datasets=splits,
            file_format="array_record",
        ).download_and_prepare()

    tfds.disable_progress_bar()
    yield write
    tfds.enable_progress_bar()


def jpeg(level: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (7, 5), level if mode == "L" else (level,) * 3).save(file, "JPEG")
    return file.getvalue()


def test_other_tfds_data_set(tmp_path: Path, write_tfds: Callable[..., None]) -> None:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["x", "y"]),
        "file_name": tfds.features.Text(),
    }
    train = [{"image": jpeg(i, "L"), "label": i % 2, "file_name": "f"} for i in range(4)]
    unlabelled = [{"image": jpeg(9), "label": -1, "file_name": "f"}]
    splits = {"train": train, "test": unlabelled, "validation": train[:1]}
    write_tfds(features, splits)
    write_tfds(features, splits | {"train": train[:3]}, version="1.10.0")
    write_tfds(features, splits | {"train": train[:2]}, version="1.9.0")
    other = load("other", tmp_path)
    assert len(other.train) == 3  # the newest version
    assert len(load("other/1.0.0", tmp_path).train) == 4
    assert len(other.test) == 1
    assert other.test[0]["label"] == 0  # the split with labels
    arrays = read(other.train)
    assert arrays.images.shape == (3, 5, 7, 3)  # grayscale files in a set of colour images
    np.testing.assert_array_equal(arrays.indices, np.arange(3))  # no ids: order of storage
    assert read(load("other", tmp_path, preprocessing=Preprocessing(4, 4)).train).images.shape == (
        3,
        4,
        4,
        3,
    )
    with pytest.raises(FileNotFoundError, match="other"):
        load("another", tmp_path)


@pytest.mark.parametrize("ids", [["train_30", "train_20", "train_10"], ["30", "20", "10"]])
def test_index_is_the_number_in_the_id(
    ids: list[str], tmp_path: Path, write_tfds: Callable[..., None]
) -> None:
    import tensorflow_datasets as tfds

    features = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["x", "y"]),
    }
    examples: list[dict[str, Any]] = [{"id": text, "image": jpeg(50), "label": 1} for text in ids]
    write_tfds(features, {"train": examples, "test": examples[:1]})
    train = load("other", tmp_path).train
    indices = read(train).indices
    assert sorted(indices) == [10, 20, 30]
    np.testing.assert_array_equal(train.indices, indices)
    assert train.labels.tolist() == [1, 1, 1]
    # The same order of storage, and the last one in it without a number.
    for example in examples:
        if example["id"].endswith(str(indices[-1])):
            example["id"] = "unnumbered"
    write_tfds(features, {"train": examples, "test": examples[:1]}, "2.0.0")
    unnumbered = load("other", tmp_path).train
    for look in (read, lambda source: source.indices):
        with pytest.raises(ValueError, match="has no number"):
            look(unnumbered)


def test_tfds_data_sets_that_cannot_be_used(
    tmp_path: Path, write_tfds: Callable[..., None]
) -> None:
    import tensorflow_datasets as tfds

    image, label = tfds.features.Image(), tfds.features.ClassLabel(names=["x", "y"])
    write_tfds({"image": image}, {"train": [{"image": jpeg(1)}]})
    with pytest.raises(ValueError, match="not an image and a class label"):
        load("other", tmp_path)
    bad = {"image": jpeg(1), "label": -1}
    good = {"image": jpeg(1), "label": 1}
    write_tfds({"image": image, "label": label}, {"train": [bad], "test": [good]}, "2.0.0")
    message = r"other-train\.array_record\S*: train, position 0: label -1 is outside the 2 classes"
    with pytest.raises(ValueError, match=message):
        load("other", tmp_path).train[0]
    with pytest.raises(ValueError, match=message):
        _ = load("other", tmp_path).train.labels
    gray = {"image": jpeg(1, "L"), "label": 1}
    levels = tfds.features.Image(shape=(5, 7, 1))
    write_tfds({"image": levels, "label": label}, {"train": [gray], "test": [gray]}, "2.1.0")
    described = tmp_path / "other/2.1.0/features.json"
    described.write_text(described.read_text().replace("uint8", "float32"))
    with pytest.raises(
        ValueError, match=r"2\.1\.0 has images that are Image features of .*float32"
    ):
        load("other", tmp_path)
    numbers = tfds.features.Tensor(shape=(5, 7, 1), dtype=np.uint8)
    plain = {"image": np.ones((5, 7, 1), np.uint8), "label": 1}
    write_tfds({"image": numbers, "label": label}, {"train": [plain], "test": [plain]}, "2.2.0")
    with pytest.raises(ValueError, match=r"images that are Tensor features of .*uint8"):
        load("other", tmp_path)
    write_tfds({"image": image, "label": label}, {"train": [good]}, "3.0.0")
    with pytest.raises(ValueError, match=r"splits \['train'\]: train and test are needed"):
        load("other", tmp_path)
    info = tmp_path / "other/3.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="tfrecord files, which have no random access"):
        load("other", tmp_path)


def test_a_damaged_record_is_told_with_its_file_and_position(
    tmp_path: Path, write_tfds: Callable[..., None]
) -> None:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=["x", "y"]),
    }
    good = {"image": jpeg(1), "label": 1}
    write_tfds(features, {"train": [good] * 3, "test": [good]})
    (file,) = (tmp_path / "other/1.0.0").glob("*train*")
    train = load("other", tmp_path).train
    content = bytearray(file.read_bytes())
    begin = content.index(jpeg(1)[:8])
    content[begin : begin + 200] = bytes(200)
    file.write_bytes(content)
    for look in (
        lambda: train[0],
        lambda: read(train),
        lambda: load("other", tmp_path).train.labels,
    ):
        with pytest.raises(
            ValueError, match=r"train\.array_record\S*: train, position 0 cannot be"
        ):
            look()


@pytest.mark.parametrize(("position", "file"), [(0, "a"), (1, "a"), (2, "b"), (4, "b")])
def test_the_file_of_a_record_is_that_which_holds_its_position(position: int, file: str) -> None:
    split = PreparedSplit(
        records=[{"label": -1}] * 5,
        split="train",
        files=((Path("a"), 2), (Path("b"), 5)),
        channels=3,
        num_classes=2,
        preprocessing=None,
    )
    with pytest.raises(ValueError, match=rf"^{file}: train, position {position}: label -1"):
        split[position]


def test_import_is_light() -> None:
    script = (
        "import sys; import jaxcurv.data.datasets\n"
        "print(*{'tensorflow_datasets', 'sklearn', 'PIL', 'torch', 'tensorflow'} & {*sys.modules})"
    )
    # jaxcurv.data alone: what the rest of jaxcurv imports is not its business.
    script = f"import sys, types; m = types.ModuleType('jaxcurv'); m.__path__ = ['jaxcurv']\n\
sys.modules['jaxcurv'] = m\n{script}"
    root = ROOT
    out = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, check=True)
    assert out.stdout.decode().split() == []


# --- the real thing


REAL = [
    ("cifar10", 10, 16399, 7, "airplane", (0.49140, 0.48216, 0.44653)),
    ("cifar100", 100, 16399, 66, "apple", (0.50708, 0.48655, 0.44092)),
]


def load_real(name: str) -> ImageDataset:
    folder = os.environ.get("JAXCURV_DATA_DIR")
    if not folder or not (Path(folder) / "tfds" / name).is_dir():
        pytest.skip(f"JAXCURV_DATA_DIR does not name a folder with tfds/{name}")
    return load(name, Path(folder) / "tfds")


@pytest.mark.parametrize(("name", "num_classes", "index", "label", "first_class", "mean"), REAL)
def test_real_cifar(
    name: str, num_classes: int, index: int, label: int, first_class: str, mean: tuple
) -> None:
    dataset = load_real(name)
    assert (len(dataset.train), len(dataset.test)) == (50_000, 10_000)
    assert len(dataset.class_names) == num_classes
    assert dataset.class_names[0] == first_class
    sample = dataset.train[0]
    assert (sample["index"], sample["label"]) == (index, label)
    assert sample["image"].shape == (32, 32, 3)
    # 4,000 images bound the time; their mean is within a few standard errors of the whole's.
    some = read(dataset.train, range(4000))
    np.testing.assert_allclose(Normalisation.of(some.images).mean, mean, atol=0.01)
    assert len(np.unique(some.labels)) == num_classes
