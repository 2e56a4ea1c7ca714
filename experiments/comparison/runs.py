"""The finished runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from bridge.report.folds import Fold
from bridge.report.tables import outcomes
from experiments.runs.files import read_parquet
from experiments.runs.records import read_record, read_records, recorded_settings
from experiments.settings.presets import flag_name
from jaxcurv.nested import flatten

_SCORES, _PREDICTIONS = "scores.parquet", "predictions.parquet"


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
      name: what it is called: the folder's name, or its path where another has that name.
      folder: its folder.
      settings: every setting that made its results, by dotted name.
      versions: package and version of each stage that finished.
      weights: hash of the weights that were scored; None where no record has one.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)
    weights: str | None = None

    @property
    def data(self) -> str:
        """Name of the data set."""
        return str(self.settings["data.name"])

    @property
    def has_chips(self) -> bool:
        """Whether chips were simulated."""
        return (self.folder / _PREDICTIONS).exists()

    def joined(self, fold: Fold) -> pd.DataFrame:
        """One row a profile, chip and sample of the fold, as `outcomes.join` returns it; without
        chips one row a sample, as `outcomes.digital_outcomes` does.

        Raises:
          ValueError: the fold was not scored, or a table is damaged.
        """
        scores = read_parquet(self.folder / _SCORES)
        mine = scores[scores["fold"] == fold]
        if mine.empty:
            known = ", ".join(scores["fold"].unique())
            raise ValueError(f"{self.folder} has no scores of the {fold} fold: give one of {known}")
        if not self.has_chips:
            return outcomes.digital_outcomes(mine)
        predictions = read_parquet(self.folder / _PREDICTIONS)
        return outcomes.join(mine, predictions[predictions["fold"] == fold])


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in some folders, which may be archived ones.

    Raises:
      FileNotFoundError: a folder is not there, or holds no finished analysis.
      ValueError: fewer than two folders, or one twice.
    """
    if len(folders) < 2:
        raise ValueError(
            "compare needs two runs or more: compare RUN RUN ..., such as compare runs/digits "
            "runs/digits_wide"
        )
    resolved = [one.resolve() for one in folders]
    if twice := [
        one for one, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1
    ]:
        raise ValueError(f"{twice[0]} is given twice: name each run once")
    names = [path.name for path in resolved]
    return [
        _open(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def _open(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give the folder of a finished run")
    lacking = [] if read_record(folder, "analyse") else ["stages/analyse.json"]
    lacking += [one for one in (_SCORES,) if not (folder / one).exists()]
    if not lacking and read_record(folder, "simulate") and not (folder / _PREDICTIONS).exists():
        lacking = [_PREDICTIONS]
    if lacking:
        raise FileNotFoundError(
            f"no finished analysis in {folder} (no {lacking[0]}): run it to the end with python -m "
            "experiments run, or name another folder"
        )
    versions: dict[str, str] = {}
    for record in read_records(folder):
        versions |= record["versions"]
    return Run(
        name,
        folder,
        {name: _plain(value) for name, value in flatten(recorded_settings(folder))},
        versions,
        _weights(folder),
    )


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def _weights(folder: Path) -> str | None:
    """The hash of the network's weights: those exported, else those of the scores' checkpoint."""
    if record := read_record(folder, "export"):
        return str(record["outputs"]["weights.safetensors"])
    record = read_record(folder, "score")
    found = {} if record is None else record["inputs"]
    return next((one for name, one in found.items() if name.startswith("checkpoints/")), None)


NOT_SET = "-"
"""Stands for a setting that a run's records do not tell."""


def differing_settings(runs: Sequence[Run]) -> pd.DataFrame:
    """The settings that are not the same in all runs.

    Returns:
      One row a setting: setting (its flag, or "version of PACKAGE"), and a column for each run by
      its name, with the value as the command line takes it, `NOT_SET` where it has none.
    """
    rows = []
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        values = [run.settings.get(name, NOT_SET) for run in runs]
        if any(value != values[0] for value in values):
            rows.append([flag_name(name), *values])
    for name in dict.fromkeys(name for run in runs for name in run.versions):
        values = [run.versions.get(name, NOT_SET) for run in runs]
        if len(set(values) - {NOT_SET}) > 1:
            rows.append([f"version of {name}", *values])
    return pd.DataFrame(rows, columns=["setting", *(run.name for run in runs)], dtype=object)
