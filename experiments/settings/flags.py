"""The settings of an experiment: every field is a flag and is written beside the results.

Importable without JAX or torch, so that the command line answers at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from bridge.chips.memories.pcm import PCM
from bridge.chips.profiles import ADC, Clipping, WeightNoise
from bridge.routing.costs import Costs
from jaxcurv.data import Normalisation
from jaxcurv.data.preprocessing import Interpolation, Preprocessing, choose_preprocessing
from jaxcurv.estimators import Estimator, EstimatorName, FiniteDifference, named_estimators
from jaxcurv.training.recipe import Recipe

Fold = Literal["train", "validation", "test"]


def require_device_name(name: str) -> None:
    """Raises ValueError unless torch could have a device of this name."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device must be cpu, cuda or cuda:N; got {name!r}")


def require_seed(name: str, seed: int) -> None:
    """Raises ValueError unless JAX tells this seed from every other: it takes 32 bits of it."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name} must not be negative and be below 2**32; got {seed}")


def given_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> Normalisation:
    """The normalisation that two flags give.

    Raises:
      ValueError: they cannot be a mean and a standard deviation of values in 0..1.
    """
    if not all(0 <= value <= 1 for value in mean) or any(value > 1 for value in std):
        raise ValueError(
            f"mean {mean} and std {std} must be on the scale 0..1: divide those of pixels in "
            "0..255 by 255"
        )
    return Normalisation(tuple(mean), tuple(std))


@dataclass(frozen=True)
class Data:
    """Which images, and how the official training split is divided."""

    name: str = "digits"
    """digits, cifar10, cifar100, tiny_imagenet, imagenet, or a folder or TFDS data set under the
    data directory."""
    image_size: int | None = None
    """Resize and centre-crop to this many pixels; for images of unequal size."""
    resize_size: int | None = None
    """Resize the short side to this many pixels before the crop; the image size unless given."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resizing. torchvision's weights want bilinear."""
    validation_fraction: float = 0.1
    """Share of the official training split held out to choose the checkpoint."""
    split_seed: int = 0
    """Seed of that division and of the choice under --limit."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, on the scale 0..1, for normalisation. Unless given, that of the
    training pixels, or the one published with given weights."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; unless given, as for the mean."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must lie between 0 and 1, for validation chooses the "
                f"checkpoint; got {self.validation_fraction}"
            )
        require_seed("split_seed", self.split_seed)
        _ = self.preprocessing, self.normalisation  # which check their settings

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How images become squares of one size; None leaves them as they are."""
        return choose_preprocessing(self.image_size, self.resize_size, self.interpolation)

    @property
    def normalisation(self) -> Normalisation | None:
        """The given one; None for that of the train fold."""
        if self.mean is None and self.std is None:
            return None
        if self.mean is None or self.std is None:
            raise ValueError("mean and std go together: give both or neither")
        return given_normalisation(self.mean, self.std)


@dataclass(frozen=True)
class Model:
    """Which network."""

    architecture: Literal["resnet18", "resnet50"] = "resnet18"
    """Residual network of the paper."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layer: 3x3 without pooling for images of 32 pixels, or 7x7 with pooling."""
    width: int = 64
    """Channels of the first stage; 64 is the standard network."""
    weights: str | None = None
    """Weights to take over instead of training: a .pth or .safetensors file, or torchvision's name
    such as resnet18:IMAGENET1K_V1."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1; got {self.width}")


if TYPE_CHECKING:
    Compared = str
else:
    Compared = Literal[get_args(EstimatorName)[1:]]


@dataclass(frozen=True)
class Score:
    """How curvature is estimated, and what beside it."""

    estimator: FiniteDifference = field(default_factory=FiniteDifference)
    """Eq. 1 of the paper."""
    compare: tuple[Compared, ...] = ("hessian_vector", "hessian_trace", "gauss_newton")
    """Other estimators to compare as predictors; the probed ones take as many probes."""
    batch_size: int = 64
    """Images a batch, on each device; changes speed and memory, not the scores beyond rounding."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")
        if len(set(self.compare)) < len(self.compare):
            raise ValueError(f"compare must name each once; got {', '.join(self.compare)}")

    @property
    def estimators(self) -> dict[str, Estimator]:
        """Every estimator, by the name of its column; curvature is the first."""
        others = named_estimators(self.estimator.probes)
        return {"curvature": self.estimator} | {name: others[name] for name in self.compare}


@dataclass(frozen=True)
class Simulate:
    """The analog chips."""

    adc: ADC = field(default_factory=ADC)
    """Converter at each tile's outputs, in the profiles with adc."""
    wnoise: WeightNoise = field(default_factory=WeightNoise)
    """Weight noise, in the profiles with wnoise."""
    pcm: PCM = field(default_factory=PCM)
    """Phase-change memory, in the profiles with pcm."""
    clipping: Clipping = field(default_factory=Clipping)
    """How each tile's weights are clipped before programming, in every profile."""
    chips: int = 1
    """Chips programmed for each profile; chip k has seed SEED + k."""
    calibration: int = 256
    """Training images that set the converter's range; as many of test measure what it clips."""
    batch_size: int = 64
    """Images a batch."""
    device: str = "cpu"
    """Where torch runs: cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if min(self.chips, self.calibration, self.batch_size) < 1:
            raise ValueError(
                "chips, calibration and batch_size must be at least 1; got "
                f"{self.chips}, {self.calibration}, {self.batch_size}"
            )
        require_device_name(self.device)


@dataclass(frozen=True)
class Flip:
    """The physical predictor: how probable it is that a chip flips a prediction."""

    programmings: int = 16
    """Sampled programmings, of other seeds than the simulated chips, for the weights' moments."""

    def __post_init__(self) -> None:
        if self.programmings < 2:
            raise ValueError(
                f"programmings must be at least 2, for a variance; got {self.programmings}"
            )


@dataclass(frozen=True)
class Analyse:
    """The tables."""

    bins: int = 10
    """Equal-sized curvature bins; the paper has deciles."""
    confidence: float = 0.95
    """Confidence level of the intervals, between 0 and 1."""
    resamples: int = 1000
    """Resamples of the bootstrap."""
    energy: Costs = field(default_factory=Costs)
    """Energy of one inference, for routing: an assumption to replace by your own."""
    tolerance: float = 0.01
    """Accuracy, as a fraction, that routing may give up against the digital model."""

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2; got {self.bins}")
        if not 0 < self.confidence < 1 or self.resamples < 1:
            raise ValueError(
                "confidence must lie between 0 and 1 and resamples be at least 1; got "
                f"{self.confidence}, {self.resamples}"
            )
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1); got {self.tolerance}")


@dataclass(frozen=True)
class Experiment:
    """One experiment from images to report."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Recipe = field(default_factory=Recipe)
    score: Score = field(default_factory=Score)
    simulate: Simulate = field(default_factory=Simulate)
    flip: Flip = field(default_factory=Flip)
    analyse: Analyse = field(default_factory=Analyse)
    folds: tuple[Fold, ...] = ("train", "validation", "test")
    """Which samples are scored and simulated; train and validation divide the official split."""
    limit: int | None = None
    """Score and simulate at most this many samples of each fold; training takes all."""
    seed: int = 0
    """Seeds initial weights, training order, probes and (plus the chip's number) chips."""

    def __post_init__(self) -> None:
        require_seed("seed", self.seed)
        if "test" not in self.folds or len(set(self.folds)) < len(self.folds):
            raise ValueError(f"folds must differ and hold test; got {', '.join(self.folds)}")
        if self.limit is not None and self.limit < self.analyse.bins:
            raise ValueError(
                f"a limit of {self.limit} samples cannot fill {self.analyse.bins} bins: give at "
                f"least --limit {self.analyse.bins}"
            )
