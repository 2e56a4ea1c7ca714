"""Named experiments."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any

from experiments.settings.flags import Analyse, Data, Experiment, Model, Score, Simulate, Training
from experiments.settings.restore import restore
from experiments.settings.values import class_word, dashed, words
from jaxcurv.nested import flatten


@dataclass(frozen=True)
class Preset:
    """An experiment with the line that describes it."""

    description: str
    experiment: Experiment


_DIGITS = Experiment(
    data=Data("digits"),
    model=Model(width=16),
    # The drift of a small network that is not compensated decides by its training seed, and by the
    # minute, which classes fail: the answer is about compensated chips, with the paper's beside.
    simulate=Simulate(
        profiles=(
            *("ideal", "adc", "wnoise", "pcm", "adc+wnoise", "adc+wnoise+pcm"),
            *("pcm_gdc", "adc+wnoise+pcm_gdc"),
        ),
        chips=5,
    ),
    analyse=Analyse(profile="adc+wnoise+pcm_gdc"),
    train=Training(
        epochs=12,
        batch_size=64,
        learning_rate=0.05,
        warmup_epochs=2.0,
        crop_padding=1,
        flip=False,  # a mirrored digit is another sign
    ),
)


def _cifar(name: str, architecture: str) -> Experiment:
    spectral = "gauss_newton" if name == "cifar10" else "low_rank_gauss_newton"
    return Experiment(
        data=Data(name),
        model=Model(architecture),  # type: ignore[arg-type]
        train=Training(epochs=200),
        score=Score(compare=("hessian_vector", "hessian_trace", spectral)),
        simulate=Simulate(chips=5),
    )


def _small(experiment: Experiment, width: int) -> Experiment:
    """The same, sized for two CPU cores."""
    return replace(
        experiment,
        model=replace(experiment.model, width=width),
        train=Training(epochs=15, warmup_epochs=2.0),
        simulate=Simulate(chips=3),
        limit=10_000,  # of the train fold; validation and test have no more
    )


def _small_resnet50(name: str) -> Experiment:
    """Eq. 1 alone is computed, for time's sake."""
    return replace(_small(_cifar(name, "resnet50"), width=8), score=Score(compare=()))


def _fit(name: str, epochs: int) -> Experiment:
    """Trained without augmentation until it has its training images right. So may the paper's
    networks have: their D10 has the highest rates, where a network that is wrong there before any
    chip has few left that could fail."""
    return replace(
        _small(_cifar(name, "resnet18"), 16),
        train=Training(
            epochs=epochs,
            warmup_epochs=2.0,
            weight_decay=1e-4,
            crop_padding=0,
            flip=False,
            keep_every=3,
        ),
        score=Score(compare=()),
        simulate=Simulate(
            profiles=(
                *("ideal", "adc+wnoise+pcm", "adc_coarse"),
                *("wnoise_mvm", "pcm_gdc", "adc+wnoise+pcm_gdc"),
            ),
            chips=15,
        ),
    )


def _tiny_imagenet(architecture: str) -> Experiment:
    """200 classes, 64x64 pixels; trained from scratch as CIFAR is."""
    return _cifar("tiny_imagenet", architecture)


def _imagenet(architecture: str) -> Experiment:
    """Published weights, with the preprocessing that they were published for.

    They were trained on what would be the validation fold: it is left out.
    """
    return Experiment(
        data=Data(
            "imagenet",
            image_size=224,
            resize_size=256,
            interpolation="bilinear",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        model=Model(
            architecture,  # type: ignore[arg-type]
            stem="imagenet",
            weights=f"{architecture}:IMAGENET1K_V1",
        ),
        score=Score(compare=("low_rank_gauss_newton",)),
        simulate=Simulate(chips=5),
        folds=("train", "test"),
        limit=50_000,
    )


OWN = "own"
"""The preset that `--model` and `--data` start from."""

PRESETS: dict[str, Preset] = {
    "digits": Preset(
        "Handwritten digits of 8x8 pixels, ResNet-18 of width 16: minutes on a CPU", _DIGITS
    ),
    "cifar10_resnet18_small": Preset(
        "CIFAR-10, ResNet-18 of width 16, 15 epochs: about an hour on a CPU",
        _small(_cifar("cifar10", "resnet18"), 16),
    ),
    "cifar100_resnet18_small": Preset(
        "CIFAR-100, ResNet-18 of width 16, 15 epochs: about an hour on a CPU",
        _small(_cifar("cifar100", "resnet18"), 16),
    ),
    "cifar10_resnet50_small": Preset(
        "CIFAR-10, ResNet-50 of width 8, 15 epochs: about an hour on a CPU",
        _small_resnet50("cifar10"),
    ),
    "cifar100_resnet50_small": Preset(
        "CIFAR-100, ResNet-50 of width 8, 15 epochs: about an hour on a CPU",
        _small_resnet50("cifar100"),
    ),
    "cifar10_resnet18_fit": Preset(
        "CIFAR-10, ResNet-18 of width 16, fitted to its training images: some hours on a CPU",
        _fit("cifar10", epochs=24),
    ),
    "cifar100_resnet18_fit": Preset(
        "CIFAR-100, ResNet-18 of width 16, fitted to its training images: some hours on a CPU",
        _fit("cifar100", epochs=30),
    ),
    "cifar10_resnet18": Preset(
        "CIFAR-10, ResNet-18, 200 epochs: for a GPU", _cifar("cifar10", "resnet18")
    ),
    "cifar10_resnet50": Preset(
        "CIFAR-10, ResNet-50, 200 epochs: for a GPU", _cifar("cifar10", "resnet50")
    ),
    "cifar100_resnet18": Preset(
        "CIFAR-100, ResNet-18, 200 epochs: for a GPU", _cifar("cifar100", "resnet18")
    ),
    "cifar100_resnet50": Preset(
        "CIFAR-100, ResNet-50, 200 epochs: for a GPU", _cifar("cifar100", "resnet50")
    ),
    "tiny_imagenet_resnet18": Preset(
        "Tiny ImageNet, ResNet-18, 200 epochs: for a GPU", _tiny_imagenet("resnet18")
    ),
    "tiny_imagenet_resnet50": Preset(
        "Tiny ImageNet, ResNet-50, 200 epochs: for a GPU", _tiny_imagenet("resnet50")
    ),
    "imagenet_resnet18": Preset(
        "ImageNet-1K, torchvision's ResNet-18, not trained here: for a GPU", _imagenet("resnet18")
    ),
    "imagenet_resnet50": Preset(
        "ImageNet-1K, torchvision's ResNet-50 V1, not trained here: for a GPU. For V2: "
        "--model.weights resnet50:IMAGENET1K_V2 --data.resize-size 232",
        _imagenet("resnet50"),
    ),
    OWN: Preset(
        "A network and images of your own, not trained here: run --model PACKAGE.MODULE:FACTORY "
        "--data FOLDER",
        Experiment(
            data=Data(""),
            score=Score(compare=()),
            simulate=Simulate(chips=3),
            limit=10_000,
        ),
    ),
}


def command_line(settings: Mapping[str, Any]) -> list[str]:
    """The arguments that give an experiment: the preset nearest to it, and flags for the rest.

    Args:
      settings: the experiment's settings, nested as `asdict` or a record has them.
    """
    wanted = {
        name: tuple(value) if isinstance(value, list) else value  # JSON knows no tuples
        for name, value in flatten(settings)
    }
    flags: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        there = dict(flatten(asdict(preset.experiment)))
        # Where a setting is one of several classes, another than the preset's is chosen first.
        others = {setting.rpartition(".")[0] for setting in wanted.keys() - there.keys()}
        chosen = restore(preset.experiment, settings) if others else preset.experiment
        flags[name] = [
            word
            for group in sorted(others)
            for word in (flag_name(group), class_word(type(attrgetter(group)(chosen))))
        ]
        flags[name] += [
            part
            for setting, value in wanted.items()
            if there.get(setting) != value
            for part in _flag(setting, value)
        ]
    own = wanted.get("model.factory") is not None
    nearest = OWN if own else min(flags, key=lambda name: len(flags[name]))
    return [nearest, *flags[nearest]]


def flag_name(setting: str) -> str:
    """The flag of a setting that is given by its dotted name."""
    return f"--{dashed(setting)}"


def _flag(setting: str, value: Any) -> list[str]:
    name = flag_name(setting)
    if isinstance(value, bool):
        group, dot, last = name.removeprefix("--").rpartition(".")
        return [f"--{group}{dot}{'' if value else 'no-'}{last}"]
    return [name, *words(value)]
