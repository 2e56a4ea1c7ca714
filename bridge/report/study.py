"""Which samples fail on analog chips, from a table of scores and one of predictions: the failures,
the rates by curvature, what predicts them, and a page of it all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.checks import require_confidence, require_count, require_resamples
from bridge.chips.profiles import PROFILES, Profile
from bridge.report.folds import FOLDS, POOLED
from bridge.report.source_images import class_names_of, pixels
from bridge.report.tables import failure_rates, formats, given, outcomes, predictors
from bridge.report.tables.compensation import (
    Beside,
    counterparts,
    is_uncompensated,
    settings_of,
    shown_beside,
)
from bridge.report.tables.profile_overlap import profile_overlap
from jaxcurv.data.adapters import as_source
from jaxcurv.data.sources import Source
from jaxcurv.extras import require

if TYPE_CHECKING:
    from bridge.report.page.contents import RunTables

_SHOWN = 60
"""The most vulnerable samples that a page shows."""

_CALLS = {
    "deciles.csv": "study.rates()",
    "predictors.csv": "study.predictors()",
    "vulnerable.csv": "study.failures()",
}
"""The calls that make what a page shows, by the name of its file."""


def study(
    scores: pd.DataFrame,
    predictions: pd.DataFrame,
    images: Any = None,
    *,
    fold: str = "test",
    profile: str | None = None,
    bins: int = 10,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> Study:
    """Joins scores and predictions; `Study` then has tables and a page of them.

        study = bridge.study(scores, predictions, images)
        study.failures()  # most fragile first
        study.report("report.html")

    >>> index = np.arange(20)
    >>> scores = pd.DataFrame({"index": index, "label": 0, "prediction": 0, "correct": True})
    >>> scores = scores.assign(curvature=index / 10, margin=20.0 - index)
    >>> predictions = pd.DataFrame({"index": index, "prediction": (index > 15).astype(int)})
    >>> found = study(scores, predictions, bins=2)
    >>> found.failures()[["index", "class", "curvature", "failed_share"]].head(2)
       index class  curvature  failed_share
    0     19     0        1.9           1.0
    1     18     0        1.8           1.0
    >>> found.rates()[["profile", "decile", "rate_of_correct"]]
             profile  decile  rate_of_correct
    0  measured chip       1              0.0
    1  measured chip       2              0.4

    Args:
        scores: a row a sample, as `bridge.score` or `jaxcurv.score_dataset` returns them: index,
            label, prediction, correct, curvature, margin, and any others; may have path and fold.
        predictions: a row a sample, chip, profile and time, as `bridge.simulate` returns them. Of
            any other chip, a real one too, index and prediction (the number of a class) suffice (a
            number that is none, such as -1 for no answer, counts as a wrong one);
            may have chip, profile, time (in seconds), correct, label, path and fold. A profile that
            was read at several times becomes one for each, such as "pcm at 3,600 s". Not seen is
            whether the chips have the weights that were scored (after training, score anew), and
            whether they ran on the images that were scored, where index and label agree, and path
            if both tables have it: as where the test images of each class are called, or counted,
            as the validation images are.
        images: the source of the images, for thumbnails and the names of classes; None where it is
            not at hand. Without it classes are called as the folders in which their files lie. A
            report refuses one whose labels are not those of the scores; images that were shuffled
            within their classes are not seen.
        fold: what the samples are, "train", "validation" or "test", where no table says so.
        profile: the profile that is shown where one is; None for the last one in `predictions`.
        bins: bins of equal size into which samples are sorted by curvature.
        confidence: confidence level of all intervals, between 0 and 1.
        resamples: bootstrap resamples for the intervals of predictors and overlap.

    Raises:
        ValueError: a column is missing, rows do not match, labels contradict each other, there are
            fewer samples than bins, or no such profile; says where, and what to do. Scored samples
            that no chip was run on are left out, with a warning unless `bridge.simulate` held as
            many out.
    """
    if fold not in FOLDS:
        raise ValueError(f"fold must be one of {', '.join(FOLDS)}; got {fold!r}")
    bins = require_count("bins", bins, 2)
    confidence, resamples = require_confidence(confidence), require_resamples(resamples)
    source = None if images is None else as_source(images, classes=False)
    scored, predicted = given.completed(scores, predictions, fold)
    given.require_bins(scored, bins)
    profiles = tuple(map(str, predicted["profile"].unique()))
    joined = outcomes.join(scored, predicted, profiles)
    folds = joined["fold"].unique()
    if profile is not None:
        outcomes.select(joined, profile=profile)
    return Study(
        joined=joined,
        fold="test" if "test" in folds else str(folds[0]),
        profile=profiles[-1] if profile is None else profile,
        class_names=given.class_names(scored, class_names_of(source)),
        images=source,
        costs=predictors.costs_table(given.costs(scores)),
        read_at=given.read_at(predictions),
        simulation=dict(predictions.attrs.get("simulation", {})),
        bins=bins,
        confidence=confidence,
        resamples=resamples,
    )


@dataclass(frozen=True, eq=False)
class Study:
    """Scores joined with what digital model and chips make of each sample; made by `study`.

    Attributes:
        joined: one row a profile, chip and sample: the scores, digital_prediction,
            digital_correct, analog_prediction, analog_correct, and failure (digital right, chip
            wrong).
        fold: the fold of the tables and sentences of one fold.
        profile: the profile of those of one profile.
        class_names: names of the classes by label; a class without one is called by its number.
        images: the source of the images, or None.
        costs: predictor and forward_passes, NaN where it is not known.
        read_at: seconds since programming at which all chips with a memory were read, or None.
        simulation: what `bridge.simulate` said of the predictions; empty for those of others.
        bins: bins into which samples are sorted.
        confidence: confidence level of the intervals.
        resamples: bootstrap resamples.
    """

    joined: pd.DataFrame
    fold: str
    profile: str
    class_names: Mapping[int, str]
    images: Source | None
    costs: pd.DataFrame
    read_at: float | None
    simulation: Mapping[str, Any]
    bins: int
    confidence: float
    resamples: int

    def failures(self, profile: str | None = None) -> pd.DataFrame:
        """The samples that fail on some chip, most fragile first: by the share of the chips, then
        by curvature.

        Args:
            profile: whose chips; None for the study's `profile`.

        Returns:
            index, path (where the scores have it), class (its name), curvature, failed_share (of
            the chips, in (0, 1]), margin (digital), label, and taken_for (the name of the class
            that the failing chips predict most often). Samples of the study's `fold` that the
            digital model gets right and some chip does not; and profile, which says whose chips.

        Raises:
            ValueError: there is no such profile; names those that there are.
        """
        profile = self.profile if profile is None else profile
        table = self._fragile(profile)
        table = table[table["failed_share"] > 0].reset_index(drop=True)
        table["class"] = table["label"].map(self._name)
        failed = self.joined["failure"] & (self.joined["profile"] == profile)
        wrong = self.joined[failed & (self.joined["fold"] == self.fold)]
        most = wrong.groupby("index")["analog_prediction"].agg(lambda these: these.mode().iloc[0])
        table["taken_for"] = table["index"].map(most).map(self._name)
        first = ["index", *(["path"] if "path" in table else []), "class", "curvature"]
        table["profile"] = profile
        return table[[*first, "failed_share", "margin", "label", "taken_for", "profile"]]

    def rates(self) -> pd.DataFrame:
        """How often samples fail, by curvature: `bridge.failure_table` of each fold and profile.

        Returns:
            fold, profile, decile (1 has the lowest curvature) and the columns of
            `bridge.failure_table`, among them rate_of_all and rate_of_correct (of the samples that
            the digital model gets right), mean over chips as fractions, with _low and _high.
        """
        return self._rates.copy()

    def predictors(self) -> pd.DataFrame:
        """Which score tells the samples that fail: `bridge.compare_predictors` of each fold and
        profile, among the digitally correct samples and among all.

        Returns:
            fold, profile, denominator ("correct" or "all"), predictor, auroc with auroc_low and
            auroc_high, the other columns of `bridge.compare_predictors`, and forward_passes. reason
            says why where something is undefined.
        """
        return self._predictors.copy()

    def report(self, path: str | os.PathLike[str], title: str = "Failures on analog chips") -> Path:
        """Writes one self-contained HTML page: the answer, tables, figures, the samples most likely
        to fail with their images.

        Needs matplotlib, jinja2 and rich, which come with `jaxcurv[experiments]`.

        Args:
            path: the file, NAME.html; its folder is made where it is missing.
            title: title of the page.

        Returns:
            `path`.

        Raises:
            ModuleNotFoundError: a package is missing; names the extra.
            ValueError: the path is of another kind, or the images are not those that were scored.
        """
        require("study.report", "experiments", ["matplotlib", "jinja2", "rich"])
        from bridge.report.page.contents import ReportContents
        from bridge.report.page.page import write_report
        from jaxcurv.data.images import encode_png

        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"the report is a page: give a file NAME.html, not {path}")
        tables = self._tables()
        assert tables.vulnerable is not None
        pictures = self._pictures(tables.vulnerable)
        thumbnails = [] if pictures is None else [encode_png(one) for one in pictures]
        with tempfile.TemporaryDirectory() as folder:
            contents = ReportContents(
                title=title,
                notes=self._notes(),
                settings=self._settings,
                stages=(),
                confidence=self.confidence,
                tables=tables,
                fold=self.fold,
                profile=self.profile,
                drift_seconds=self._drift_seconds,
                ideal_agreement=self._ideal_agreement(),
                beside=self._beside,
                uncompensated=is_uncompensated(settings_of(self.profile, self._simulated)),
                comparison=predictors.verdict(self._predictors, self.fold, self.profile),
                figures=self._draw(Path(folder), tables),
                thumbnails=thumbnails,
                commands=self._calls,
                of_run=False,
            )
            return write_report(path, contents)

    @cached_property
    def _rates(self) -> pd.DataFrame:
        return failure_rates.failure_tables(self.joined, bins=self.bins, confidence=self.confidence)

    @cached_property
    def _predictors(self) -> pd.DataFrame:
        return predictors.compare(self.joined, self.costs, bins=self.bins, **self._interval)

    @property
    def _interval(self) -> dict[str, Any]:
        return {"confidence": self.confidence, "resamples": self.resamples}

    def _name(self, label: int) -> str:
        return self.class_names.get(int(label), str(label))

    def _fragile(self, profile: str | None = None, count: int | None = None) -> pd.DataFrame:
        profile = self.profile if profile is None else profile
        outcomes.select(self.joined, profile=profile)
        return failure_rates.vulnerable(
            self.joined, None, fold=self.fold, profile=profile, count=count
        )

    @property
    def _drift_seconds(self) -> float | None:
        """`read_at`, where a sentence about phase-change memory may name it."""
        with_pcm = any("pcm" in name for name in self.joined["profile"].unique())
        return self.read_at if with_pcm else None

    @property
    def _settings(self) -> dict[str, Any]:
        """What `bridge.simulate` said, profiles in one line each."""
        if not self.simulation:
            return {}
        profiles = {
            name: self.simulation["profiles"][name] if one is None else repr(one)
            for name, one in self._simulated.items()
        }
        return {"simulation": {**self.simulation, "profiles": profiles}}

    @cached_property
    def _simulated(self) -> dict[str, Profile | None]:
        """The settings of simulated profiles by name; None where they cannot be read."""
        return given.simulated_profiles(self.simulation)

    @cached_property
    def _beside(self) -> Beside | None:
        """The profile to show beside the study's; a name of which nothing else is known is taken
        for bridge's profile of that name."""
        profiles = {**PROFILES, **self._simulated}
        return shown_beside(self.joined, profiles, profile=self.profile, fold=self.fold)

    @property
    def _calls(self) -> dict[str, str]:
        """`_CALLS`, and the call that makes compensated chips, where bridge has their profile."""
        name, _, _ = self.profile.partition(" at ")
        others = counterparts(name, PROFILES)
        if not others or self._simulated.get(name) != PROFILES[name]:
            return _CALLS
        return _CALLS | {"compensate": f'bridge.simulate(..., profiles=["{name}", "{others[0]}"])'}

    def _ideal_agreement(self) -> float | None:
        if "ideal" not in set(self.joined["profile"]):
            return None
        return outcomes.ideal_agreement(self.joined)

    def _tables(self) -> RunTables:
        """The tables of the page, with names in place of labels."""
        from bridge.report.page.contents import RunTables

        vulnerable = self._fragile(count=_SHOWN)
        vulnerable.insert(2, "class_name", vulnerable.pop("label").map(self._name))
        for column in ("digital_prediction", "analog_prediction"):
            vulnerable[column] = vulnerable[column].map(self._name)
        per_class = failure_rates.per_class(self.joined, self.fold, self.profile)
        per_class.insert(0, "class_name", per_class.pop("label").map(self._name))
        overlap, systematic = profile_overlap(self.joined, self.fold, **self._interval)
        return RunTables(
            deciles=self._rates,
            table_one=failure_rates.table_one(self.joined, self._rates),
            predictors=self._predictors,
            overlap=overlap,
            systematic=systematic,
            per_class=per_class,
            vulnerable=vulnerable,
        )

    def _draw(self, folder: Path, tables: RunTables) -> list[Path]:
        """The figures of the page."""
        from bridge.report.figures import overlap, paper, scores
        from bridge.report.figures.predictors import predictor_figure
        from bridge.report.figures.verdict import verdict_figure
        from bridge.report.figures.widths import SINGLE

        folds = (*FOLDS, POOLED)
        of_correct = folder / "figure_one_correct.png"
        where: dict[str, Any] = {"fold": self.fold, "profile": self.profile}
        drawn = [
            verdict_figure(
                self._rates, folder / "verdict.png", beside=self._beside, width=SINGLE, **where
            ),
            paper.figure_one(self._rates, folder / "figure_one.png", folds=folds),
            paper.figure_one(self._rates, of_correct, denominator="correct", folds=folds),
            predictor_figure(self._predictors, folder / "predictors.png", **where),
        ]
        count = min(8, self.joined.loc[self.joined["fold"] == self.fold, "index"].nunique() // 2)
        rows = paper.gallery_rows(self.joined, count=count, **where)
        if (pictures := self._pictures(rows)) is not None:
            labels = rows["label"].max() + 1
            names = [self._name(label) for label in range(labels)]
            drawn.append(paper.gallery(rows, pictures, names, folder / "gallery.png"))
        if 0 <= self.joined["curvature"].min() < self.joined["curvature"].max():
            histogram = folder / "score_histogram.png"
            drawn.append(scores.score_histogram(self.joined, histogram, **where))
        if tables.overlap is not None and len(tables.overlap):
            title = f"Profiles, {self.fold} fold"
            drawn.append(overlap.draw(tables.overlap, folder / "overlap.png", title))
        return drawn

    def _pictures(self, rows: pd.DataFrame) -> npt.NDArray[np.uint8] | None:
        """The images of rows of the study's fold; None where there are none, or no images."""
        if self.images is None or rows.empty:
            return None
        of_fold = self.joined[self.joined["fold"] == self.fold].drop_duplicates("index")
        labels = of_fold.set_index("index")["label"].loc[rows["index"]]
        return pixels(self.images, rows["index"].to_numpy(), labels.to_numpy())

    def _notes(self) -> list[str]:
        """What is to be said of samples and chips, a paragraph each."""
        samples = self.joined.groupby("fold", sort=False)["sample"].nunique()
        counted = ", ".join(
            f"{formats.number(count)} in the {fold} fold" for fold, count in samples.items()
        )
        chips = self.joined.groupby("profile", sort=False)["chip"].nunique()
        fewest, most = chips.min(), chips.max()
        each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        notes = [f"Samples: {counted}. Chips of each profile: {each}."]
        if self.read_at is not None:
            notes[0] += f" Read {formats.time(self.read_at)} after programming."
        said = self.simulation
        if count := said.get("calibration_images"):
            note = f"{formats.number(count)} other images set the converter ranges"
            if said["held_out"]:
                given_images = formats.number(said["images"])
                note += f": held out of the {given_images} images that were given, and in none of "
                note += "these tables"
            notes.append(f"{note}.")
        return notes
