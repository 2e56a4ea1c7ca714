"""What remedies are tried on: a run's network, the images, and what the run knows of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bridge.chips.profiles import Profile
from bridge.report.folds import Fold
from bridge.report.tables.routers import ROUTERS, STUDENT
from experiments.chips.protocol import Programmable
from experiments.runs.files import read_parquet, sha256
from experiments.runs.records import read_record
from experiments.runs.resume import key_of
from experiments.settings.flags import Experiment
from experiments.studies import remedies_deciles
from experiments.studies.exported import open_network_for
from experiments.studies.finetuned import tuned_network
from experiments.studies.opening import read_scored
from experiments.studies.remedies_chips import OWN
from experiments.studies.remedies_tables import Passes, Score
from jaxcurv.data import Normalised
from jaxcurv.storage.checksums import read_json

_CURVATURE = ROUTERS["curvature, known"].column
"""Column of the curvature that may be known before an image comes to a chip: it sees no label."""


@dataclass(frozen=True)
class Opened:
    """A run's network and the images to try remedies on."""

    networks: Mapping[str, Programmable]
    """The run's network under OWN, and a fine-tuned one under its hash."""
    profile: Profile
    folds: Mapping[str, Normalised] = field(repr=False)
    """Images: test, validation and measured."""
    chosen_on: Fold
    """The run's fold that the validation images are of; of the test fold where it has no other."""
    scores: Mapping[str, Score] = field(repr=False)
    """Those of the test and validation images that are there before a chip runs, by name."""
    curvature: NDArray[np.float64] | None = field(repr=False)
    """That of the test images, in their order; None where the run has not scored all of them."""
    seeds: range
    """The chips."""
    origin: dict[str, Any]
    """What decides the predictions besides profile and seed, as JSON holds it."""
    made_with: dict[str, Any]


def open_remedies(
    experiment: Experiment,
    folder: Path,
    data_dir: Path | None,
    *,
    profile: str,
    limit: int | None,
    validation_limit: int | None,
    measured: int,
    first: int | None,
    chips: int,
    tuned: str | None,
) -> Opened:
    """Reads a run's network, the images and what the run knows of them.

    Raises:
      ValueError, OSError, ModuleNotFoundError: the work cannot start.
    """
    settings = experiment.simulate
    network, versions = open_network_for(experiment, folder, data_dir)
    images = network.images
    held_out: Fold = "validation"
    if images.has_validation:
        test, validation = images.some("test", limit), images.some(held_out, validation_limit)
    else:  # it was trained on all of the training split
        held_out = "test"
        test, validation = images.test_in_two(limit, validation_limit)
    folds = {"test": test, "validation": validation, "measured": images.calibrating(measured)}
    chosen = settings.every_profile[profile]
    begin = experiment.seed if first is None else first
    seeds = range(begin, begin + chips)
    calibration = network.calibration([chosen])
    programmable = network.programming(images.dataset, calibration)
    networks, tuning = {OWN: programmable}, None
    if tuned is not None:
        made, header = tuned_network(experiment, network, Path(tuned), calibration)
        digest = sha256(Path(tuned))
        networks[digest] = made
        tuning = {"weights_sha256": digest, "variant": header["variant"], **header["finetune"]}
    scores = _scores(folder)
    return Opened(
        networks,
        chosen,
        folds,
        held_out,
        _stored(
            scores,
            folder / "student",
            network.identity,
            seeds,
            {"test": ("test", test), "validation": (held_out, validation)},
        ),
        _curvature(scores, test),
        seeds,
        {
            **network.origin,
            "images": {fold: key_of(images.indices.tolist()) for fold, images in folds.items()},
            "calibration": settings.adc_calibration if chosen.needs_calibration else None,
            "engine": settings.engine,
            "stream": settings.stream,
        },
        {"device": programmable.device, "versions": versions, "tuned": tuning},
    )


def _curvature(scores: pd.DataFrame | None, test: Normalised) -> NDArray[np.float64] | None:
    """The curvature of test images by which the paper bins them, if the run has that of each."""
    if scores is None:
        return None
    table = scores.query("fold == 'test'").set_index("index")
    values = table["curvature"].reindex(test.indices).to_numpy(np.float64)
    return values if np.isfinite(values).all() and len(values) >= remedies_deciles.BINS else None


def _scores(folder: Path) -> pd.DataFrame | None:
    """The scores of a run, a row a sample; None where it has none.

    Raises:
      ValueError, FileNotFoundError: they are of another network.
    """
    if read_record(folder, "score") is None or not (folder / "scores.parquet").exists():
        return None
    read_scored(folder)
    return read_parquet(folder / "scores.parquet")


def _stored(
    table: pd.DataFrame | None,
    student: Path,
    identity: Any,
    seeds: range,
    images: Mapping[str, tuple[Fold, Normalised]],
) -> dict[str, Score]:
    """The run's scores that tell an image before it comes to a chip, and that all of these have.

    They are stored for known images, or a student's, which costs a little of a digital pass.

    Args:
      table: the run's scores.
      student: folder of the run's student, if it has one.
      identity: of the network, as `identity_of_network` tells it.
      seeds: the chips that a student must not have been fitted on.
      images: what the scores are of, with the fold of the run that they are from.
    """
    if table is None:
        return {}
    columns, passes = {"curvature": _CURVATURE}, {"curvature": 0.0}
    if (student / "settings.json").exists() and (student / "student.parquet").exists():
        made = read_json(student / "settings.json")
        if known := set(made["fitted_on"]) & set(seeds):
            print(
                f"the student was fitted on {len(known)} of these {len(seeds)} chips and is left "
                f"out: give --remedies.first {max(made['fitted_on']) + 1}",
                file=sys.stderr,
            )
        elif made["weights_sha256"] == identity:
            scores = read_parquet(student / "student.parquet")
            table = table.merge(scores, on=["fold", "index"], how="left")
            columns[STUDENT], passes[STUDENT] = STUDENT, made["student_macs"] / made["macs"]
    found = {}
    for name, cost in passes.items():
        values = {
            which: table[table["fold"] == fold]
            .set_index("index")[columns[name]]
            .reindex(some.indices)
            .to_numpy(np.float64)[None]
            for which, (fold, some) in images.items()
        }
        if all(np.isfinite(some).all() for some in values.values()):
            found[name] = Score(values, before=True, passes=Passes(0.0, cost))
    return found
