"""Named experiments."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from experiments.settings import Data, Experiment, Model, Score, Simulate
from jaxcurv.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """An experiment with the line that describes it."""

    description: str
    experiment: Experiment


_DIGITS = Experiment(
    data=Data("digits"),
    model=Model(width=16),
    simulate=Simulate(chips=3),
    train=Recipe(
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
        train=Recipe(epochs=200),
        score=Score(compare=("hessian_vector", "hessian_trace", spectral)),  # type: ignore[arg-type]
    )


def _small(experiment: Experiment, width: int) -> Experiment:
    """The same, sized for two CPU cores."""
    return replace(
        experiment,
        model=replace(experiment.model, width=width),
        train=Recipe(epochs=15, warmup_epochs=2.0),
        simulate=Simulate(chips=3),
        limit=10_000,  # of the train fold; validation and test have no more
    )


def _small_resnet50(name: str) -> Experiment:
    """Eq. 1 alone is computed, for time's sake."""
    return replace(_small(_cifar(name, "resnet50"), width=8), score=Score(compare=()))


PRESETS: dict[str, Preset] = {
    "digits": Preset("scikit-learn's 8x8 digits, ResNet-18 of width 16; CPU, minutes", _DIGITS),
    "cifar10_resnet18_small": Preset(
        "CIFAR-10, ResNet-18 of width 16, 15 epochs; CPU, about an hour",
        _small(_cifar("cifar10", "resnet18"), 16),
    ),
    "cifar100_resnet18_small": Preset(
        "CIFAR-100, ResNet-18 of width 16, 15 epochs; CPU, about an hour",
        _small(_cifar("cifar100", "resnet18"), 16),
    ),
    "cifar10_resnet50_small": Preset(
        "CIFAR-10, ResNet-50 of width 8, 15 epochs; CPU, about an hour", _small_resnet50("cifar10")
    ),
    "cifar100_resnet50_small": Preset(
        "CIFAR-100, ResNet-50 of width 8, 15 epochs; CPU, about an hour",
        _small_resnet50("cifar100"),
    ),
    "cifar10_resnet18": Preset(
        "CIFAR-10, ResNet-18, 200 epochs; GPU", _cifar("cifar10", "resnet18")
    ),
    "cifar10_resnet50": Preset(
        "CIFAR-10, ResNet-50, 200 epochs; GPU", _cifar("cifar10", "resnet50")
    ),
    "cifar100_resnet18": Preset(
        "CIFAR-100, ResNet-18, 200 epochs; GPU", _cifar("cifar100", "resnet18")
    ),
    "cifar100_resnet50": Preset(
        "CIFAR-100, ResNet-50, 200 epochs; GPU", _cifar("cifar100", "resnet50")
    ),
}


def command_line(experiment: Experiment) -> list[str]:
    """The arguments that give this experiment: the preset nearest to it, and flags for the rest."""
    wanted = dict(_flat(asdict(experiment)))
    flags: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        there = dict(_flat(asdict(preset.experiment)))
        flags[name] = [
            part
            for setting, value in wanted.items()
            if there.get(setting) != value
            for part in _flag(setting, value)
        ]
    nearest = min(flags, key=lambda name: len(flags[name]))
    return [nearest, *flags[nearest]]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _flag(setting: str, value: Any) -> list[str]:
    name = setting.replace("_", "-")
    if isinstance(value, bool):
        group, _, last = name.rpartition(".")
        return [f"--{group}.{'' if value else 'no-'}{last}".replace("--.", "--")]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
