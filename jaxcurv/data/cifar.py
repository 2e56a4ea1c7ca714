"""CIFAR-10 and CIFAR-100 from their official archives.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report,
University of Toronto, 2009. The prepared sets have the names, version, features, ids and order of
TFDS's own.
"""

import hashlib
import pickle
import socket
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass, urlopen

import numpy as np

from jaxcurv.data.prepared import Examples, prepare, require_packages
from jaxcurv.progress import progress

VERSION = "3.0.2"
_HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_CITATION = """@TECHREPORT{Krizhevsky09learningmultiple,
    author = {Alex Krizhevsky},
    title = {Learning multiple layers of features from tiny images},
    institution = {University of Toronto},
    year = {2009}
}"""
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
        ModuleNotFoundError: a package that prepares it is not installed; nothing is downloaded.
        ValueError: the archive has another md5 than the official one, which is compared before
            anything in it is read.
    """
    archive = ARCHIVES[name]
    directory = data_dir / name / VERSION
    require_packages(directory)
    path = _fetch(archive, data_dir)
    try:
        contents = _read_archive(path, archive)
    except ValueError as error:
        raise ValueError(f"{path} is not CIFAR's, replace it by {archive.url}: {error}") from error
    names = {
        feature: [one.decode("ascii") for one in contents[archive.meta][key]]
        for feature, (_, key) in archive.labels.items()
    }
    examples = {
        split: _examples([contents[file] for file in files], archive)
        for split, files in archive.splits.items()
    }
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


def _examples(batches: list[dict[bytes, Any]], archive: Archive) -> Examples:
    # A row is the red, then the green, then the blue plane of one image.
    images = np.concatenate([batch[b"data"] for batch in batches])
    images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = {
        feature: np.concatenate([batch[labels_key] for batch in batches])
        for feature, (labels_key, _) in archive.labels.items()
    }

    def generate() -> Iterator[dict[str, Any]]:
        for row, image in enumerate(images):
            yield {"image": image, **{key: int(values[row]) for key, values in labels.items()}}

    return Examples(len(images), generate())


def _read_archive(path: Path, archive: Archive) -> dict[str, dict[bytes, Any]]:
    """The pickles of the archive by file name; nothing else in it is looked at."""
    wanted = {archive.meta, *(file for files in archive.splits.values() for file in files)}
    contents = {}
    with tarfile.open(path) as tar:
        for member in tar:
            folder, _, file = member.name.rpartition("/")
            stream = tar.extractfile(member)
            if folder == archive.folder and file in wanted and stream is not None:
                contents[file] = _ArraysOnly(stream, encoding="bytes").load()
    if missing := wanted - contents.keys():
        raise ValueError(f"it lacks {sorted(missing)} in {archive.folder}/")
    return contents


class _ArraysOnly(pickle.Unpickler):
    """Makes uint8 arrays and plain values; the official files hold nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        made = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0, np.uint8),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): lambda *_: np.dtype(np.uint8, copy=True),
        }
        if (module, name) not in made:
            raise ValueError(f"a pickle asks for {module}.{name}, which is refused")
        return made[module, name]


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
