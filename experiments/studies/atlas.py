"""On how many chips each image fails: the vulnerability atlas of a run's network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.chips.profiles import FULL_COMPENSATED, FULL_PROFILE, to_json
from bridge.report.figure_files import BESIDE
from bridge.report.tables.formats import with_interval
from experiments.runs.files import read_parquet, write_csv, write_parquet
from experiments.runs.resume import key_of
from experiments.runs.samples import positions_of
from experiments.settings.flags import Experiment
from experiments.studies import atlas_figures as figures
from experiments.studies.atlas_tables import (
    FEWEST_DECIDED,
    atlas_table,
    most_failing,
    summarise,
)
from experiments.studies.chip_settings import split_setting, title_of, words_of
from experiments.studies.opening import Study
from experiments.studies.published import Reference, read_cscores
from experiments.studies.scored import Scored, open_scored
from jaxcurv.data import Normalised, read
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json

_PROFILES_FLAG = "--atlas.profiles"

_LEVEL = 19
"""Effort of zstd: the table is written once."""


@dataclass(frozen=True)
class Atlas:
    """How likely each scored image is to fail: its failures over many simulated chips."""

    profiles: tuple[str, ...] = (f"{FULL_PROFILE}@20", f"{FULL_COMPENSATED}@3600")
    """Settings of the chips: a hardware profile, @ and the seconds after programming at which its
    memory is read, as in pcm_gdc@3600. Without @ they are those of --simulate.pcm.t-inference. The
    devices are those of --simulate.*."""
    chips: int = 100
    """Chips of each setting, with seeds --seed, --seed + 1 and so on, the same under every setting.
    Finished chips are kept: ask for more later. Shares of the variance of failure have intervals
    from three chips on."""
    cscores: str | None = None
    """File of published consistency scores, as --validate.cscores takes it, to stand beside. With
    `none` there is no such column."""
    gallery: int = 16
    """Images to show of each setting: those of the test fold that fail on most chips."""
    out: Path | None = None
    """Folder of the results; `none` is atlas/ in the run's folder."""

    def __post_init__(self) -> None:
        if not self.profiles:
            raise ValueError(f"{_PROFILES_FLAG} must be at least one; got none")
        for one in self.profiles:
            split_setting(one, _PROFILES_FLAG)
        if self.chips < 2 or self.gallery < 1:
            raise ValueError(
                "chips must be at least 2, to tell what is the image's from what is the chip's, "
                f"and gallery at least 1; got {self.chips} and {self.gallery}"
            )


def run(scored: Scored, experiment: Experiment, settings: Atlas, out: Path) -> None:
    """Counts on how many chips each image fails, and says how much of that is the image's own.

    Leaves atlas.parquet (a row an image; `attrs["columns"]` describes every column), columns.csv
    (the same descriptions), summary.csv (a row a setting and fold), atlas.png, .svg and .pdf with
    atlas.csv, always.png, .svg and .pdf with always.csv (the images that fail on most chips) and
    settings.json. The outcomes of each finished chip are kept in pieces/ and not computed again.
    """
    scores, references = scored.scores, {}
    if settings.cscores is not None:
        reference = read_cscores(Path(settings.cscores), "--atlas.cscores")
        scores = with_cscores(scores, reference)
        references = {"cscores": {"file": reference.path.name, "sha256": reference.digest}}
    seeds = range(experiment.seed, experiment.seed + settings.chips)
    confidence = experiment.analyse.confidence
    wrong = wrong_outcomes(scored, seeds, out / "pieces", experiment.simulate.batch_size)
    titles = {name: title_of(name) for name in scored.settings}
    words = {name: words_of(name) for name in scored.settings}
    table, described = atlas_table(scores, wrong, scored.flips, words)
    summary = summarise(table, wrong, confidence)
    made = {
        **scored.origin,
        **scored.made_with,
        "calibration": scored.calibration,
        "settings": {name: to_json(profile) for name, profile in scored.settings.items()},
        "seeds": list(seeds),
        "confidence": confidence,
        "bins": experiment.analyse.bins,
        **references,
    }
    title = (
        f"{experiment.data.title}, {experiment.model.title}: {len(seeds)} simulated chips of each "
        "setting"
    )
    attrs = {"title": title, "columns": described, "made": made}
    write_parquet(out / "atlas.parquet", table, level=_LEVEL, attrs=attrs)
    write_csv(
        out / "columns.csv",
        pd.DataFrame({"column": described.keys(), "description": described.values()}),
    )
    write_csv(out / "summary.csv", summary)
    bins = experiment.analyse.bins
    figures.draw(table, summary, titles, out / "atlas.png", title=title, bins=bins)
    drawn = _draw_gallery(scored, table, titles, settings.gallery, out / "always.png")
    write_json(out / "settings.json", made)
    show(summary, titles)
    print(
        f"{out / 'atlas.parquet'} ({len(table):,} images), columns.csv, summary.csv, atlas.png"
        + (" and always.png" if drawn else "; no test image fails on any chip: no gallery")
    )


def with_cscores(scores: pd.DataFrame, reference: Reference) -> pd.DataFrame:
    """A run's scores with the column `cscore`, float64, NaN for images of the official test split.

    Raises:
      ValueError: the reference is of another data set.
    """
    trained = scores["fold"].isin(["train", "validation"])
    rows = scores[trained]
    cscores = reference.at(rows["index"].to_numpy(), rows["label"].to_numpy())
    return scores.assign(cscore=pd.Series(cscores, rows.index))


def wrong_outcomes(
    scored: Scored, seeds: range, folder: Path, batch_size: int
) -> dict[str, NDArray[np.bool_]]:
    """For each setting whether each chip is wrong, bool [chips, images].

    Args:
      scored: the network, the settings and the images.
      seeds: the chips.
      folder: where the outcomes of each finished chip are kept, and looked for.
      batch_size: images at once.
    """
    count = len(scored.scores)
    network, profiles = scored.network, scored.settings
    places = {}
    for name, profile in profiles.items():
        decides = {**scored.origin, "profile": to_json(profile)}
        if profile.needs_calibration:
            decides["calibration"] = scored.calibration
        places[name] = folder / f"{name}-{key_of(decides)}"
    found: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in profiles}
    with progress(len(seeds) * len(profiles) * count, "atlas"):
        at_once = min(network.at_once(profile, batch_size) for profile in profiles.values())
        for first in range(0, len(seeds), at_once):
            group = seeds[first : first + at_once]
            for name in profiles:
                paths = {seed: places[name] / f"{seed}.parquet" for seed in group}
                missing = [seed for seed, path in paths.items() if not path.exists()]
                with progress(len(group) * count, f"{name}, chip {group[0]}"):
                    made = _tried(scored, name, missing, batch_size) if missing else []
                    for seed, table in zip(missing, made, strict=True):
                        write_parquet(paths[seed], table)
                found[name] += [
                    ~read_parquet(path)["correct"].to_numpy(bool) for path in paths.values()
                ]
    return {name: np.stack(outcomes) for name, outcomes in found.items()}


def _tried(scored: Scored, name: str, seeds: Sequence[int], batch_size: int) -> list[pd.DataFrame]:
    """For each chip fold, index and correct of every image; each is programmed once."""
    chips = [scored.network.program(scored.settings[name], seed) for seed in seeds]
    outcomes: list[list[pd.DataFrame]] = [[] for _ in seeds]
    for fold, samples in scored.folds.items():
        tables = scored.network.predict_chips(
            chips,
            Normalised(samples, scored.normalisation),
            f"{name}, {fold}",
            batch_size=batch_size,
            keep=_nothing,
        )
        for of_chip, table in zip(outcomes, tables, strict=True):
            of_chip.append(table[["index", "correct"]].assign(fold=fold))
    return [
        pd.concat(of_chip, ignore_index=True)[["fold", "index", "correct"]] for of_chip in outcomes
    ]


def _nothing(logits: NDArray[np.float32]) -> dict[str, Any]:
    """What is kept of the logits: the outcome says enough."""
    return {}


def _draw_gallery(
    scored: Scored, table: pd.DataFrame, titles: Mapping[str, str], count: int, path: Path
) -> bool:
    """Draws the test images that fail on most chips; says whether there are any."""
    rows = most_failing(table, list(titles), count)
    if rows.empty:
        for kind in (".png", *BESIDE):  # of an earlier atlas
            with suppress(FileNotFoundError):
                path.with_suffix(kind).unlink()
        return False
    test = scored.folds["test"]
    indices = table.loc[table["fold"] == "test", "index"].to_numpy()
    # An image may fail under several settings.
    places, shown_at = np.unique(positions_of(indices, rows["index"]), return_inverse=True)
    images = read(test, places, description="read shown images").images[shown_at]
    right = table[(table["fold"] == "test") & table["correct"]]
    headings = {}
    for name, title in titles.items():
        always = int((right[f"failures_{name}"] == right["chips"]).sum())
        shown_here = int((rows["setting"] == name).sum())
        which = "of largest margin" if always > shown_here else "that fail on most chips"
        headings[name] = (
            f"{title}: {always:,} of {len(right):,} digitally correct test images fail on all "
            f"{rows['chips'].iloc[0]} chips; shown: {shown_here} {which}"
        )
    figures.gallery(rows, images, scored.class_names, headings, path)
    return True


def show(summary: pd.DataFrame, titles: Mapping[str, str]) -> None:
    """Prints for each setting a row a fold: how many fail, and whose the failures are."""
    console = Console(highlight=False)
    for name, rows in summary.groupby("setting", sort=False):
        printed = Table(
            title=f"{titles[str(name)]}: failures over {rows['chips'].iloc[0]} chips",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        printed.add_column("fold", no_wrap=True)
        for column in ("failures", "never", "always", "image", "chip", "rest"):
            printed.add_column(column, justify="right", no_wrap=True)
        for row in rows.to_dict("records"):
            printed.add_row(
                row["fold"],
                _interval(row, "failure_rate"),
                *(f"{100 * row[column]:.1f}" for column in ("never_fail", "always_fail")),
                *(_interval(row, f"{part}_share", digits=0) for part in ("image", "chip")),
                "-" if np.isnan(row["rest_share"]) else f"{100 * row['rest_share']:.0f}",
            )
        console.print(printed)
    print(
        "Failures, and images that never and always fail: % of the digitally correct images. "
        "Image, chip,\nrest: % of the variance of failure that is the image's own, the chip's own, "
        "and of the pair of both.\nIntervals are for other images on other chips of this network; "
        f"those of image and\nchip take three chips, {FEWEST_DECIDED} images that fail on some, "
        "and as many that do not fail on some."
    )


def _interval(row: Mapping[str, Any], name: str, digits: int = 1) -> str:
    value, low, high = (100 * row[name + end] for end in ("", "_low", "_high"))
    return with_interval(value, low, high, f".{digits}f")


STUDY = Study(
    "atlas",
    Atlas,
    partial(open_scored, flag=_PROFILES_FLAG),
    run,
    opened_with=("profiles",),
    of=("train", "score", "export"),
)
