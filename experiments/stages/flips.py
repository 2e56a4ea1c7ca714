"""The physical predictor: the probability that a chip flips a prediction, without running a chip.

Two stages, for the first needs torch and the second is JAX's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from experiments.runs.descriptions import read_description, read_normalisation
from experiments.runs.files import read_parquet, write_parquet
from experiments.runs.job import Job, Outcome, load_data
from experiments.runs.networks import abstract_flax, load_flax, load_twin, require_classes
from experiments.runs.resume import table_at
from experiments.runs.samples import calibration_images, choose_folds, limited, read_small
from jaxcurv import data
from jaxcurv.progress import expect, progress
from jaxcurv.storage.files import write_whole

if TYPE_CHECKING:
    from flax import nnx

    import bridge
    from jaxcurv.flips import Moments

_FIRST_PROGRAMMING = 1_000_000  # seeds of sampled programmings begin here, those of chips at 0


def moments(job: Job) -> Outcome:
    """How far programmed weights are off, and what converters add to each sample's margin.

    Writes moments.safetensors: mean and variance of the weights' deviations, in Flax's layout, for
    each profile without a converter; and output_noise.parquet: the margin's variance from what is
    noisy at each operation.
    """
    from flax import nnx
    from safetensors.numpy import save_file

    import bridge

    settings = job.experiment.simulate
    twin, description = load_twin(job)
    model = abstract_flax(description)
    dataset = load_data(job)
    require_classes(dataset, description)
    normalisation = read_normalisation(description)
    profiles = bridge.chips.eight_profiles(
        settings.adc, settings.wnoise, settings.pcm, settings.clipping
    )
    arrays = {}
    exact = {"ideal"} if settings.clipping.type == "none" else set()
    uncertain = sorted({_weights_of(profile) for profile in profiles.values()} - exact)
    expect(len(uncertain) * job.experiment.flip.programmings, "chip")
    for name in uncertain:
        found = bridge.weight_moments(
            twin,
            profiles[name],
            chips=job.experiment.flip.programmings,
            seed=_FIRST_PROGRAMMING + job.experiment.seed,
        )
        for which in ("mean", "variance"):
            state_dict = bridge.chips.moment_state_dict(found, twin.state_dict(), which)
            state = nnx.state(bridge.from_torch(state_dict, model))
            for path, variable in nnx.to_flat_state(state):
                arrays[f"{name}/{which}/{_dotted(path)}"] = np.asarray(variable[...])
    chosen = choose_folds(dataset, job.experiment, {"train", *job.experiment.folds})
    calibration = calibration_images(chosen["train"], normalisation, job.experiment)
    folds = read_small(limited(chosen, job.experiment))
    tables = []
    noisy = sorted({_operations_of(profile) for profile in profiles.values()} - {"ideal"})
    expect(len(noisy) * sum(map(len, folds.values())))
    for name in noisy:
        for fold, samples in folds.items():
            table = bridge.output_noise(
                twin,
                profiles[name],
                data.Normalised(samples, normalisation),
                calibration=calibration,
                batch_size=settings.batch_size,
                description=f"output noise {name}, {fold}",
            ).to_pandas()
            tables.append(table.assign(fold=fold, noise=name))
    noise = pd.concat(tables, ignore_index=True)[["fold", "index", "noise", "variance"]]
    outputs = [
        write_whole(job.folder / "moments.safetensors", partial(save_file, arrays)),
        write_parquet(job.folder / "output_noise.parquet", noise),
    ]
    return Outcome(outputs, "cpu")


def flips(job: Job) -> Outcome:
    """Flip probabilities of every scored sample under every profile but the ideal one.

    To first order around the mean weights of a profile's chips, where the margin is that of the
    digital prediction. `unshifted` is the same around the digital weights, the mean left out.
    """
    import jax

    from bridge.chips.profiles import eight_profiles

    settings = job.experiment.simulate
    description = read_description(job.folder)
    dataset = load_data(job)
    require_classes(dataset, description)
    model = load_flax(job, description)
    noises, at_mean = _noises(model, job.folder / "moments.safetensors")
    profiles = eight_profiles(settings.adc, settings.wnoise, settings.pcm, settings.clipping)
    outputs = read_parquet(job.folder / "output_noise.parquet").set_index(["noise", "fold"])
    unfinished = job.own_folder("flips")
    tables = []
    chosen = limited(choose_folds(dataset, job.experiment, job.experiment.folds), job.experiment)
    folds = read_small(chosen)
    expect((1 + len(at_mean)) * sum(map(len, folds.values())))
    for fold, samples in folds.items():
        margins = partial(
            _margins, normalisation=read_normalisation(description), folder=unfinished, fold=fold
        )
        digital = margins("digital", model, samples, noises, of="prediction")
        predicted = data.Labelled(samples, digital["prediction"].to_numpy(), samples.indices)
        means = {
            name: margins(name, network, predicted, {name: noises[name]}, of="label")
            for name, network in at_mean.items()
        }
        for name, profile in profiles.items():
            if name != "ideal":
                of_operations = _operations_of(profile)
                noise = None
                if of_operations != "ideal":
                    noise = outputs.loc[(of_operations, fold)].set_index("index")["variance"]
                table = _probabilities(digital, means, _weights_of(profile), noise)
                tables.append(table.assign(fold=fold, profile=name))
    table = pd.concat(tables, ignore_index=True)
    columns = ["fold", "profile", "index", "margin", "shift", "variance"]
    columns += ["probability", "unshifted"]
    path = write_parquet(job.folder / "flips.parquet", table[columns])
    return Outcome([path], jax.devices()[0].device_kind, scratch=unfinished)


def _noises(model: nnx.Module, path: Path) -> tuple[dict[str, Moments], dict[str, nnx.Module]]:
    """The weights' noise without its mean, and the model at the mean weights, by profile."""
    from flax import nnx
    from safetensors.numpy import load_file

    from jaxcurv.flips import Moments

    arrays = load_file(path)
    graph, state = nnx.split(model)
    weights = nnx.to_flat_state(state)

    def mapped(change: Callable[[str, Any], Any]) -> nnx.State:
        return nnx.from_flat_state(
            [(path, one.replace(change(_dotted(path), one[...]))) for path, one in weights]
        )

    zeros = mapped(lambda path, weight: np.zeros(weight.shape, weight.dtype))

    def noise(name: str) -> Moments:
        return Moments(zeros, mapped(lambda path, weight: arrays[f"{name}/variance/{path}"]))

    def at_mean(name: str) -> nnx.Module:
        return nnx.merge(graph, mapped(lambda path, weight: weight + arrays[f"{name}/mean/{path}"]))

    names = sorted({name.split("/")[0] for name in arrays})
    return {name: noise(name) for name in names}, {name: at_mean(name) for name in names}


def _margins(
    name: str,
    network: nnx.Module,
    samples: data.Source,
    noises: Mapping[str, Moments],
    *,
    of: Literal["prediction", "label"],
    normalisation: data.Normalisation,
    folder: Path,
    fold: str,
) -> pd.DataFrame:
    """`jaxcurv.flips.margin_table` of a fold, made once."""
    from jaxcurv.flips import margin_table

    def made() -> pd.DataFrame:
        source = data.Normalised(samples, normalisation)
        return margin_table(
            network, source, noises=noises, of=of, description=f"{name}, {fold}"
        ).to_pandas()

    with progress(len(samples), f"{name}, {fold}"):
        return table_at(folder / f"{fold}-{name}.parquet", made)


def _probabilities(
    digital: pd.DataFrame,
    means: Mapping[str, pd.DataFrame],
    weights: str,
    output_noise: pd.Series | None,
) -> pd.DataFrame:
    """One profile's table.

    Args:
        digital: margins and variances around the digital weights.
        means: the same around the mean weights of each noise.
        weights: the profile's; exact where `means` does not have it.
        output_noise: variance by index, None for none.
    """
    from jaxcurv.gaussian_flips import gaussian_flip_probability

    margin = digital["margin"].to_numpy(np.float64)
    at_mean, variance, unshifted = margin, np.zeros(len(margin)), np.zeros(len(margin))
    if weights in means:
        at_mean = means[weights]["margin"].to_numpy(np.float64)
        variance = means[weights][f"{weights}_variance"].to_numpy(np.float64)
        unshifted = digital[f"{weights}_variance"].to_numpy(np.float64)
    added = 0.0
    if output_noise is not None:
        added = output_noise.loc[digital["index"]].to_numpy()
    return pd.DataFrame(
        {
            "index": digital["index"],
            "margin": margin.astype(np.float32),
            "shift": (at_mean - margin).astype(np.float32),
            "variance": (variance + added).astype(np.float32),
            "probability": gaussian_flip_probability(margin, at_mean - margin, variance + added),
            "unshifted": gaussian_flip_probability(
                margin, np.zeros(len(margin)), unshifted + added
            ),
        }
    )


def _weights_of(profile: bridge.Profile) -> str:
    """The profile of the same weights without converters; what the moments are named by."""
    return replace(profile, adc=None).name


def _operations_of(profile: bridge.Profile) -> str:
    """The profile of the same noise at each operation, and exact weights."""
    wnoise = profile.wnoise
    drawn = wnoise if wnoise is not None and wnoise.drawn == "per_mvm" else None
    return replace(profile, wnoise=drawn, memory=None).name


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))
