"""The physical predictor: the probability that a chip flips a prediction, without running a chip.

Two stages, for the first is AIHWKit's work in torch, or that of the chips in JAX, and the second
JAX's alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bridge.chips.profiles import Profile
from experiments.chips.opening import open_network
from experiments.runs.descriptions import read_description, read_normalisation
from experiments.runs.files import read_parquet, write_parquet
from experiments.runs.frameworks import in_jax
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import load_model, require_classes
from experiments.runs.resume import table_at
from experiments.runs.samples import (
    calibration_images,
    calibration_samples,
    read_small,
    scored_samples,
)
from jaxcurv import data
from jaxcurv.progress import expect
from jaxcurv.storage.files import write_whole

if TYPE_CHECKING:
    from jaxcurv.margins import Moments


def moments(job: Job) -> Outcome:
    """How far programmed weights are off, and what converters add to each sample's margin.

    Writes moments.safetensors: mean and variance of the weights' deviations, as the model in JAX
    names and lays them out, for each profile without a converter; and output_noise.parquet: the
    margin's variance from what is noisy at each operation.
    """
    from safetensors.numpy import save_file

    settings = job.experiment.simulate
    description, programming = open_network(job)
    dataset = load_data(job)
    require_classes(dataset, description)
    normalisation = read_normalisation(description)
    held = calibration_samples(dataset, job.experiment)
    network = programming(dataset, calibration_images(held, normalisation, job.experiment))
    profiles = settings.chosen_profiles
    arrays: dict[str, np.ndarray] = {}
    exact = {"ideal"} if settings.clipping.type == "none" else set()
    weights = dict(_weights_of(name, profile) for name, profile in profiles.items())
    for name in sorted(weights.keys() - exact):
        found = network.weight_moments(weights[name])
        arrays |= {f"{name}/{weight}": array for weight, array in found.items()}
    folds = read_small(scored_samples(dataset, job.experiment))
    tables = []
    operations = dict(_operations_of(name, profile) for name, profile in profiles.items())
    noisy = sorted(operations.keys() - {"ideal"})
    expect(len(noisy) * sum(map(len, folds.values())))
    for name in noisy:
        for fold, samples in folds.items():
            table = network.output_noise(
                operations[name],
                data.Normalised(samples, normalisation),
                batch_size=settings.batch_size,
                description=f"output noise {name}, {fold}",
            )
            tables.append(table.assign(fold=fold, noise=name))
    noise = pd.concat(tables, ignore_index=True)[["fold", "index", "noise", "variance"]]
    outputs = [
        write_whole(job.folder / "moments.safetensors", partial(save_file, arrays)),
        write_parquet(job.folder / "output_noise.parquet", noise),
    ]
    return Outcome(outputs, network.device if in_jax(job.experiment) else "cpu")


def flips(job: Job) -> Outcome:
    """Flip probabilities of every scored sample under every profile but the ideal one.

    `unshifted` is the probability around the digital weights, the mean deviation left out.
    """
    import jax

    from jaxcurv.engine.model import functional
    from jaxcurv.flips import flip_probability

    settings = job.experiment.simulate
    description = read_description(job.folder)
    dataset = load_data(job)
    require_classes(dataset, description)
    function, weights = functional(*load_model(job, description, dataset))
    of_weights = _moments(weights, job.folder / "moments.safetensors")
    profiles = {name: one for name, one in settings.chosen_profiles.items() if name != "ideal"}
    moments = {
        name: of_weights.get(_weights_of(name, profile)[0]) for name, profile in profiles.items()
    }
    operations = {name: _operations_of(name, profile)[0] for name, profile in profiles.items()}
    outputs = read_parquet(job.folder / "output_noise.parquet")
    unfinished = job.own_folder("flips")
    normalisation = read_normalisation(description)
    folds = read_small(scored_samples(dataset, job.experiment))
    expect((1 + len(of_weights)) * sum(map(len, folds.values())))
    tables = []
    for fold, samples in folds.items():
        here = outputs[outputs["fold"] == fold]

        def once(name: str, make: Callable[[], pd.DataFrame], fold: str = fold) -> pd.DataFrame:
            return table_at(unfinished / f"{fold}-{name}.parquet", make)

        table = flip_probability(
            function,
            data.Normalised(samples, normalisation),
            params=weights,
            moments=moments,
            added_variance={
                name: here[here["noise"] == noise]
                for name, noise in operations.items()
                if noise != "ideal"
            },
            unshifted=True,
            description=fold,
            once=once,
        )
        tables.append(table.rename(columns={"noise": "profile"}).assign(fold=fold))
    columns = ["fold", "profile", "index", "margin", "shift", "variance"]
    columns += ["probability", "unshifted"]
    types = dict.fromkeys(("margin", "shift", "variance"), np.float32)
    table = pd.concat(tables, ignore_index=True)[columns].astype(types)
    path = write_parquet(job.folder / "flips.parquet", table)
    return Outcome([path], jax.devices()[0].device_kind, scratch=unfinished)


def _moments(weights: Any, path: Path) -> dict[str, Moments]:
    """The moments of the model's weights, by the profile that has them; 0 where none are told."""
    import jax
    from safetensors.numpy import load_file

    from bridge.jax_chips.chips import paths
    from jaxcurv.margins import Moments

    arrays = load_file(path)
    leaves, treedef = jax.tree.flatten(weights)
    names = paths(weights)
    told = {name.split("/", 2)[2] for name in arrays}
    if unknown := sorted(told - set(names)):
        raise ValueError(
            f"{path} has moments of weights that the network does not have, such as {unknown[0]}: "
            "run moments again"
        )

    def tree(prefix: str) -> Any:
        zeros = (np.zeros(np.shape(leaf), np.float32) for leaf in leaves)
        found = [
            arrays.get(f"{prefix}/{name}", zero) for name, zero in zip(names, zeros, strict=True)
        ]
        return jax.tree.unflatten(treedef, found)

    profiles = sorted({name.split("/")[0] for name in arrays})
    return {name: Moments(tree(f"{name}/mean"), tree(f"{name}/variance")) for name in profiles}


def _weights_of(name: str, profile: Profile) -> tuple[str, Profile]:
    """The profile of the same weights, without what is drawn or quantised at each operation; by its
    name."""
    operations = profile.noise_of_operations is not None
    left_out = ("adc", "wnoise") if operations else ("adc",)
    parts = [part for part in name.split("+") if not part.startswith(left_out)]
    wnoise = None if operations else profile.wnoise
    return "+".join(parts) or "ideal", replace(profile, adc=None, wnoise=wnoise)


def _operations_of(name: str, profile: Profile) -> tuple[str, Profile]:
    """The profile of the same noise at each operation, and exact weights; by its name."""
    kept = ("adc", "wnoise") if profile.noise_of_operations else ("adc",)
    parts = [part for part in name.split("+") if part.startswith(kept)]
    exact = replace(profile, wnoise=profile.noise_of_operations, memory=None)
    return "+".join(parts) or "ideal", exact
