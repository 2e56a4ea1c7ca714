"""What is taken where a source is: arrays, torch's data sets and loaders, Hugging Face's, rows."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils import data as torch_data

from jaxcurv import input_curvature
from jaxcurv.data import (
    Arrays,
    Chosen,
    Labelled,
    Normalisation,
    Normalised,
    Source,
    as_source,
    load,
    read,
)
from jaxcurv.data.layouts import as_images
from jaxcurv.data.reading import read_batch
from tests.refusals import refused

COUNT, SHAPE = 7, (4, 5, 3)
RNG = np.random.default_rng(1)
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 2, 0, 2])
TENSORS = torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
NUMBERS = torch.from_numpy(LABELS)


class Items(torch_data.Dataset):
    """A map-style data set: whatever `item` makes of a position."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, position: int) -> Any:
        if not 0 <= position < COUNT:
            raise IndexError(position)
        return self.item(position)


class Columns:
    """A stand-in for `datasets.Dataset`, which is not installed here, as its documentation has it:
    a row by number is a dict, a slice or a list of numbers a dict of lists, a name a column."""

    def __init__(self, **columns: Sequence[Any]) -> None:
        self.columns_: dict[str, Sequence[Any]] = columns
        self.asked: list[Any] = []

    @property
    def column_names(self) -> list[str]:
        return list(self.columns_)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), len(self.columns_)

    def __len__(self) -> int:
        return len(next(iter(self.columns_.values())))

    def __getitem__(self, key: Any) -> Any:
        self.asked.append(key)
        if isinstance(key, str):
            return self.columns_[key]
        if isinstance(key, int):
            if not -len(self) <= key < len(self):
                raise IndexError(f"Invalid key: {key} is out of bounds for size {len(self)}")
            return {name: values[key] for name, values in self.columns_.items()}
        which = range(len(self))[key] if isinstance(key, slice) else key
        return {name: [values[n] for n in which] for name, values in self.columns_.items()}

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        batch = self[keys]
        return [{name: values[n] for name, values in batch.items()} for n in range(len(keys))]


def pictures(mode: str = "RGB") -> list[Image.Image]:
    return [Image.fromarray(pixels).convert(mode) for pixels in PIXELS]


def rows(**names: str) -> list[dict[str, Any]]:
    """Rows without an index, in which image and label have these names."""
    image, label = names.get("image", "image"), names.get("label", "label")
    return [{image: PIXELS[n], "path": f"{n}.png", label: int(LABELS[n])} for n in range(COUNT)]


def loader(dataset: Any = None, **settings: Any) -> torch_data.DataLoader[Any]:
    dataset = torch_data.TensorDataset(TENSORS, NUMBERS) if dataset is None else dataset
    return torch_data.DataLoader(dataset, **settings)


TAKEN: dict[str, Any] = {
    "a pair of arrays": lambda: (PIXELS, LABELS),
    "a list of two arrays": lambda: [PIXELS, LABELS.astype(np.uint8)],
    "a list of labels": lambda: (PIXELS, LABELS.tolist()),
    "JAX's arrays": lambda: (jnp.asarray(PIXELS), jnp.asarray(LABELS)),
    "a pair of tensors": lambda: (TENSORS, NUMBERS),
    "tensors with a gradient": lambda: (TENSORS.float().requires_grad_(), NUMBERS),
    "a TensorDataset": lambda: torch_data.TensorDataset(TENSORS, NUMBERS),
    "torch items of arrays": lambda: Items(lambda n: (PIXELS[n], LABELS[n])),
    "torch items of pictures": lambda: Items(lambda n: (pictures()[n], int(LABELS[n]))),
    "torch items of rows": lambda: Items(lambda n: {"image": TENSORS[n], "label": NUMBERS[n]}),
    "a list of pairs": lambda: list(zip(PIXELS, LABELS.tolist(), strict=True)),
    "a loader": loader,
    "a loader that shuffles": lambda: loader(shuffle=True, batch_size=3),
    "a loader without batches": lambda: loader(batch_size=None),
    "a loader whose last batch is whole": lambda: loader(batch_size=7, drop_last=True),
    "a loader of rows": lambda: loader(Items(lambda n: rows()[n])),
    "Hugging Face's": lambda: Columns(image=pictures(), label=LABELS.tolist()),
    "Hugging Face's, as tensors": lambda: Columns(image=list(TENSORS), label=list(NUMBERS)),
    "rows without an index": rows,
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken_has_images_channels_last_and_positions(kind: str) -> None:
    source = as_source(TAKEN[kind]())
    assert isinstance(source, Source)
    batch = read_batch(source, range(COUNT))
    np.testing.assert_array_equal(batch.images, PIXELS)
    assert batch.images.dtype == (np.float32 if kind == "tensors with a gradient" else np.uint8)
    np.testing.assert_array_equal(batch.labels, LABELS)
    np.testing.assert_array_equal(batch.indices, np.arange(COUNT))
    sample = source[4]
    np.testing.assert_array_equal(sample["image"], PIXELS[4])
    assert (sample["label"], sample["index"]) == (2, 4)
    assert (type(sample["label"]), type(sample["index"])) == (int, int)
    one_by_one = read_batch(source, [5, 1])
    np.testing.assert_array_equal(one_by_one.images, PIXELS[[5, 1]])
    np.testing.assert_array_equal(one_by_one.indices, [5, 1])
    assert as_source(source) is source


def test_a_source_is_returned_unchanged() -> None:
    arrays = Arrays(PIXELS, LABELS.astype(np.int32), np.arange(COUNT)[::-1] * 10)
    own_rows = [arrays[n] for n in range(COUNT)]
    chosen, labelled = Chosen(arrays, np.array([3])), Labelled(arrays, LABELS, np.arange(COUNT))
    for source in (arrays, own_rows, chosen, labelled, load("digits").test):
        assert as_source(source) is source
        assert as_source(source, keys={"image": "image"}) is source


def test_a_source_that_tells_its_indices_is_not_read() -> None:
    class Unread(Items):
        @property
        def indices(self) -> np.ndarray:
            raise AssertionError("asked")

    class Own:
        indices = Unread.indices
        __len__, __getitem__ = Items.__len__, Items.__getitem__

        def item(self, position: int) -> Any:
            raise AssertionError("read")

    source = Own()
    assert as_source(source) is source
    # Of a torch Dataset `indices` may be anything.
    pairs = as_source(Unread(lambda n: (PIXELS[n], LABELS[n])))
    assert pairs[2]["index"] == 2


def test_arrays_tell_their_labels_and_are_not_copied() -> None:
    for images, labels in ((PIXELS, LABELS), (TENSORS, NUMBERS)):
        source = as_source((images, labels))
        np.testing.assert_array_equal(source.labels, LABELS)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(source.indices, np.arange(COUNT))  # type: ignore[attr-defined]
        assert np.shares_memory(source[3]["image"], np.asarray(images))


@pytest.mark.parametrize("name", [None, "index"])
def test_a_shuffled_series_of_labels_is_refused_with_the_cure(name: str | None) -> None:
    images = np.arange(40, dtype=np.float32).reshape(10, 4)
    labels = pd.Series(np.arange(10) % 3)
    shuffled = labels.rename_axis(name).sample(frac=1, random_state=0)
    for given in (images, list(images)):
        score = partial(input_curvature, lambda x: x[:, :3], np.stack(given))
        with pytest.raises(
            ValueError, match=r"labels\.to_numpy\(\) if .*labels\.sort_index\(\) if"
        ):
            score(shuffled)
        assert score(shuffled.sort_index()).loss.tolist() == score(labels.to_numpy()).loss.tolist()
    with pytest.raises(ValueError, match=r"labels\.to_numpy\(\) if .*labels\.sort_index\(\) if"):
        as_source((images, shuffled))
    assert as_source((images, shuffled.sort_index())).labels.tolist() == labels.tolist()
    assert as_source((images, shuffled.to_numpy())).labels.tolist() == shuffled.tolist()


def test_a_data_frame_of_features_goes_with_labels_of_its_own_index() -> None:
    rows = np.random.default_rng(0).permutation(20)[:12]  # as train_test_split leaves them
    features = pd.DataFrame(np.arange(48, dtype=np.float32).reshape(12, 4), rows, list("abcd"))
    labels = pd.Series(np.arange(12) % 3, rows)
    source = as_source((features, labels))
    assert source.labels.tolist() == labels.tolist()
    for position in range(12):
        assert np.array_equal(source[position]["image"], features.iloc[position])
    with pytest.raises(ValueError, match=r"labels has the same samples in another order"):
        as_source((features, labels.sort_index()))
    with pytest.raises(ValueError, match=r"labels has other samples"):
        as_source((features, labels.reset_index(drop=True)))


@pytest.mark.parametrize(
    "index",
    [[0, 1, 2, 3], [7, 3, 9, 1], [1, 0, 2, 4], [3, 2, 1, 1], [4, 3, 2, 1], list("bcad")],
)
def test_a_series_whose_index_numbers_no_rows_of_the_array_goes_by_position(index: Any) -> None:
    """As a part that `train_test_split` gives."""
    images, labels = np.zeros((4, 3), np.float32), pd.Series([2, 0, 1, 2], index)
    assert as_source((images, labels)).labels.tolist() == [2, 0, 1, 2]


def test_features_and_gray_images_keep_their_axes() -> None:
    flat, gray = PIXELS.reshape(COUNT, -1), PIXELS[..., 0]
    for given, expected in ((flat, flat), (torch.from_numpy(gray.copy()), gray)):
        np.testing.assert_array_equal(as_source((given, LABELS))[2]["image"], expected[2])
    images = pictures("L")
    source = as_source(list(zip(images, LABELS, strict=True)))
    assert source[0]["image"].shape == (4, 5, 1)
    np.testing.assert_array_equal(source[0]["image"][..., 0], np.asarray(images[0]))


def test_the_index_in_a_torch_subset_is_the_position_in_it() -> None:
    whole = torch_data.TensorDataset(TENSORS, NUMBERS)
    first, second = torch_data.random_split(
        whole, [3, 4], generator=torch.Generator().manual_seed(0)
    )
    for subset in (first, second, torch_data.Subset(whole, [6, 2])):
        batch = read_batch(as_source(subset), range(len(subset)))
        np.testing.assert_array_equal(batch.images, PIXELS[subset.indices])
        np.testing.assert_array_equal(batch.indices, np.arange(len(subset)))
    # Of samples it is their own; the Subset's `indices` are those of the positions in the whole.
    arrays = Arrays(PIXELS, LABELS.astype(np.int32), np.arange(COUNT) + 50)
    source = as_source(torch_data.Subset(arrays, [6, 2]))  # type: ignore[arg-type]
    assert [source[0]["index"], source[1]["index"]] == [56, 52]
    assert not hasattr(source, "indices")


def test_many_are_read_at_once_where_the_data_set_can() -> None:
    columns = Columns(img=pictures(), fine_label=LABELS.tolist())
    source = as_source(columns, keys={"image": "img", "label": "fine_label"})
    columns.asked.clear()
    np.testing.assert_array_equal(read(source).images, PIXELS)
    assert columns.asked == [list(range(COUNT))]
    subset = torch_data.Subset(columns, [5, 0, 3])  # type: ignore[arg-type]
    source = as_source(subset, keys={"image": "img", "label": "fine_label"})
    columns.asked.clear()
    read(source)
    assert columns.asked == [[5, 0, 3]]


def test_rows_may_have_other_names() -> None:
    named = rows(image="img", label="fine_label")
    source = as_source(named, keys={"image": "img", "label": "fine_label"})
    assert [one["index"] for one in source] == list(range(COUNT))  # type: ignore[attr-defined]
    for n, row in enumerate(named):
        row["id"] = 10 * n
    names = {"image": "img", "label": "fine_label", "index": "id"}
    batch = read_batch(as_source(named, keys=names), range(COUNT))
    np.testing.assert_array_equal(batch.images, PIXELS)
    np.testing.assert_array_equal(batch.indices, 10 * np.arange(COUNT))


@pytest.mark.parametrize(
    ("item", "keys", "message"),
    [
        (
            {"img": PIXELS[0], "fine_label": 1},
            None,
            "no 'image', 'label', but 'img', 'fine_label': .* "
            r'keys=\{"image": \.\.\., "label": \.\.\.\}',
        ),
        ({"image": PIXELS[0], "y": 1}, None, "no 'label', but 'image', 'y'"),
        ({"image": PIXELS[0], "label": 1}, {"image": "img"}, "no 'img', but 'image', 'label'"),
        ({"image": PIXELS[0], "label": 1}, {"index": "id"}, "no 'id', but"),
        ({"image": PIXELS[0], "label": 1}, {"img": "image"}, 'call "image", "label" and "index"'),
        ({"image": PIXELS[0], "label": 1, "index": "a"}, None, None),
        (
            {"image": TENSORS[0], "label": 1, "index": "a"},
            None,
            "index must be a whole number.*'a'",
        ),
        ((PIXELS[0], 1), {"image": "img"}, "the items are pairs"),
        ((PIXELS[0], 1, 5), None, "position 0 is a tuple of length 3"),
        ((PIXELS[0],), None, "position 0 is a tuple of length 1"),
        (PIXELS[0], None, "position 0 is a ndarray"),
        ((PIXELS[0], 0.5), None, "label must be a whole number.*give the number as an integer"),
        ((PIXELS[0], "cat"), None, "label must be a whole number.*'cat'"),
        ((PIXELS[0], np.eye(3)[1]), None, "whole number.*of one-hot labels give the argmax"),
        ((TENSORS[0], torch.eye(3)[1]), None, "whole number.*of one-hot labels give the argmax"),
        (("a.png", 1), None, "an image must be an array.*got a str"),
        ((pictures("P")[0], 1), None, 'mode P.*use image.convert\\("RGB"\\)'),
        ((pictures("1")[0], 1), None, "mode 1"),
        ((pictures("CMYK")[0], 1), None, "mode CMYK"),
        ((TENSORS[0].bfloat16(), 1), None, r"no type for torch.bfloat16.*tensor.float\(\)"),
    ],
)
def test_items_that_are_no_samples_are_refused_at_once(item: Any, keys: Any, message: str) -> None:
    if message is None:  # left to the reader, as in every source
        with pytest.raises(ValueError, match="index must be a whole number"):
            read_batch(as_source([item], keys=keys), [0])
        return
    with pytest.raises(ValueError, match=message):
        as_source([item], keys=keys)


def test_a_later_item_that_is_no_sample_is_named() -> None:
    items: list[Any] = list(zip(PIXELS, LABELS, strict=True))
    items[5] = (PIXELS[5], 1, 2)
    source = as_source(items)
    with pytest.raises(ValueError, match="position 5 is a tuple of length 3"):
        read_batch(source, range(COUNT))
    lacking: list[Any] = rows()
    del lacking[6]["label"]
    with pytest.raises(ValueError, match="row at position 6 has no 'label'"):
        read_batch(as_source(lacking), range(COUNT))


class Stream(torch_data.IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter([(TENSORS[0], 1)])


class StreamOfKnownLength(Stream):
    def __len__(self) -> int:
        return 1


class WithoutItems(torch_data.Dataset):
    def __len__(self) -> int:
        return 3


class WithoutLength(torch_data.Dataset):
    def __getitem__(self, position: int) -> Any:
        return TENSORS[0], 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((one for one in rows()), r"got a generator: give list\(samples\)"),
        (iter(rows()), "got a list_iterator"),
        (zip(PIXELS, LABELS, strict=True), "got a zip"),
        (Stream(), "got a Stream: give list"),
        (StreamOfKnownLength(), "got a StreamOfKnownLength: give list"),
        (torch_data.DataLoader(Stream()), "got a Stream: give list"),
        (torch_data.DataLoader(StreamOfKnownLength()), "got a StreamOfKnownLength"),
        (WithoutItems(), "a WithoutItems gives no sample at position 0"),
        (WithoutLength(), "got a WithoutLength"),
        (None, "got a NoneType"),
        (
            {"train": rows(), "test": rows()},
            r"a dict of 'train', .*such as source\['train'\]",
        ),
        ({"image": PIXELS, "label": LABELS}, r"a dict of arrays.*give the pair \(images, labels\)"),
        (pd.DataFrame({"image": list(PIXELS), "label": LABELS}), "got a DataFrame: give the pair"),
        (pa.table({"label": LABELS}), "got a Table: give the pair"),
        (load("digits"), "got a ImageDataset: give its .train or its .test"),
        ("digits", "got the str 'digits': open it first"),
        (Path("images"), "open it first"),
        (PIXELS, r"an array needs its labels: give \(images, labels\)"),
        (TENSORS, "an array needs its labels"),
        ((PIXELS, LABELS[:5]), r"one label an image; got .*\(7, 4, 5, 3\).*\(5,\)"),
        ((TENSORS, NUMBERS[:5]), r"one label an image; got .*\(7, 4, 5, 3\).*\(5,\)"),
        ((LABELS, PIXELS), r"one label an image; got images of shape \(7,\)"),
        ((PIXELS, np.eye(3)[LABELS]), r"whole numbers \[7\]; got float64 .*one-hot.*argmax"),
        ((PIXELS, np.eye(3, dtype=int)[LABELS]), r"whole numbers \[7\]; got int.*one-hot.*argmax"),
        ((PIXELS, LABELS.astype(np.float32)), r"got float32 of shape \(7,\): .*as an integer"),
        ((PIXELS, LABELS[:, None]), r"got int64 of shape \(7, 1\): .*single number that number"),
        ((PIXELS, ["cat"] * COUNT), r"whole numbers \[7\]"),
        ((PIXELS, LABELS, LABELS), "got three arrays: give the pair"),
        ((TENSORS.bfloat16(), NUMBERS), "no type for torch.bfloat16"),
    ],
)
def test_what_would_be_misread_is_refused_with_the_cure(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_source(given)


def test_keys_of_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a pair .* has no names"):
        as_source((PIXELS, LABELS), keys={"image": "img"})


class OwnSequential(torch_data.SequentialSampler):
    def __iter__(self) -> Iterator[int]:
        return iter([0])


class OwnLoader(torch_data.DataLoader):
    def __iter__(self) -> Any:
        return iter(())


def collate_images(items: Any) -> Any:
    return torch_data.default_collate(items)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": [3, 1]}, r"its sampler \(list\)"),
        ({"sampler": torch_data.SubsetRandomSampler([3, 1])}, r"sampler \(SubsetRandomSampler\)"),
        (
            {"sampler": torch_data.WeightedRandomSampler([1.0] * COUNT, COUNT)},
            r"sampler \(WeightedRandomSampler\)",
        ),
        (
            {"sampler": torch_data.RandomSampler(range(COUNT), replacement=True)},
            r"sampler \(RandomSampler\)",
        ),
        (
            {"sampler": torch_data.RandomSampler(range(COUNT), num_samples=3)},
            r"sampler \(RandomSampler\)",
        ),
        (
            {"sampler": torch_data.RandomSampler(range(3), num_samples=COUNT)},
            r"sampler \(RandomSampler\)",
        ),
        ({"sampler": torch_data.SequentialSampler(range(3))}, r"sampler \(SequentialSampler\)"),
        ({"sampler": OwnSequential(range(COUNT))}, r"sampler \(OwnSequential\)"),
        ({"batch_sampler": [[0, 1], [2]]}, r"batch_sampler \(list\)"),
        (
            {
                "batch_sampler": torch_data.BatchSampler(
                    torch_data.SequentialSampler(range(COUNT)), 2, False
                )
            },
            r"batch_sampler \(BatchSampler\)",
        ),
        ({"collate_fn": collate_images}, r"collate_fn \(collate_images\)"),
        ({"batch_size": 3, "drop_last": True}, "drop_last, which leaves 1 samples out"),
    ],
)
def test_a_loader_with_choices_of_its_own_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        as_source(loader(**settings))
    assert re.search(r"give the data set in its place \(loader.dataset\)", str(error.value))


def test_a_loader_that_gives_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="the __iter__ of OwnLoader would be ignored"):
        as_source(OwnLoader(torch_data.TensorDataset(TENSORS, NUMBERS)))


def test_an_empty_source_is_left_to_the_reader() -> None:
    for given in ([], (PIXELS[:0], LABELS[:0]), torch_data.TensorDataset(TENSORS[:0], NUMBERS[:0])):
        assert len(as_source(given)) == 0


def test_normalised_takes_what_is_taken_as_a_source() -> None:
    normalisation = Normalisation((0.5,) * 3, (0.25,) * 3)
    expected = normalisation.apply(PIXELS)
    named = rows(image="img")
    for view in (
        Normalised((PIXELS, LABELS), normalisation),
        Normalised(loader(), normalisation),
        Normalised(named, normalisation, keys={"image": "img"}),
    ):
        np.testing.assert_array_equal(read_batch(view, range(COUNT)).images, expected)
    assert Normalised((PIXELS, LABELS), normalisation).labels is LABELS
    with pytest.raises(ValueError, match="got a generator"):
        Normalised((one for one in named), normalisation)
    floats = Normalised((PIXELS / np.float32(255), LABELS), normalisation)
    with refused(r"only uint8 pixels.*got float32.*\(images - mean\) / std"):
        floats[0]


def test_a_data_set_whose_images_are_random_is_refused() -> None:
    """A training transform: each pass would see other images."""

    class Augmented(torch_data.Dataset):
        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
            return TENSORS[position] + torch.rand(1), int(LABELS[position])

    message = "another image each time the sample at position 0.*its evaluation transform"
    for given in (Augmented(), torch_data.DataLoader(Augmented())):
        with pytest.raises(ValueError, match=message):
            as_source(given)
    with pytest.raises(ValueError, match=message):
        as_source([Random(0)])


class Random(dict[str, Any]):
    """A row of a sample's own names, with a random image."""

    def __init__(self, index: int):
        super().__init__(image=PIXELS[0], label=0, index=index)

    def __getitem__(self, name: str) -> Any:
        return RNG.random((4, 5, 3)) if name == "image" else super().__getitem__(name)


def test_lists_of_tensors_are_batches() -> None:
    np.testing.assert_array_equal(as_images(list(TENSORS)), as_images(TENSORS))
    with pytest.raises(ValueError, match="images must have one shape"):
        as_images([TENSORS[0], TENSORS[0, :, :2]])


def masked(array: np.ndarray, hidden: bool) -> np.ma.MaskedArray:
    mask = np.zeros(array.shape, bool)
    mask.flat[0] = hidden
    return np.ma.MaskedArray(array, mask)


def test_masked_values_are_refused_with_the_cure() -> None:
    """As rasterio reads places without data, whose numbers mean nothing."""
    floats = PIXELS.astype(np.float32)
    for images, labels in ((masked(floats, True), LABELS), (floats, masked(LABELS, True))):
        with refused("have masked values: .*filled"):
            as_source((images, labels))
        with refused("masked values: .*filled|must be a whole number"):
            as_source(list(zip(images, labels, strict=True)))[0]
    with refused("images have masked values"):
        as_images(list(masked(floats, True)))
    own = [{"image": masked(floats[0], True), "label": 1, "index": 7}]
    with refused("pixels at position 0 have masked values.*filled"):
        read_batch(as_source(own), [0])
    with refused("masked"):
        as_source([(floats[0], np.ma.masked)], classes=False)[0]
    plain = as_source((masked(floats, False), masked(LABELS, False)))
    assert type(plain.images) is np.ndarray
    np.testing.assert_array_equal(plain.images, floats)


def test_another_byte_order_is_this_machine_s() -> None:
    """As FITS files have it."""
    floats = PIXELS.astype(np.float32)
    turned, labels = floats.astype(">f4"), LABELS.astype(">i4")
    for given in ((turned, labels), list(zip(turned, LABELS, strict=True))):
        batch = read_batch(as_source(given), range(COUNT), pixels=np.float32)
        assert batch.images.dtype == np.float32
        np.testing.assert_array_equal(batch.images, floats)
        np.testing.assert_array_equal(batch.labels, LABELS)
