"""Images of torch, Pillow and JAX as NumPy arrays, channels last; torch is not imported."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

_SIDE = 5  # pixels; of fewer, the axes of an image and its channels are not told apart
_MODES = ("L", "RGB", "RGBA")  # Pillow's, whose numbers are the pixels


def comes_from(value: Any, package: str, name: str) -> bool:
    """Whether the value's class, or one that it inherits from, is the class `name` of `package`.

    It is told by names, so that the package need not be imported.
    """
    return any(
        one.__name__ == name and one.__module__.partition(".")[0] == package
        for one in type(value).__mro__
    )


def is_tensor(value: Any) -> bool:
    """Whether the value is a torch tensor."""
    return comes_from(value, "torch", "Tensor")


def is_picture(value: Any) -> bool:
    """Whether the value is an image of Pillow."""
    return comes_from(value, "PIL", "Image")


def plain_array(given: Any, what: str = "images") -> np.ndarray:
    """An array of anything that NumPy takes for one, in this machine's byte order.

    Args:
        given: what `np.asarray` takes; masked arrays too, where nothing is masked.
        what: its name in messages.

    Raises:
        ValueError: masked values, for which an array has numbers without a meaning.
    """
    parts = given if isinstance(given, list | tuple) else [given]
    if any(isinstance(one, np.ma.MaskedArray) and np.ma.is_masked(one) for one in parts):
        raise ValueError(
            f"{what} have masked values: give what shall stand for them, .filled(value), or leave "
            "out the samples that have any"
        )
    array = np.asarray(given)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def warn_of_channels_first(shape: Sequence[int], stacklevel: int = 3) -> None:
    """Warns of images that are given as `[batch, height, width, channel]` and look otherwise.

    One "row" of a square, or three, before two axes of five or more, are nearly always channels: a
    network that begins by flattening its images takes them without a word, and each pixel is at
    another's place.

    Args:
        shape: of the array, as it was given; other numbers of axes are none of images.
        stacklevel: as of `warnings.warn`.
    """
    if len(shape) != 4:
        return
    first, *sides = shape[1:]
    square = sides[0] == sides[1]
    if min(sides) >= _SIDE and (first == 3 or (first == 1 and square)):
        warnings.warn(
            f"an array {tuple(shape)} looks like [batch, channel, height, width] and is taken as "
            "[batch, height, width, channel]: give images.transpose(0, 2, 3, 1), or a torch "
            "tensor, whose channels come first",
            stacklevel=stacklevel,
        )


def as_images(given: Any) -> np.ndarray:
    """A batch of images as an array.

    Args:
        given: an array, NumPy's or JAX's, taken as it is, in this machine's byte order; a torch
            tensor, whose four axes `[batch, channel, height, width]` become `[batch, height, width,
            channel]`, and which is taken as it is where it has another number of axes; or a list of
            images, see `as_image`. The pixels of arrays and tensors are not copied, but for those
            on an accelerator or in another byte order.

    Raises:
        ValueError: a tensor of a type that NumPy lacks, masked pixels, or images of unequal shapes.
    """
    if isinstance(given, list | tuple) and any(is_tensor(one) or is_picture(one) for one in given):
        given = [as_image(one) for one in given]
        if len(shapes := {one.shape for one in given}) > 1:
            raise ValueError(f"images must have one shape; got {', '.join(map(str, shapes))}")
    if not is_tensor(given):
        return plain_array(given)
    array = _from_tensor(given)
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def as_image(given: Any) -> np.ndarray:
    """One image as an array.

    Args:
        given: an array, taken as it is; a torch tensor, whose three axes `[channel, height, width]`
            become `[height, width, channel]`; or an image of Pillow, uint8 `[height, width,
            channel]`, with one channel where it is gray.

    Raises:
        ValueError: a tensor of a type that NumPy lacks, masked pixels, an image of Pillow that is
            neither gray nor in RGB, or what is no image.
    """
    if is_tensor(given):
        array = _from_tensor(given)
        return array.transpose(1, 2, 0) if array.ndim == 3 else array
    if is_picture(given):
        if given.mode == "F" or given.mode.startswith("I"):  # which convert() would clip to white
            raise ValueError(
                f"an image of Pillow has the mode {given.mode}, of more than 8 bits: scale it, as "
                "with (np.asarray(image) / 257).round().astype(np.uint8)[..., None] where white is "
                "65535"
            )
        if given.mode not in _MODES:
            raise ValueError(
                f"an image of Pillow has the mode {given.mode}, whose numbers are not the colours: "
                'use image.convert("RGB"), or "L" for gray'
            )
        array = np.asarray(given)
        return array[..., np.newaxis] if array.ndim == 2 else array
    array = plain_array(given, "an image's pixels")
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"an image must be an array, a torch tensor or an image of Pillow; got a "
            f"{type(given).__name__}"
        )
    return array


def _from_tensor(tensor: Any) -> np.ndarray:
    try:
        return tensor.detach().cpu().numpy()
    except TypeError as error:
        raise ValueError(
            f"NumPy has no type for {tensor.dtype} tensors: give float32, tensor.float()"
        ) from error
