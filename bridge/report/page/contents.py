"""What a report shows: the tables of a run, and what else is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables.compensation import Beside


@dataclass(frozen=True)
class RunTables:
    """The tables of one run. The section of a table that is None is left out of the report."""

    deciles: pd.DataFrame | None = None
    """As `failure_rates.failure_tables` returns it; None where there are no chips."""
    table_one: pd.DataFrame | None = None
    """As `failure_rates.table_one` returns it."""
    predictors: pd.DataFrame | None = None
    """As `predictors.compare` returns it; may have seconds_per_image too."""
    calibration: pd.DataFrame | None = None
    """The bins that `predictors.calibrate` returns."""
    calibration_errors: pd.DataFrame | None = None
    """The errors that `predictors.calibrate` returns; may have auroc too."""
    routing: pd.DataFrame | None = None
    """The curves that `routers.route` returns."""
    routing_choices: pd.DataFrame | None = None
    """The thresholds that `routers.route` returns; may have no rows."""
    routing_guarantees: pd.DataFrame | None = None
    """The thresholds that `guarantees.guarantee` returns; may have no rows."""
    routing_baselines: pd.DataFrame | None = None
    """The baselines that `routers.route` returns."""
    coverage: pd.DataFrame | None = None
    """Which products of the network tiles compute, as `bridge.coverage` returns it."""
    overlap: pd.DataFrame | None = None
    """Whether two profiles fail on the same samples, as `profile_overlap` returns it; may have no
    rows."""
    systematic: pd.DataFrame | None = None
    """On how many of its chips a profile's samples fail, as `profile_overlap` returns it; has no
    rows where no profile has several chips."""
    per_class: pd.DataFrame | None = None
    """As `failure_rates.per_class` returns it, with class_name."""
    vulnerable: pd.DataFrame | None = None
    """As `failure_rates.vulnerable` returns it, with class_name; predictions may be names."""
    accuracy: pd.DataFrame | None = None
    """As `digital.accuracy` returns it."""
    score_deciles: pd.DataFrame | None = None
    """As `digital.score_deciles` returns it."""
    score_costs: pd.DataFrame | None = None
    """As `digital.score_costs` returns it; may have seconds_per_image too."""
    highest: pd.DataFrame | None = None
    """As `digital.highest` returns it, with class_name; predictions may be names."""

    @property
    def listed(self) -> pd.DataFrame | None:
        """The table whose samples are shown with their images."""
        return self.highest if self.vulnerable is None else self.vulnerable


_COMMANDS = {
    study: f"python -m experiments {study} PRESET --out DIR" for study in ("drift", "remedies")
}


@dataclass(frozen=True)
class ReportContents:
    """Everything that one report is made from.

    Raises:
        ValueError: if there are thumbnails, but not one for each listed sample, or neither
            deciles nor score_deciles.
    """

    title: str
    """Title of the page, for instance model and data set."""
    settings: Mapping[str, Any]
    """What was run, by name; nested mappings become
    dotted names. The explanations use simulate and analyse.energy where they are there."""
    stages: Sequence[Mapping[str, Any]]
    """The record of each stage: name, seconds, device, versions (package -> version)."""
    confidence: float
    """Confidence level of every interval, between 0 and 1."""
    tables: RunTables
    notes: Sequence[str] = ()
    """What is to be said of the network and the images, a paragraph each."""
    fold: str = "test"
    """The fold of the answer and of the tables of one fold."""
    profile: str = FULL_PROFILE
    """The profile of the answer and of the tables of one profile."""
    drift_seconds: float | None = None
    """Seconds from programming to reading of the chips with PCM."""
    ideal_agreement: float | None = None
    """As `outcomes.ideal_agreement` returns it."""
    summary: str = ""
    """The answer where there are no chips, as `digital.summary` returns it."""
    beside: Beside | None = None
    """What `compensation.shown_beside` says of `profile`."""
    uncompensated: bool = False
    """Whether the chips of `profile` drift without compensation."""
    comparison: str = ""
    """What the predictors say in one sentence, as `predictors.verdict` returns it."""
    routing_summary: str = ""
    """What routing is worth in a sentence or two, as `routers.summary` returns it."""
    remedies: Sequence[str] = ()
    """What to do about failures, a sentence for each time after programming."""
    figures: Sequence[Path] = ()
    """PNG files to embed. The start of a name says which section a figure belongs to, see
    `pictures.KINDS`; others follow under their own names."""
    thumbnails: Sequence[bytes] = ()
    """PNG files as bytes, one for each row of `tables.listed`, or none."""
    drift: str = ""
    """How accuracy falls with drift, in a sentence."""
    commands: Mapping[str, str] = field(default_factory=lambda: _COMMANDS)
    """The command, or the call, that makes each table and figure, by the name of its file, such as
    "deciles.csv" or "gallery.png"; `drift` and `remedies` run these studies, `compensate` makes
    chips whose drift is compensated. DIR stands for the folder of the run."""
    reproduce: Sequence[str] = ()
    """Command lines that make the run again."""
    of_run: bool = True
    """Whether this is a run of the command line, whose page says which command fills a section.
    Else the sections without content are left out."""

    def __post_init__(self) -> None:
        if self.tables.deciles is None and self.tables.score_deciles is None:
            raise ValueError("a page needs deciles, or score_deciles where there are no chips")
        samples = 0 if self.tables.listed is None else len(self.tables.listed)
        if self.thumbnails and len(self.thumbnails) != samples:
            raise ValueError(
                f"{len(self.thumbnails)} thumbnails for {samples} listed samples; give one "
                "each, or none"
            )
