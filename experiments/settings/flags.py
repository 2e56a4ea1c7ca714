"""The settings of an experiment: every field is a flag, its docstring the flag's help.

They are written beside the results. In a docstring `none` is what the flag takes for None.

Importable without JAX or torch, so that the command line answers at once.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from bridge.checks import require_stream
from bridge.chips.memories.pcm import PCM
from bridge.chips.profiles import (
    ADC,
    COARSE_BITS,
    FULL_PROFILE,
    Clipping,
    Profile,
    WeightNoise,
    named_profiles,
)
from bridge.report.figures.widths import WIDTHS, Width
from bridge.report.folds import Fold
from bridge.routing.costs import Costs
from jaxcurv.data import Normalisation
from jaxcurv.data.preprocessing import Interpolation, Preprocessing, choose_preprocessing
from jaxcurv.estimators import Estimator, EstimatorName, FiniteDifference, named_estimators
from jaxcurv.training.recipe import Recipe

ProfileName = Literal[
    "ideal",
    "adc",
    "wnoise",
    "pcm",
    "adc+wnoise",
    "adc+pcm",
    "wnoise+pcm",
    "adc+wnoise+pcm",
    "adc_coarse",
    "wnoise_mvm",
    "pcm_gdc",
    "adc+wnoise+pcm_gdc",
]


def require_device_name(name: str) -> None:
    """Raises ValueError unless torch could have a device of this name."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device must be cpu, cuda or cuda:N; got {name!r}")


def require_seed(name: str, seed: int) -> None:
    """Raises ValueError unless JAX tells this seed from every other: it takes 32 bits of it."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name} must not be negative and be below 2**32; got {seed}")


@dataclass(frozen=True)
class Data:
    """The images, and how the official training split is divided."""

    name: str = "digits"
    """Data set: digits, cifar10, cifar100, tiny_imagenet, imagenet, or the name of a folder of
    images or of a TFDS data set in the data directory; for a network of your own also the path of
    such a folder anywhere, beginning with /."""
    image_size: int | None = None
    """Side in pixels to which images are resized and centre-cropped, for images of unequal size;
    `none` leaves them as they are."""
    resize_size: int | None = None
    """Length in pixels to which the short side is resized before the crop; `none` takes the image
    size."""
    interpolation: Interpolation = "bicubic"
    """Filter for resizing. The published torchvision weights expect bilinear."""
    validation_fraction: float = 0.1
    """Fraction of the official training split that is kept out of training, to choose the best
    checkpoint and the thresholds of routing. Where a folder has no train and test, this
    fraction of its images is validation, and as many again are kept to calibrate the ADCs; below
    0.5."""
    split_seed: int = 0
    """Seed for dividing the training split and for choosing samples under --limit."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel for normalisation, with pixels on the scale 0..1; `none` computes it
    from the training images, or takes the published one for published weights, and 0 for a network
    of your own, which has as many channels as there are values (3 with `none`)."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel for normalisation, on the same scale; `none` as for the
    mean, and 1 for a network of your own."""
    strict: bool = False
    """Refuse a folder of images in which other files lie, rather than name and skip them."""

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must lie between 0 and 1, for validation chooses the "
                f"checkpoint; got {self.validation_fraction}"
            )
        require_seed("split_seed", self.split_seed)
        _ = self.preprocessing, self.normalisation  # which check their settings

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide what the images are, as JSON holds them."""
        return {name: value for name, value in asdict(self).items() if name != "strict"}

    @property
    def folder(self) -> Path | None:
        """The folder that is given by its path; None for a name."""
        return Path(self.name) if Path(self.name).is_absolute() else None

    @property
    def title(self) -> str:
        """What figures and the report call the data set."""
        return self.name if self.folder is None else self.folder.name

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
        return Normalisation(tuple(self.mean), tuple(self.std))


@dataclass(frozen=True)
class Model:
    """The network."""

    architecture: Literal["resnet18", "resnet50"] = "resnet18"
    """Residual network."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layer: `cifar` is 3x3 without pooling, for images of about 32 pixels; `imagenet` is 7x7
    with pooling."""
    width: int = 64
    """Channels of the first stage; the standard network has 64."""
    weights: str | None = None
    """Pretrained weights to use instead of training: a .pth or .safetensors file, or a torchvision
    name such as resnet18:IMAGENET1K_V1; `none` trains the network, or takes those that a factory's
    network has. A factory that returns no torch module loads its own."""
    factory: str | None = None
    """A network of your own, in place of architecture, stem and width: PACKAGE.MODULE:FACTORY,
    Python code that is run; modules in the current folder are found. FACTORY() takes no argument
    and returns a torch module or a Flax NNX module in evaluation mode, a function from images to
    logits, or a pair of a function (of parameters and images, to logits) and its parameters; it is
    not trained, and a torch module alone goes onto chips. `none` has a residual network."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be at least 1; got {self.width}")

    @property
    def trained(self) -> bool:
        """Whether the network is trained here."""
        return self.weights is None and self.factory is None

    @property
    def title(self) -> str:
        """What the report calls the network."""
        return self.factory or f"{self.architecture} of width {self.width}"


if TYPE_CHECKING:
    Compared = str
else:
    Compared = Literal[get_args(EstimatorName)[1:]]


@dataclass(frozen=True)
class Score:
    """How curvature is estimated."""

    estimator: FiniteDifference = field(default_factory=FiniteDifference)
    """The curvature score itself: input loss curvature by finite differences, Eq. 1 of
    Sharma et al."""
    compare: tuple[Compared, ...] = ("hessian_vector", "hessian_trace", "gauss_newton")
    """Other curvature estimators to compute and compare as predictors of failure; give no value for
    none. Those that use random vectors use as many as the curvature score."""
    batch_size: int = 64
    """Images per batch on each device. Changes speed and memory; scores change by rounding only."""

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
    """The simulated analog chips, under hardware profiles: combinations of adc, wnoise and pcm, the
    ideal chip among them."""

    profiles: tuple[ProfileName, ...] = get_args(ProfileName)
    """Hardware profiles to simulate: the paper's eight, an ADC of fewer bits, weight noise drawn
    anew at each operation, and PCM with global drift compensation, alone and with adc and wnoise.
    The ideal chip, which checks the conversion, and the profile that the report is about
    (--analyse.profile) must be among them."""

    adc: ADC = field(default_factory=ADC)
    """Analog-to-digital converter (ADC) at the outputs of each crossbar tile, in profiles with
    adc."""
    wnoise: WeightNoise = field(default_factory=WeightNoise)
    """Gaussian weight noise, in profiles with wnoise; wnoise_mvm draws it anew at each
    operation."""
    pcm: PCM = field(default_factory=PCM)
    """Phase-change memory that holds the weights, in profiles with pcm; pcm_gdc compensates its
    drift globally."""
    clipping: Clipping = field(default_factory=Clipping)
    """Clipping of each tile's weights before programming, in every profile."""
    coarse_bits: int = COARSE_BITS
    """Bits of the ADC in the profile adc_coarse, 2 to 23."""
    chips: int = 1
    """Chips to program for each profile. Their seeds are --seed, --seed + 1 and so on."""
    stream: str | None = None
    """Label of the chips' random numbers. `none`: the same seeds have the same noise under every
    network whose layers have the same names, to compare networks in pairs; chips of two labels
    share no random number, to compare networks as independent."""
    adc_calibration: int = 256
    """Training images on which calibrated ADC ranges are found. The fraction of clipped outputs is
    measured on as many test images."""
    batch_size: int = 64
    """Images per batch. Changes speed and memory only."""
    device: str = "cpu"
    """Device for PyTorch: cpu, cuda or cuda:N."""
    engine: Literal["fast", "aihwkit", "jax"] = "fast"
    """What computes the chips: `fast`, AIHWKit's chips without unfolding; `aihwkit`, its own tiles,
    many times slower; `jax`, the chips of bridge.analog, on JAX's device: other chips of the same
    kind, for which neither torch nor AIHWKit is needed."""

    def __post_init__(self) -> None:
        if min(self.chips, self.adc_calibration, self.batch_size) < 1:
            raise ValueError(
                "chips, adc_calibration and batch_size must be at least 1; got "
                f"{self.chips}, {self.adc_calibration}, {self.batch_size}"
            )
        if "ideal" not in self.profiles or len(set(self.profiles)) < len(self.profiles):
            raise ValueError(
                "profiles must include ideal, and each once; got "
                f"{', '.join(self.profiles) or 'none'}"
            )
        require_device_name(self.device)
        require_stream(self.stream)
        _ = self.every_profile  # which checks coarse_bits

    @property
    def every_profile(self) -> dict[str, Profile]:
        """All profiles that have a name, with these devices."""
        return named_profiles(self.adc, self.wnoise, self.pcm, self.clipping, self.coarse_bits)

    @property
    def chosen_profiles(self) -> dict[str, Profile]:
        """The profiles to simulate, by name."""
        return {name: one for name, one in self.every_profile.items() if name in self.profiles}


@dataclass(frozen=True)
class Analyse:
    """The tables of failures, predictors and routing."""

    profile: ProfileName = FULL_PROFILE
    """Profile that the report's answer and its figures and tables of one profile are about."""
    bins: int = 10
    """Bins of equal size into which samples are sorted by curvature; 10 makes deciles, as
    Sharma et al. use."""
    confidence: float = 0.95
    """Confidence level of all intervals, between 0 and 1."""
    resamples: int = 1000
    """Bootstrap resamples for the intervals of predictors and overlap."""
    energy: Costs = field(default_factory=Costs)
    """Energy of one inference, for routing samples between chip and digital model. The defaults are
    an assumption: give your own."""
    tolerance: float = 0.01
    """Accuracy that routing may lose against the digital model, as a fraction: 0.01 is one
    percentage point."""

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins must be at least 2; got {self.bins}")
        if self.profile == "ideal":
            raise ValueError("profile must have a non-ideality, for no sample fails under ideal")
        if not 0 < self.confidence < 1 or self.resamples < 1:
            raise ValueError(
                "confidence must lie between 0 and 1 and resamples be at least 1; got "
                f"{self.confidence}, {self.resamples}"
            )
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1); got {self.tolerance}")


@dataclass(frozen=True)
class FigureWidth:
    """How wide figures are."""

    width: Width = "double"
    """Width of the figures in columns of a paper: `single` is 3.5 inches (89 mm), with panels one
    above the other; `double` is 7.2 inches (183 mm). The report's first figure has always one.
    Every figure is a PNG, an SVG and a PDF, both with their text as text, and a CSV."""

    @property
    def inches(self) -> float:
        """The width in inches."""
        return WIDTHS[self.width]


@dataclass(frozen=True)
class Figures(FigureWidth):
    """The figures of the report."""

    profiles: tuple[ProfileName, ...] = ()
    """Hardware profiles that figures with a panel or a row for each profile show: Fig. 1 and
    calibration in this order, and overlap. No value shows all."""

    def __post_init__(self) -> None:
        if len(set(self.profiles)) < len(self.profiles):
            raise ValueError(f"profiles must name each once; got {', '.join(self.profiles)}")


@dataclass(frozen=True)
class Training(Recipe):
    """Training by SGD: Nesterov momentum, linear warm-up, cosine decay to zero, crops and flips; as
    an option on the weights of noisy chips, and from given weights."""

    noise: ProfileName | None = None
    """Noise-aware training: at each step the gradient is taken at the weights of a chip of this
    hardware profile that is programmed anew, and changes the exact weights. Memory (at its
    t-inference), weight noise drawn per chip and clipping are as --simulate.* says; the ADC and
    noise of each operation are left out. Validation is of the exact weights. `none` trains on
    these."""
    start: str | None = None
    """Weights to start from, for fine-tuning: a .pth or .safetensors file, the folder of an
    exported run, or a torchvision name, of the network that --model.* says; `none` draws new
    weights."""


@dataclass(frozen=True)
class Experiment:
    """One experiment, from images to report."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Training = field(default_factory=Training)
    score: Score = field(default_factory=Score)
    simulate: Simulate = field(default_factory=Simulate)
    analyse: Analyse = field(default_factory=Analyse)
    figures: Figures = field(default_factory=Figures)
    folds: tuple[Fold, ...] = ("train", "validation", "test")
    """Folds whose samples are scored and simulated; test must be among them. A fold is one of the
    splits train, validation and test; train and validation divide the official training split."""
    limit: int | None = None
    """Largest number of samples of each fold to score and simulate; `none` takes all. Training
    always uses the whole train fold."""
    limit_train: int | None = None
    """The same for the train fold alone; `none` takes --limit for it too."""
    seed: int = 0
    """Seed for initial weights, training order and random vectors; chips have --seed, --seed + 1
    and so on."""

    def __post_init__(self) -> None:
        require_seed("seed", self.seed)
        if "test" not in self.folds or len(set(self.folds)) < len(self.folds):
            raise ValueError(
                f"folds must include test, each fold once; got {', '.join(self.folds) or 'none'}"
            )
        if self.analyse.profile not in self.simulate.profiles:
            raise ValueError(
                f"profiles must include {self.analyse.profile}, which the report is about "
                f"(--analyse.profile); got {', '.join(self.simulate.profiles)}"
            )
        if missing := [one for one in self.figures.profiles if one not in self.simulate.profiles]:
            raise ValueError(
                f"figures.profiles has {missing[0]}, which is not simulated: give some of "
                f"{', '.join(self.simulate.profiles)}, or add it to --simulate.profiles"
            )
        self._require_trained()
        for flag, limit in (("--limit", self.limit), ("--limit-train", self.limit_train)):
            if limit is not None and limit < self.analyse.bins:
                raise ValueError(
                    f"a limit of {limit} samples cannot fill {self.analyse.bins} bins: give at "
                    f"least {flag} {self.analyse.bins}"
                )

    def _require_trained(self) -> None:
        """Refuses settings of a training that there is none of, and noise that no weight gets."""
        train, profiles = self.train, self.simulate.every_profile
        if not self.model.trained and (train.noise, train.start) != (None, None):
            raise ValueError(
                "train.noise and --train.start are for a network that is trained here: leave out "
                "--model.weights and --model.factory; weights to start from are --train.start"
            )
        if train.noise is not None and self.training_noise is None:
            named = [name for name, one in profiles.items() if one.of_weights is not None]
            raise ValueError(
                f"train.noise {train.noise} has no noise of weights that is drawn once for each "
                f"chip, which is what training takes of a profile: give {', '.join(named)}"
            )

    @property
    def training_noise(self) -> Profile | None:
        """What a chip's weights get under the profile that training is aware of; None for none."""
        if self.train.noise is None:
            return None
        return self.simulate.every_profile[self.train.noise].of_weights

    def limit_of(self, fold: Fold) -> int | None:
        """Largest number of samples of a fold; None for all."""
        own = self.limit_train if fold == "train" else None
        return self.limit if own is None else own
