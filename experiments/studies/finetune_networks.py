"""The fine-tuned networks of a study, which are trained once and kept, and what their chips do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.chips.profiles import to_json
from experiments.chips.protocol import Chip, Programmable
from experiments.runs.networks import builder, identity_of_model
from experiments.runs.resume import key_of, table_at
from experiments.studies.finetune_opened import Opened
from experiments.studies.finetune_tables import row_of
from experiments.studies.finetune_variants import ORIGINAL, PLAIN, Variant, emphasised
from experiments.studies.finetuned import on_chips
from jaxcurv.data import Arrays, Normalised, read
from jaxcurv.progress import progress
from jaxcurv.training.recipe import Recipe

if TYPE_CHECKING:
    from flax import nnx

    from jaxcurv.training.tuning import Tune

_WARMUP = 10
"""The learning rate rises over one of this many steps."""

_EXAMPLES = 4
"""Images by which the chip of noise-aware training knows the network."""


@dataclass(frozen=True)
class Training:
    """One training, and where its network is kept."""

    variant: Variant
    seed: int
    weights: npt.NDArray[np.float64]
    """Weight of each training image."""
    decides: dict[str, Any]
    """What decides the network, as JSON holds it."""
    path: Path

    @property
    def noisy(self) -> bool:
        """Whether it is noise-aware."""
        return self.variant != PLAIN

    @property
    def name(self) -> str:
        """What its progress is called."""
        return f"{self.variant}, seed {self.seed}"


def trainings_of(
    opened: Opened,
    variants: Sequence[Variant],
    seeds: range,
    recipe: Recipe,
    folder: Path,
    *,
    steps: int,
    emphasis: float,
) -> list[Training]:
    """Every training, those of a seed together.

    Args:
      opened: what they start from.
      variants: the trainings of a seed.
      seeds: the training seeds.
      recipe: the optimiser's settings.
      folder: where the networks are kept.
      steps: gradient steps.
      emphasis: as for `emphasised`.
    """
    common = {
        "from": identity_of_model(opened.job, opened.description),
        "data": opened.job.experiment.data.deciding,
        "images": key_of(opened.indices.tolist()),
        "recipe": asdict(recipe),
        "steps": steps,
    }
    found = []
    for seed in seeds:
        for variant in variants:
            weights = emphasised(
                variant, opened.vulnerability, opened.indices, emphasis=emphasis, seed=seed
            )
            decides = {
                **common,
                "seed": seed,
                "noise": None if variant == PLAIN else to_json(opened.noise),
                "weights": key_of(weights.tolist()),
            }
            path = folder / f"{variant}-{seed}-{key_of(decides)}.safetensors"
            found.append(Training(variant, seed, weights, decides, path))
    return found


def train(opened: Opened, trainings: Sequence[Training], recipe: Recipe, *, steps: int) -> None:
    """Fine-tunes the networks that are not kept yet.

    Args:
      opened: what they start from.
      trainings: as `trainings_of` gives them, of the same recipe and steps.
      recipe: the optimiser's settings.
      steps: gradient steps.
    """
    build = builder(opened.description, opened.job.experiment.seed, opened.model)
    normalisation = opened.scored.normalisation

    @cache
    def images() -> Arrays:
        return read(opened.scored.folds["train"], description="read train")

    @cache
    def tuner(noisy: bool) -> Tune:
        from bridge.jax_chips import training_noise
        from jaxcurv.training.tuning import fine_tuning

        perturb = None
        if noisy:
            few = normalisation.apply(images().images[:_EXAMPLES])
            perturb = training_noise(opened.model, opened.noise, few)
        return fine_tuning(
            build,
            images(),
            normalisation,
            recipe,
            steps=steps,
            warmup=steps // _WARMUP,
            perturb=perturb,
        )

    for one in trainings:
        with progress(steps * recipe.batch_size, one.name):
            if not one.path.exists():
                _keep(opened, one, tuner(one.noisy)(one.seed, one.weights))


def _keep(opened: Opened, training: Training, model: nnx.Module) -> None:
    """Writes a fine-tuned network as `export` writes one."""
    import bridge

    training.path.parent.mkdir(parents=True, exist_ok=True)
    description = {key: one for key, one in opened.description.items() if key != "checkpoint"}
    header = {
        **description,
        "data": opened.job.experiment.data.name,
        "variant": training.variant,
        "finetune": training.decides,
    }
    bridge.weights.save_weights(training.path, bridge.to_torch(model), header)


def _kept(opened: Opened, path: Path) -> Programmable:
    """A fine-tuned network, for chips."""
    import bridge

    state_dict, _ = bridge.weights.load_weights(path)
    return on_chips(
        *(opened.job.experiment, opened.description, opened.structure, state_dict),
        *(opened.scored.source.images.dataset, opened.calibration),
    )


@dataclass(frozen=True)
class _Tried:
    """A network that is tried, made when one of its outcomes is not known."""

    name: str
    folder: Path
    """Where its outcomes are kept."""
    network: Callable[[], Programmable]
    opened: Opened

    def digital(self) -> npt.NDArray[np.bool_]:
        """Whether the network is right on each image."""
        return self._right("digital", self.network)

    def on_chip(self, seed: int) -> npt.NDArray[np.bool_]:
        """Whether its chip of a seed is."""
        return self._right(str(seed), lambda: self.network().program(self.opened.profile, seed))

    def _right(self, what: str, make: Callable[[], Programmable | Chip]) -> npt.NDArray[np.bool_]:
        opened, description = self.opened, f"{self.name}, {what}"
        source = Normalised(opened.test, opened.scored.normalisation)
        size = opened.job.experiment.simulate.batch_size

        def predicted() -> pd.DataFrame:
            table = make().predict(source, description, batch_size=size, keep=_nothing)
            return table[["index", "correct"]]

        with progress(len(source), description):
            outcomes = table_at(self.folder / f"{what}.parquet", predicted)["correct"]
        return outcomes.to_numpy(bool)


def _nothing(logits: npt.NDArray[np.float32]) -> dict[str, Any]:
    """What is kept of the logits: the outcome says enough."""
    return {}


def try_all(
    opened: Opened, trainings: Sequence[Training], chips: range, folder: Path
) -> pd.DataFrame:
    """A row of `row_of` for every network and chip, the network before fine-tuning first.

    Args:
      opened: that network and the images.
      trainings: the networks, which are kept.
      chips: seeds of the chips, the same for every network.
      folder: where the outcomes of each network and chip are kept, and looked for.
    """
    rows = []
    original = None
    for variant, seed, tried in _tried(opened, trainings, folder):
        digital = tried.digital()
        original = digital if original is None else original
        for chip in chips:
            about = {"variant": variant, "seed": seed, "chip": chip}
            analog = tried.on_chip(chip)
            rows.append(
                row_of(about, digital, analog, original=original, vulnerable=opened.vulnerable)
            )
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def _tried(
    opened: Opened, trainings: Sequence[Training], folder: Path
) -> Iterator[tuple[str, int | None, _Tried]]:
    """Variant, training seed and network, one at a time."""
    scored = opened.scored
    common = {
        **scored.origin,
        "tried": key_of(opened.test.indices.tolist()),
        "profile": to_json(opened.profile),
        "calibration": scored.calibration if opened.profile.needs_calibration else None,
    }
    place = folder / f"{ORIGINAL}-{key_of({**common, 'network': None})}"
    yield ORIGINAL, None, _Tried(ORIGINAL, place, lambda: scored.network, opened)
    for one in trainings:
        key = key_of({**common, "network": one.decides})
        network = cache(lambda path=one.path: _kept(opened, path))
        place = folder / f"{one.variant}-{one.seed}-{key}"
        yield one.variant, one.seed, _Tried(one.name, place, network, opened)
