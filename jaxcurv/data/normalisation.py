"""Per-channel standardisation of images."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from jaxcurv.data.adapters import Keys, SourceLike, as_source
from jaxcurv.data.sources import Sample, paths_at, samples_at
from jaxcurv.settings import is_number, make_plain

_CHUNK = 4096  # images counted at once: bounds the temporary copies


@dataclass(frozen=True)
class Normalisation:
    """`(image / 255 - mean) / std`, one mean and one standard deviation a channel.

    Attributes:
        mean: mean of each channel, on the scale 0..1.
        std: standard deviation of each channel, on the scale 0..1; the population's (divided by n).

    Raises:
        ValueError: a value is not on that scale, a standard deviation is not positive, or the
            channel counts differ.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        make_plain(self)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or not all(map(is_number, values)):
                raise ValueError(
                    f"{name} must be finite numbers on the scale 0..1 (those of pixels divided by "
                    f"255), one a channel, such as (0.5,); got {values!r}"
                )
        if not all(0 <= value <= 1 for value in self.mean) or any(value > 1 for value in self.std):
            raise ValueError(
                f"mean {self.mean} and std {self.std} must be on the scale 0..1: divide those of "
                "pixels in 0..255 by 255"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means but {len(self.std)} standard deviations")
        if not all(std > 0 for std in self.std):
            raise ValueError(
                f"std {self.std} must be positive: a channel that never varies cannot be normalised"
            )

    @classmethod
    def of(cls, images: UInt8[np.ndarray, "n height width channels"]) -> "Normalisation":
        """The statistics of all pixels of `images`, in float64 from exact counts of the 256 levels.

        Raises:
            ValueError: there is no image, or a channel never varies.
        """
        if images.size == 0:
            raise ValueError("no images to take the mean and standard deviation of")
        counts = np.zeros((images.shape[-1], 256), np.int64)
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            for channel, row in enumerate(counts):
                row += np.bincount(chunk[..., channel].ravel(), minlength=256)
        levels = np.arange(256) / 255
        weights = counts / counts.sum(axis=1, keepdims=True)
        mean = weights @ levels
        variance = np.sum(weights * np.square(levels - mean[:, None]), axis=1)
        # A constant channel's mean may round: its variance would be 1e-33 rather than 0.
        std = np.where(np.count_nonzero(counts, axis=1) > 1, np.sqrt(variance), 0.0)
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def apply(
        self, images: UInt8[np.ndarray, "*batch height width channels"]
    ) -> Float32[np.ndarray, "*batch height width channels"]:
        """Normalised float32 images.

        Raises:
            ValueError: the images are not uint8, or their channels not as many as the statistics'.
        """
        if images.dtype != np.uint8:
            raise ValueError(
                f"only uint8 pixels, 0 to 255, are normalised; got {images.dtype} images: where "
                "they are in 0..1 give (images - mean) / std as float32 yourself, and where they "
                "are normalised already, leave Normalised out"
            )
        self.require_channels(images.shape)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (images / np.float32(255) - mean) / std

    def require_channels(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless images of this shape have as many channels as the statistics."""
        if shape[-1] != len(self.mean):
            raise ValueError(
                f"images of shape {tuple(shape)} have {shape[-1]} channels, "
                f"but the normalisation has {len(self.mean)}"
            )


@dataclass(frozen=True, repr=False)
class Normalised:
    """A view of a source whose images are normalised, in float32.

    Attributes:
        source: samples with uint8 images; given as anything that `as_source` takes.
        normalisation: mean and standard deviation of each channel.
        keys (Keys | None): as for `as_source`, where the rows that are given have other names.

    Raises:
        ValueError: what `as_source` refuses; when read, images that are not uint8.
    """

    source: SourceLike
    normalisation: Normalisation
    keys: InitVar[Keys | None] = None

    def __post_init__(self, keys: Keys | None) -> None:
        object.__setattr__(self, "source", as_source(self.source, keys=keys, classes=False))

    def __repr__(self) -> str:
        kind = type(self.source).__name__
        return f"<{len(self)} samples of {kind}, normalised by {self.normalisation}>"

    def __len__(self) -> int:
        return len(self.source)

    @property
    def indices(self) -> np.ndarray:
        """Stable indices of all samples, where the source has them."""
        return self.source.indices

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, where the source has them."""
        return self.source.labels

    @property
    def paths(self) -> np.ndarray | None:
        """The files of all samples, where the source has them."""
        return paths_at(self.source, slice(None))

    def __getitem__(self, position: int, /) -> Sample:
        return self._normalised(self.source[position])

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        samples = samples_at(self.source, np.asarray(positions, np.int64))
        return [self._normalised(sample) for sample in samples]

    def _normalised(self, sample: Sample) -> Sample:
        return Sample(
            image=self.normalisation.apply(sample["image"]),
            label=sample["label"],
            index=sample["index"],
        )
