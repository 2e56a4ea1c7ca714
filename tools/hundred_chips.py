"""A hundred chips in JAX of an archived network: the share of them on which each image fails.

`python -m tools.hundred_chips --data-dir DIR`, with CIFAR-100 in DIR, after `make setup`; leaves
hundred_chips.png, .svg, .pdf and .csv in hundred-chips/ beside the archived results. Finished chips
are kept in runs/hundred_chips and not computed again.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pandas as pd

import bridge
from bridge.chips.profiles import FULL_PROFILE, to_json
from bridge.report.figures.style import BLUE, GREY, STYLE, VERMILLION, new_figure, write_figure
from experiments.chips.opening import identity_of_network
from experiments.runs.descriptions import read_normalisation
from experiments.runs.files import read_parquet
from experiments.runs.job import Job
from experiments.runs.networks import load_twin
from experiments.runs.resume import key_of, table_at
from experiments.runs.samples import calibration_images, calibration_samples, choose_folds
from experiments.settings.presets import PRESETS
from jaxcurv import data, flip_probability
from jaxcurv.progress import progress

_PRESET = "cifar100_resnet18_small"


def outcomes(
    data_dir: Path | None, folder: Path, pieces: Path, chips: int, samples: int
) -> pd.DataFrame:
    """One row a test image: index, curvature, digital (whether the digital network is right),
    failing (the share of the chips that are wrong) and predicted (`flip_probability`).

    Args:
      data_dir: folder of the data sets.
      folder: archived results with weights.safetensors and scores.parquet.
      pieces: where each chip's outcomes are kept.
      chips: how many, of the keys 0, 1, ...
      samples: how many test images, the first ones.
    """
    job = Job(PRESETS[_PRESET].experiment, folder, data_dir)
    network, description = load_twin(job)
    dataset = data.load(job.experiment.data.name, data_dir)
    normalisation = read_normalisation(description)
    held = calibration_samples(dataset, job.experiment)
    images = calibration_images(held, normalisation, job.experiment)
    test = choose_folds(dataset, job.experiment, ("test",))["test"]
    source = data.Normalised(data.read(test, range(samples), description="read"), normalisation)

    logits_fn, params = bridge.to_jax(network, images[:4])
    profile = bridge.PROFILES[FULL_PROFILE]
    made = bridge.analog(logits_fn, params, profile, images)

    def of_chip(seed: int) -> pd.DataFrame:
        weights = made.program(params, jax.random.key(seed))
        table = bridge.jax_chips.predict(made, weights, source, description=f"chip {seed}")
        return table[["index", "correct"]]

    decides = [identity_of_network(job, description), to_json(profile), samples]
    place = pieces / key_of(decides)
    with progress(chips * samples, "chips"):
        tables = [
            table_at(place / f"{seed}.parquet", partial(of_chip, seed)) for seed in range(chips)
        ]
    failing = pd.concat(tables).groupby("index")["correct"].mean().rsub(1).rename("failing")
    moments = bridge.jax_chips.weight_moments(made)
    predicted = flip_probability(
        logits_fn,
        source,
        params=params,
        moments=moments,
        added_variance=bridge.jax_chips.output_noise(made, source),
    )
    scores = read_parquet(folder / "scores.parquet").query("fold == 'test'")
    table = scores[["index", "curvature", "correct"]].rename(columns={"correct": "digital"})
    table = table.merge(failing, on="index", validate="one_to_one")
    probability = predicted[["index", "probability"]].rename(columns={"probability": "predicted"})
    return table.merge(probability, on="index", validate="one_to_one")


def draw(table: pd.DataFrame, chips: int, path: Path) -> Path:
    """Digitally correct images: the share of chips that fail, by curvature and as predicted.

    Args:
      table: as `outcomes` gives it.
      chips: how many there were.
      path: the PNG file.
    """
    right = table[table["digital"]].sort_values("curvature")
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=7.0, height=2.8)
        left, beside = figure.subplots(1, 2)
        left.scatter(right["curvature"], 100 * right["failing"], s=5, color=BLUE, lw=0, alpha=0.6)
        smooth = right["failing"].rolling(max(len(right) // 12, 2), center=True).mean()
        left.plot(right["curvature"], 100 * smooth, color=VERMILLION, label="running mean")
        left.set_xscale("log")
        left.set_xlabel("Input loss curvature (Eq. 1)")
        left.set_ylabel(f"Chips that fail (% of {chips})")
        left.legend()
        beside.plot([0, 100], [0, 100], color=GREY, lw=0.8)
        beside.scatter(
            100 * right["predicted"], 100 * right["failing"], s=5, color=BLUE, lw=0, alpha=0.6
        )
        beside.set_xlabel("Flip probability, no chip simulated (%)")
        beside.set_ylabel(f"Chips that fail (% of {chips})")
        figure.suptitle(
            f"{len(right):,} digitally correct test images of CIFAR-100, {FULL_PROFILE}",
            fontsize=9,
        )
        return write_figure(figure, path, table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Computes what is missing and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets")
    parser.add_argument("--results", type=Path, default=Path("experiments/results"))
    parser.add_argument("--pieces", type=Path, default=Path("runs/hundred_chips"))
    parser.add_argument("--chips", type=int, default=100)
    parser.add_argument("--samples", type=int, default=1000, help="test images")
    given = parser.parse_args(arguments)
    table = outcomes(
        given.data_dir, given.results / _PRESET, given.pieces, given.chips, given.samples
    )
    out = given.results / _PRESET / "hundred-chips"
    out.mkdir(parents=True, exist_ok=True)
    path = draw(table, given.chips, out / "hundred_chips.png")
    right = table[table["digital"]]
    some = right["failing"].between(0.005, 0.995).mean()
    rho = right[["curvature", "predicted", "failing"]].corr("spearman")["failing"]
    error = np.abs(right["predicted"] - right["failing"]).mean()
    print(
        f"{path}: {len(right)} digitally correct images; {100 * some:.1f} % fail on some chips and "
        f"not on others; Spearman's rho with the share: curvature {rho['curvature']:.3f}, flip "
        f"probability {rho['predicted']:.3f}, of which the mean error is {error:.3f}"
    )


if __name__ == "__main__":
    main()
