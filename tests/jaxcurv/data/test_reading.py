"""The reader of sources that scoring, flips, chips and data sets share."""

from typing import Any

import numpy as np
import pytest

from jaxcurv.data import read
from jaxcurv.data.reading import read_batch, read_batches

SHAPE = (4, 5, 3)


def samples(count: int = 7, dtype: Any = np.float32) -> list[Any]:
    return [
        {"image": np.full(SHAPE, i, dtype), "label": np.int32(i % 3), "index": 10 * i}
        for i in range(count)
    ]


class AtOnce(list):
    """Gives samples only by `__getitems__`, and says which were asked for together."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(items)
        self.asked: list[list[int]] = []

    def __getitems__(self, positions: list[int]) -> list[Any]:
        self.asked.append(positions)
        return [self[position] for position in positions]


@pytest.mark.parametrize("kind", [list, AtOnce])
def test_batches_hold_every_sample_in_order(kind: Any) -> None:
    source = kind(samples())
    batches = list(read_batches(source, 3, pixels=np.float32))
    assert [len(batch.labels) for batch in batches] == [3, 3, 1]
    assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(0, 70, 10))
    assert all(batch.images.shape[1:] == SHAPE for batch in batches)
    assert batches[0].labels.dtype == np.int32  # that of the source
    if kind is AtOnce:
        assert source.asked == [[0, 1, 2], [3, 4, 5], [6]]
    some = read_batch(source, [5, 1])
    assert (some.indices.tolist(), some.images[:, 0, 0, 0].tolist()) == ([50, 10], [5, 1])
    assert some.take(np.array([1, 1])).indices.tolist() == [10, 10]


def test_without_a_dtype_any_arrays_of_one_shape_are_read() -> None:
    batch = read_batch([{**one, "image": [0.5, 1.0]} for one in samples(2)], range(2))
    assert (batch.images.dtype, batch.images.shape) == (np.float64, (2, 2))


@pytest.mark.parametrize("axes", range(7))
def test_numbers_for_networks_have_one_to_four_axes(axes: int) -> None:
    source = [{**one, "image": np.zeros((2,) * axes, np.float32)} for one in samples(2)]
    if 1 <= axes <= 4:
        assert read_batch(source, range(2), pixels=np.float32).images.shape == (2,) * (1 + axes)
    else:
        with pytest.raises(ValueError, match="images must be float32"):
            read_batch(source, range(2), pixels=np.float32)


def test_an_image_of_another_shape_in_a_later_batch_is_refused() -> None:
    source = [*samples(4), {**samples(1)[0], "image": np.zeros((5, 4, 3), np.float32), "index": 99}]
    with pytest.raises(
        ValueError, match=r"one shape; image 99, at position 4, is float32 \(5, 4, 3\), the first"
    ):
        list(read_batches(source, 2))


@pytest.mark.parametrize(
    ("dtype", "cure"),
    [
        (np.uint8, r"Normalised\(source"),
        (np.uint16, r"levels of more than 8 bits .*/ 65535.*float32"),
        (np.int32, r"levels of more than 8 bits .*float32"),
        (np.int64, r"levels of more than 8 bits .*float32"),
        (np.bool_, r"astype\(numpy\.float32\)"),
        (np.float16, r"astype\(numpy\.float32\)"),
        (np.float64, r"astype\(numpy\.float32\)"),
    ],
)
def test_images_of_another_type_are_refused_by_it_with_a_cure(dtype: Any, cure: str) -> None:
    message = rf"images must be float32 \[height.*image 0, at position 0, is {np.dtype(dtype)} "
    with pytest.raises(ValueError, match=message + rf".*{cure}") as refused:
        read_batch(samples(2, dtype), range(2), pixels=np.float32)
    assert "shape" not in str(refused.value)
    assert "token" not in str(refused.value)


def test_levels_of_16_bits_where_8_are_read_are_told_so() -> None:
    with pytest.raises(ValueError, match=r"must be uint8 .* is uint16 .*/ 257\).round\(\)"):
        read(samples(2, np.uint16))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": 0.5}, "label must be a whole number; got 0.5 at position 0"),
        ({"label": -1}, "label must not be negative; got -1 at position 0"),
        ({"index": "seven"}, "index must be a whole number; got 'seven'"),
        ({"image": np.zeros(SHAPE)}, r"must be uint8 \[height, width, channel\] .*is float64"),
        ({"image": np.zeros((4, 5), np.uint8)}, r"\[height, width, channel\] .*uint8 \(4, 5\)"),
    ],
)
def test_a_malformed_sample_is_refused_by_every_reader(changed: Any, message: str) -> None:
    source = samples(3, np.uint8)
    source[0] |= changed
    with pytest.raises(ValueError, match=message):
        read(source)
    with pytest.raises(ValueError, match=message):
        read_batch(source, range(3), pixels=np.uint8)
