"""Named experiments."""

from dataclasses import dataclass, replace

from experiments.settings import Data, Experiment, Model
from jaxcurv.recipe import Recipe


@dataclass(frozen=True)
class Preset:
    """An experiment with the line that describes it."""

    description: str
    experiment: Experiment


_DIGITS = Experiment(
    data=Data("digits"),
    model=Model(width=16),
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
    return Experiment(data=Data(name), model=Model(architecture), train=Recipe(epochs=200))  # type: ignore[arg-type]


def _small(name: str) -> Experiment:
    """Sized for two CPU cores."""
    return replace(
        _cifar(name, "resnet18"),
        model=Model(width=16),
        train=Recipe(epochs=15, warmup_epochs=2.0),
        folds=("train", "test"),
        limit=5000,
    )


PRESETS: dict[str, Preset] = {
    "digits": Preset("scikit-learn's 8x8 digits, ResNet-18 of width 16; CPU, minutes", _DIGITS),
    "cifar10_resnet18_small": Preset(
        "CIFAR-10, ResNet-18 of width 16, 15 epochs; CPU, about an hour", _small("cifar10")
    ),
    "cifar100_resnet18_small": Preset(
        "CIFAR-100, ResNet-18 of width 16, 15 epochs; CPU, about an hour", _small("cifar100")
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
