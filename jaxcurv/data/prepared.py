"""Data sets on disk in the form of TFDS (TensorFlow Datasets): array_record files, no TensorFlow.

TFDS itself reads what is written here (`tfds.data_source`), and what it wrote is read here.
"""

import contextlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxcurv.data.images import decode, encode_png
from jaxcurv.data.preprocessing import Preprocessing
from jaxcurv.data.sources import ImageDataset, Sample, check_label
from jaxcurv.extras import require
from jaxcurv.progress import progress

_CHUNK = 1024  # records fetched at once to learn their labels and ids: they still hold the images
_FEATURE = re.compile(r"tensorflow_datasets\.core\.features(\.\w+)+")
_CLASS_KEYS = {"pythonClassName", "python_class_name", "type"}  # the last one until TFDS 4.5
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_PACKAGES = ("tensorflow_datasets", "array_record", "importlib_resources", "PIL")


def find_prepared(directory: Path) -> Path | None:
    """`directory` if it is a prepared data set, else its newest version that is, else None."""
    if is_prepared(directory):
        return directory
    versions = [
        path for path in directory.glob("*.*.*") if _VERSION.fullmatch(path.name)
    ]  # not the incomplete.* folders which a killed preparation leaves
    prepared = [path for path in versions if is_prepared(path)]
    return max(prepared, key=lambda path: [*map(int, path.name.split("."))], default=None)


def is_prepared(directory: Path) -> bool:
    """Whether `directory` is a prepared data set itself: one version of it."""
    return all((directory / name).is_file() for name in ("dataset_info.json", "features.json"))


def require_packages(directory: Path) -> None:
    """Raises ModuleNotFoundError unless what reads and writes the set in `directory` is installed.

    TFDS declares neither array_record nor importlib_resources everywhere, and uses both.
    """
    require(f"the data set {directory}", "data", _PACKAGES)


@dataclass(frozen=True)
class PreparedSplit:
    """A split of a prepared data set, decoded sample by sample.

    A sample's index is the number in its `id` feature (`train_16399`: 16399). In a data set
    without such ids it is the position in storage, fixed for one prepared version.

    Attributes:
        records: TFDS's data source, its images still encoded.
        split: the split's name.
        files: each of its files, with the position after its last record.
        channels: number of channels of the images.
        num_classes: labels must be below it.
        preprocessing: None leaves images as they are.

    Raises:
        ValueError: on access, for a record that cannot be read, a label that has no class, an id
            without a number where others have one, or an unreadable image.
    """

    records: Any
    split: str
    files: tuple[tuple[Path, int], ...]
    channels: int
    num_classes: int
    preprocessing: Preprocessing | None

    @property
    def indices(self) -> np.ndarray:
        """int64 `[N]`. The first use of it or of `labels` reads all records, decoding none."""
        return self._indices_and_labels[0]

    @property
    def labels(self) -> np.ndarray:
        """int64 `[N]`. The first use of it or of `indices` reads all records, decoding none."""
        return self._indices_and_labels[1]

    @cached_property
    def _indices_and_labels(self) -> tuple[np.ndarray, np.ndarray]:
        indices, labels = np.empty((2, len(self)), np.int64)
        for start in range(0, len(self), _CHUNK):
            positions = range(start, min(start + _CHUNK, len(self)))
            for position, record in zip(positions, self._records(positions), strict=True):
                indices[position] = self._index(position, record)
                labels[position] = self._label(position, record)
        return indices, labels

    @cached_property
    def _has_numbers(self) -> bool:
        return self._number(self.records[0]) is not None

    def _number(self, record: Mapping[str, Any]) -> int | None:
        name = record.get("id", b"")
        text = name.decode() if isinstance(name, bytes) else str(name)
        match = re.fullmatch(rf"(?:{self.split}_)?(\d+)", text)
        return int(match[1]) if match else None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int, /) -> Sample:
        return self._sample(position, self._record(position))

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        records = self._records(positions)
        return [self._sample(*pair) for pair in zip(positions, records, strict=True)]

    def _record(self, position: int) -> Mapping[str, Any]:
        try:
            return self.records[position]
        except Exception as error:  # whatever the C++ reader or a feature's decoder raises
            raise ValueError(
                f"{self._place(position)} cannot be read ({error}): prepare the data set again"
            ) from error

    def _records(self, positions: Sequence[int]) -> Sequence[Mapping[str, Any]]:
        try:
            return self.records.__getitems__(positions)
        except Exception:  # one of them; which, they tell one by one
            return [self._record(position) for position in positions]

    def _place(self, position: int) -> str:
        """Where a sample lies."""
        file = next(file for file, end in self.files if position < end)
        return f"{file}: {self.split}, position {position}"

    def _sample(self, position: int, record: Mapping[str, Any]) -> Sample:
        label, index = self._label(position, record), self._index(position, record)
        try:
            image = decode(record["image"], self.channels, self.preprocessing)
        except ValueError as error:
            raise ValueError(f"{self._place(position)}: {error}") from error
        return Sample(image=image, label=label, index=index)

    def _label(self, position: int, record: Mapping[str, Any]) -> int:
        try:
            check_label(record["label"], self.num_classes)
        except ValueError as error:
            raise ValueError(f"{self._place(position)}: {error}") from error
        return int(record["label"])

    def _index(self, position: int, record: Mapping[str, Any]) -> int:
        index = self._number(record) if self._has_numbers else position
        if index is None:
            raise ValueError(
                f"{self._place(position)}: the id {record['id']!r} has no number, but others of "
                "its split do"
            )
        return index


def open_prepared(
    name: str, directory: Path, preprocessing: Preprocessing | None = None
) -> ImageDataset:
    """The data set prepared in `directory`: its split `train` and, as test, `test` or `validation`.

    Where both are there, `validation` is that.

    Raises:
        ModuleNotFoundError: a package that reads it is not installed.
        ValueError: it has no images with labels, images of another type than uint8 and uint16, no
            such splits, or no random access; or features that are not TFDS's own, whose modules
            TFDS would import.
    """
    require_packages(directory)
    import tensorflow_datasets as tfds

    _refuse_foreign_features(directory / "features.json")
    builder = tfds.builder_from_directory(directory)
    features, splits = builder.info.features, builder.info.splits
    label = features["label"] if {"image", "label"} <= set(features) else None
    if not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"{directory} has {sorted(features)}, not an image and a class label each")
    image = features["image"]
    if not isinstance(image, tfds.features.Image) or image.np_dtype not in (np.uint8, np.uint16):
        kind = type(image).__name__
        raise ValueError(
            f"{directory} has images that are {kind} features of {image.np_dtype}, which are no "
            "pixels of 8 or 16 bits: prepare the data set again with tfds.features.Image() of "
            "uint8 or uint16, or read it with tfds and give the arrays (images, labels)"
        )
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{directory} holds {builder.info.file_format.value} files, which have no random "
            "access: prepare the data set again with file_format='array_record'"
        )

    def source(split: str) -> PreparedSplit:
        # Pillow decodes below, whether or not OpenCV is installed: JPEG decoders differ in pixels.
        skip = {"image": tfds.decode.SkipDecoding()}
        records = builder.as_data_source(split=split, decoders=skip)
        _require_last(records, directory, split)
        return PreparedSplit(
            records=records,
            split=split,
            files=_files(splits[split]),
            channels=image.shape[-1],
            num_classes=label.num_classes,
            preprocessing=preprocessing,
        )

    # ImageNet's test split has the label -1 throughout: its validation split is the one to test on.
    tests = [split for split in ("test", "validation", "val") if split in splits]
    labelled = [split for split in tests if source(split).records[0]["label"] >= 0]
    if "train" not in splits or not labelled:
        raise ValueError(f"{directory} has the splits {sorted(splits)}: train and test are needed")
    names = tuple(label.names)
    validation = source(labelled[1]) if len(labelled) > 1 else None
    return ImageDataset(name, names, source("train"), source(labelled[0]), validation)


def _files(split: Any) -> tuple[tuple[Path, int], ...]:
    """The files of TFDS's split, each with the position after its last record."""
    ends = np.cumsum(split.shard_lengths, dtype=np.int64).tolist()
    return tuple(zip(map(Path, split.filepaths), ends, strict=True))


def _require_last(records: Any, directory: Path, split: str) -> None:
    """Refuses a split that is shorter than dataset_info.json says: memory is taken by that."""
    try:
        if records:
            records[len(records) - 1]
    except Exception as error:  # from IndexError to what the C++ reader raises
        raise ValueError(
            f"{directory} has not the {len(records):,} records of its split {split} "
            f"({error!r}): prepare the data set again"
        ) from error


def _refuse_foreign_features(path: Path) -> None:
    """TFDS imports the modules that features.json names, whosever they are."""
    try:
        found = json.loads(path.read_text("utf-8"))
        for name in _feature_classes(found):
            if not _FEATURE.fullmatch(name):
                raise ValueError(
                    f"{path} asks to import {name!r}, which is refused: prepare the data set with "
                    "TFDS's own features"
                )
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): prepare the data set again") from error


def _feature_classes(value: Any) -> Iterator[str]:
    """Whatever TFDS may take for the name of a class, in JSON within JSON too."""
    if isinstance(value, list):
        for one in value:
            yield from _feature_classes(one)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key in _CLASS_KEYS and isinstance(one, str):
                yield one
            else:
                yield from _feature_classes(one)
    elif isinstance(value, str) and "{" in value:
        with contextlib.suppress(json.JSONDecodeError):
            yield from _feature_classes(json.loads(value))


@dataclass(frozen=True)
class Examples:
    """The examples of a split to write, in the order of their index.

    Attributes:
        count: how many there are.
        examples: each with `image` (uint8 `[height, width, channels]`) and its integer labels.
    """

    count: int
    examples: Iterable[Mapping[str, Any]]


def prepare(
    directory: Path,
    splits: Mapping[str, Examples],
    *,
    label_names: Mapping[str, Sequence[str]],
    image_shape: tuple[int, int, int],
    description: str,
    homepage: str | None = None,
    citation: str | None = None,
) -> None:
    """Write `splits` to `directory` (`data_dir/name/version`), which appears only once complete.

    Each example gets the `id` which TFDS gives CIFAR's (`train_00042`), and TFDS's shuffled order.

    Args:
        label_names: the class names of each integer label; `label` is the one to predict.

    Raises:
        FileExistsError: `directory` exists, but is not a complete data set.
    """
    if is_prepared(directory):
        return
    if directory.exists():
        raise FileExistsError(f"{directory} is not a complete data set: remove it and try again")

    import tensorflow_datasets as tfds

    class PreparedBuilder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):  # type: ignore[call-arg]
        # AdhocBuilder's own would ask TensorFlow whether the examples are a tf.data.Dataset.
        def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
            return {split: _keyed_examples(split, examples) for split, examples in splits.items()}

    builder = PreparedBuilder(
        name=directory.parent.name,
        version=directory.name,
        data_dir=directory.parent.parent,
        features=tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=image_shape),
                **{k: tfds.features.ClassLabel(names=[*v]) for k, v in label_names.items()},
            }
        ),
        split_datasets=splits,
        description=description,
        homepage=homepage,
        citation=citation,
        file_format="array_record",
    )
    # TFDS announces unknown sizes and counts without an end: our own bars know the end.
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except OSError:
        # Another process may have finished the same data set first; then its files are as good.
        if not is_prepared(directory):
            raise
    finally:
        tfds.enable_progress_bar()


def _keyed_examples(split: str, examples: Examples) -> Iterator[tuple[int, dict[str, Any]]]:
    with progress(examples.count, f"preparing {split}", side=True) as shown:
        for index, example in enumerate(examples.examples):
            image = encode_png(np.asarray(example["image"]))
            yield index, {**example, "id": f"{split}_{index:05d}", "image": image}
            shown.update()
