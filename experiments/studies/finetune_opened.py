"""What fine-tuning starts from: a run's network, its scored images and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.failures import deciles
from bridge.chips.profiles import Profile
from experiments.runs.job import Job
from experiments.runs.networks import abstract_flax, load_flax
from experiments.runs.samples import Samples
from experiments.settings.flags import Experiment
from experiments.studies.chip_settings import named_settings, title_of
from experiments.studies.finetune_variants import Variant, emphasised
from experiments.studies.scored import Scored, open_scored
from experiments.system.devices import warn_of_idle_accelerator
from experiments.system.environment import package_versions
from jaxcurv.data import subset
from jaxcurv.training.recipe import Recipe

if TYPE_CHECKING:
    from flax import nnx

PROFILE_FLAG = "--finetune.profile"


@dataclass(frozen=True)
class Opened:
    """A run's network, the images to fine-tune it on and those to try it on."""

    scored: Scored
    name: str
    """The setting of the chips."""
    profile: Profile
    noise: Profile
    """What weights get of it in training."""
    job: Job
    model: nnx.Module
    """The network, in evaluation mode."""
    indices: npt.NDArray[np.int64]
    """Indices of the scored training images."""
    vulnerability: Mapping[str, npt.NDArray[np.float64]]
    """Scores of these images by variant, the highest of the most vulnerable."""
    test: Samples
    """The test images on which networks are tried."""
    vulnerable: npt.NDArray[np.bool_]
    """Those in the highest decile of curvature."""
    recipe: Recipe
    """How it is fine-tuned, but for the learning rate."""
    versions: dict[str, str]

    @property
    def description(self) -> dict[str, Any]:
        """What the run says of its network."""
        return self.scored.source.description

    @cached_property
    def structure(self) -> nnx.Module:
        """The network's shapes without values, in evaluation mode."""
        model = abstract_flax(self.description)
        model.eval()
        return model

    @cached_property
    def calibration(self) -> np.ndarray | None:
        """Normalised images to calibrate ADC ranges on; None where the profile needs none."""
        return self.scored.source.calibration([self.profile])


def open_run(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None,
    *,
    profile: str,
    variants: tuple[Variant, ...],
    emphasis: float,
    batch_size: int | None,
    limit: int | None,
) -> Opened:
    """Reads a run's network, its scores and the images that they are of.

    Args:
      experiment: the run's.
      folder: the run's.
      data_dir: where data sets are; None for TFDS's default.
      profile, variants, emphasis, batch_size, limit: as `Finetune` has them.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    if experiment.model.factory is not None:
        raise ValueError(
            f"finetune trains the residual networks of --model.*, and {experiment.model.factory} "
            "is a network of your own: fine-tune it with jaxcurv.training.fine_tuning"
        )
    ((name, chips),) = named_settings((profile,), experiment.simulate, PROFILE_FLAG).items()
    noise = chips.of_weights
    if noise is None:
        named = experiment.simulate.every_profile.items()
        raise ValueError(
            f"{PROFILE_FLAG} {profile} has no noise of weights that is drawn once for each chip, "
            "which is what training takes of a profile: give "
            + ", ".join(one for one, found in named if found.of_weights is not None)
        )
    versions = package_versions(("jax", "flax", "optax", "torch", "safetensors"))
    scored = open_scored(experiment, folder, data_dir, profiles=(profile,), flag=PROFILE_FLAG)
    recipe = _recipe(experiment, batch_size)
    scores = scored.scores
    train = scores[scores["fold"] == "train"]
    if len(train) < max(recipe.batch_size, 10):
        raise ValueError(
            f"the run in {folder} has scored {len(train)} training images, which finetune trains "
            f"on, and a gradient step takes {recipe.batch_size}: "
            + (
                "run score with train among its --folds"
                if train.empty
                else "score more of them (--limit-train), or give a smaller --finetune.batch-size "
                "(at least ten images are needed)"
            )
        )
    vulnerability = _vulnerability(scored, train, variants, name, folder)
    for variant in variants:  # refuses an emphasis before any training
        emphasised(
            variant,
            vulnerability,
            train["index"].to_numpy(),
            emphasis=emphasis,
            seed=experiment.seed,
        )
    test = scores[scores["fold"] == "test"].reset_index(drop=True)
    chosen = subset(test["index"].to_numpy(), limit, experiment.data.split_seed)
    test = test.iloc[chosen]
    job = Job(experiment, folder, data_dir)
    warn_of_idle_accelerator()
    return Opened(
        scored=scored,
        name=name,
        profile=chips,
        noise=noise,
        job=job,
        model=load_flax(job, scored.source.description),
        indices=train["index"].to_numpy(),
        vulnerability=vulnerability,
        test=scored.folds["test"].take(chosen),
        vulnerable=deciles(test["curvature"].to_numpy(), test["index"].to_numpy()) == 10,
        recipe=recipe,
        versions={**scored.made_with["versions"], **versions},
    )


def _recipe(experiment: Experiment, batch_size: int | None) -> Recipe:
    """The run's recipe without what training alone has: epochs and checkpoints."""
    own = experiment.train
    recipe = Recipe(**{one.name: getattr(own, one.name) for one in fields(Recipe)})
    return replace(
        recipe,
        epochs=1,
        warmup_epochs=0.0,
        keep_every=None,
        batch_size=batch_size or own.batch_size,
    )


def _vulnerability(
    scored: Scored, train: pd.DataFrame, variants: tuple[Variant, ...], name: str, folder: Path
) -> dict[str, npt.NDArray[np.float64]]:
    """The training images' scores that the variants need, the highest of the most vulnerable."""
    found = {"curvature": train["curvature"], "margin": -train["margin"]}
    if "flip_probability" in variants:
        if name not in scored.flips:
            raise ValueError(
                f"{folder} has no flip probabilities of {title_of(name)}, as its devices are now: "
                f"run flips, give {PROFILE_FLAG} a profile and time that it has them of, or name "
                "the --finetune.variants without flip_probability"
            )
        found["flip_probability"] = scored.flips[name].loc[train.index]
    return {which: score.to_numpy(np.float64) for which, score in found.items()}
