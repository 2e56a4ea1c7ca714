"""CIFAR-10 and CIFAR-100 from their official archives.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report,
University of Toronto, 2009. The prepared sets have the names, version, features, ids and order of
TFDS's own.
"""

import gzip
import hashlib
import socket
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass, urlopen

import numpy as np

from jaxcurv.data.prepared import Examples, prepare
from jaxcurv.data.unpickling import unpickle
from jaxcurv.progress import progress

VERSION = "3.0.2"
_HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CITATION = """@TECHREPORT{Krizhevsky09learningmultiple,
    author = {Alex Krizhevsky},
    title = {Learning multiple layers of features from tiny images},
    institution = {University of Toronto},
    year = {2009}
}"""
_INFLATED_LIMIT = 256 * 2**20  # bytes; the official archives hold 186 million
_MEMBERS_LIMIT = 100  # the official archives have at most 9
_CONNECT_SECONDS = 3.0


@dataclass(frozen=True)
class Archive:
    """An official archive of Python pickles, and where its labels are.

    Attributes:
        url: where it can be downloaded; its last part is the file's name.
        md5: the official checksum of the archive.
        folder: the folder in the archive.
        splits: the files of each split, in the order of the index.
        meta: the file with the class names.
        labels: for each label feature, the key of the labels and the key of the class names.
        description: for the prepared data set.
    """

    url: str
    md5: str
    folder: str
    splits: Mapping[str, tuple[str, ...]]
    meta: str
    labels: Mapping[str, tuple[bytes, bytes]]
    description: str

    @property
    def file_name(self) -> str:
        """Name of the downloaded file, the last part of the URL."""
        return self.url.rsplit("/", 1)[1]


ARCHIVES = {
    "cifar10": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        splits={
            "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test": ("test_batch",),
        },
        meta="batches.meta",
        labels={"label": (b"labels", b"label_names")},
        description="CIFAR-10: 32x32 colour images of 10 classes, 50,000 train and 10,000 test.",
    ),
    "cifar100": Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        splits={"train": ("train",), "test": ("test",)},
        meta="meta",
        labels={
            "label": (b"fine_labels", b"fine_label_names"),
            "coarse_label": (b"coarse_labels", b"coarse_label_names"),
        },
        description="CIFAR-100: 32x32 colour images of 100 classes in 20 superclasses, "
        "50,000 train and 10,000 test.",
    ),
}


def prepare_cifar(name: str, data_dir: Path) -> Path:
    """Prepare `name` ("cifar10" or "cifar100") under `data_dir`, and return its folder.

    The archive is taken from `data_dir`, or else downloaded to it.

    Raises:
        FileNotFoundError: the archive is not there and cannot be downloaded.
        ValueError: the archive has another md5 than the official one, or other contents; its
            pickles run no code, and no file in it is written anywhere.
    """
    archive = ARCHIVES[name]
    path = _fetch(archive, data_dir)
    try:
        contents = _read_archive(path, archive)
        names = {
            feature: _class_names(contents[archive.meta], names_key)
            for feature, (_, names_key) in archive.labels.items()
        }
        examples = {
            split: _examples({file: contents[file] for file in files}, archive, names)
            for split, files in archive.splits.items()
        }
    except (ValueError, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is not CIFAR's, replace it by {archive.url}: {error}") from error
    directory = data_dir / name / VERSION
    prepare(
        directory,
        examples,
        label_names=names,
        image_shape=(32, 32, 3),
        description=archive.description,
        homepage=_HOMEPAGE,
        citation=_CITATION,
    )
    return directory


def _class_names(meta: dict[bytes, Any], key: bytes) -> list[str]:
    names = meta.get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"it has no list of names {key!r}")
    return [name.decode("ascii") for name in names]


def _examples(
    batches: dict[str, dict[bytes, Any]], archive: Archive, names: dict[str, list[str]]
) -> Examples:
    for file, batch in batches.items():
        _check_batch(file, batch, archive, names)
    # A row is the red, then the green, then the blue plane of one image.
    images = np.concatenate([batch[b"data"] for batch in batches.values()])
    images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = {
        feature: np.concatenate([batch[labels_key] for batch in batches.values()])
        for feature, (labels_key, _) in archive.labels.items()
    }

    def generate() -> Iterator[dict[str, Any]]:
        for row, image in enumerate(images):
            yield {"image": image, **{key: int(values[row]) for key, values in labels.items()}}

    return Examples(len(images), generate())


def _check_batch(
    file: str, batch: dict[bytes, Any], archive: Archive, names: dict[str, list[str]]
) -> None:
    """Refuses what is no array of images with a label each."""
    data = batch.get(b"data")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * 32 * 32:
        raise ValueError(f"data of {file} is not uint8 [N, 3072]")
    for feature, (key, _) in archive.labels.items():
        labels, classes = batch.get(key), range(len(names[feature]))
        if (
            not isinstance(labels, list)
            or len(labels) != len(data)
            or not all(type(label) is int and label in classes for label in labels)
        ):
            raise ValueError(
                f"{key!r} of {file} is not a list of {len(data)} labels below {len(classes)}"
            )


def _read_archive(path: Path, archive: Archive) -> dict[str, dict[bytes, Any]]:
    """The pickles of the archive by file name; nothing else in it is looked at."""
    wanted = {archive.meta, *(file for files in archive.splits.values() for file in files)}
    contents = {}
    # A stream, so that the limit holds for whatever tarfile itself reads: long names, say.
    with (
        gzip.GzipFile(path) as inflated,
        tarfile.open(fileobj=_Limited(inflated), mode="r|") as tar,  # type: ignore[call-overload]
    ):
        for number, member in enumerate(tar):
            if number == _MEMBERS_LIMIT:
                raise ValueError(f"it has more than {_MEMBERS_LIMIT} files")
            folder, _, file = member.name.rpartition("/")
            if folder != archive.folder or file not in wanted or not member.isreg():
                continue
            if member.size > _INFLATED_LIMIT:  # which a sparse file may be without more bytes
                raise ValueError(f"{member.name} has {member.size} bytes")
            stream = tar.extractfile(member)
            assert stream is not None  # it is a regular file
            try:
                contents[file] = unpickle(stream.read())
            except ValueError as error:
                raise ValueError(f"{member.name}: {error}") from error
    if missing := wanted - contents.keys():
        raise ValueError(f"it lacks {sorted(missing)} in {archive.folder}/")
    return contents


class _Limited:
    """A file of which no more than a limit can be read: a small one may inflate without end."""

    def __init__(self, file: gzip.GzipFile):
        self._file = file
        self._left = _INFLATED_LIMIT

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it inflates to more than {_INFLATED_LIMIT:,} bytes")
        return content


def _fetch(archive: Archive, data_dir: Path) -> Path:
    """The archive's path in `data_dir`, downloaded if it is not there; its md5 is right."""
    path = data_dir / archive.file_name
    if path.exists():
        if (md5 := _md5(path)) != archive.md5:
            raise ValueError(
                f"{path} has the md5 {md5} instead of {archive.md5}: "
                f"replace it by {archive.url}, or remove it to download that"
            )
        return path
    remedy = f"put {archive.url} (md5 {archive.md5}) at {path}"
    if not _reachable(archive.url):
        host = urlsplit(archive.url).hostname
        raise FileNotFoundError(f"{path} is missing and {host} cannot be reached: {remedy}")
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir, prefix="incomplete.") as folder:
        arrived = Path(folder) / path.name
        try:
            _download(archive.url, arrived)
        except OSError as error:
            raise FileNotFoundError(
                f"{path} is missing and its download failed ({error}): {remedy}"
            ) from error
        if (md5 := _md5(arrived)) != archive.md5:
            raise ValueError(
                f"{archive.url} arrived with the md5 {md5} instead of {archive.md5}: "
                f"try again, or {remedy}"
            )
        arrived.replace(path)
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(url: str, path: Path) -> None:
    with urlopen(url, timeout=30) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length", 0)) or None
        with progress(size, f"downloading {path.name}", "B", side=True) as shown:
            while chunk := response.read(2**20):
                file.write(chunk)
                shown.update(len(chunk))


def _reachable(url: str) -> bool:
    """Whether the host of `url`, or the proxy in front of it, accepts a connection within 3 s."""
    target = urlsplit(url)
    if not proxy_bypass(target.netloc):
        target = urlsplit(getproxies().get(target.scheme, url))
    address = target.hostname, target.port or (443 if target.scheme == "https" else 80)
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, _CONNECT_SECONDS).close()
            connected.set()
        except OSError:
            pass

    # In a thread, since looking up a name has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    return connected.is_set()
