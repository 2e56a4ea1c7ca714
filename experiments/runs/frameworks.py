"""Whether a run's network goes onto chips: onto AIHWKit's torch modules do, onto those in JAX also
functions with parameters."""

from __future__ import annotations

from pathlib import Path

from experiments.runs.descriptions import Framework, framework_in, read_description
from experiments.settings.flags import Experiment

MISSING = (
    "Table I, failure rates, which score predicts failure, flip probabilities and whether they "
    "come true, routing, overlap, drift, what is on the chip, the most vulnerable samples"
)
"""What the report of a run without chips does not have, as the part of a sentence."""


def framework_of(experiment: Experiment, folder: Path) -> Framework | None:
    """What a run's network can be computed in: "torch" as well as JAX, or "jax" alone.

    None for a factory that `train` has not called yet: what it returns is only known then.
    """
    factory = experiment.model.factory
    if factory is None:
        return "torch"
    try:
        description = read_description(folder)
    except (OSError, ValueError):  # there is none yet, or it is damaged: `train` writes it anew
        return None
    return framework_in(description) if description.get("factory") == factory else None


def in_jax(experiment: Experiment) -> bool:
    """Whether a run's chips are those in JAX, which need no PyTorch."""
    return experiment.simulate.engine == "jax"


def has_chips(experiment: Experiment, folder: Path) -> bool:
    """Whether a run's network goes onto chips, or may, where `train` has not called its factory."""
    return in_jax(experiment) or framework_of(experiment, folder) != "jax"


def require_chips(experiment: Experiment, folder: Path, what: str) -> None:
    """Refuses what needs chips on a run whose network has none.

    Args:
      experiment: the run's settings.
      folder: the run's folder.
      what: a stage's or a study's name.

    Raises:
      ValueError: the network has no PyTorch counterpart, and the chips are AIHWKit's.
    """
    if not has_chips(experiment, folder):
        factory = experiment.model.factory
        raise ValueError(f"{what} needs chips: {why_no_chips(factory)}; {cure(factory)}")


def why_no_chips(factory: str | None) -> str:
    """Why there are none, as the part of a sentence."""
    return (
        f"what {factory} returns is computed in JAX and has no PyTorch counterpart that AIHWKit "
        "could program"
    )


def cure(factory: str | None) -> str:
    """What gives such a network chips, as the part of a sentence."""
    return (
        "for chips in JAX, of the same kind, give --simulate.engine jax; for AIHWKit's write the "
        "same layers as a torch module, load the weights into it (those of an NNX module with "
        "bridge.to_torch(model, into=module, images=images)) and give --model a factory that "
        f"returns it in place of {factory}"
    )
