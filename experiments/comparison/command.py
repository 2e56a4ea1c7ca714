"""The command `compare`: finished runs beside the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.report.folds import Fold
from bridge.report.tables.formats import with_interval
from experiments.comparison.results import Pairing, compare_results, pairing
from experiments.comparison.runs import NOT_SET, Run, differing_settings, open_runs
from experiments.runs.files import require_writable, write_csv
from experiments.settings.values import positional, shown
from experiments.system.errors import at_work

_LONG = 24
"""Characters of a setting beyond which its end is left out."""


@dataclass(frozen=True)
class Compare:
    """Which settings of finished runs differ, and by how much their results moved: each run less
    the first one, with intervals for other samples on other chips."""

    runs: tuple[Path, ...] = field(default=(), metadata=positional("RUN"))
    """Folders of finished runs, or archived ones such as experiments/results/NAME, two or more."""
    fold: Fold = "test"
    """Fold whose samples are compared."""
    confidence: float = 0.95
    """Confidence level of the intervals, between 0 and 1."""
    csv: Path | None = None
    """File for the results as a table, NAME.csv; `none` writes none."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1; got {self.confidence}")
        if self.csv is not None and self.csv.suffix != ".csv":
            raise ValueError(f"--csv needs a file NAME.csv; got {self.csv}")


def compare(options: Compare) -> None:
    """Prints the settings that differ and the results beside the first run's.

    Raises:
      FileNotFoundError: a folder is not there, or holds no finished analysis.
      ValueError: fewer than two runs, one twice, a fold that was not scored, or runs of other
        images under one name.
      OSError: the file's folder cannot be written.
      WorkFailed: what failed afterwards.
    """
    runs = open_runs(options.runs)
    if options.csv is not None:
        require_writable(options.csv.parent, "--csv")
    first, *others = runs
    rows = [one.joined(options.fold) for one in runs]
    pairs = [
        pairing(one, first, joined, rows[0]) for one, joined in zip(others, rows[1:], strict=True)
    ]
    with at_work():
        show_settings(runs, differing_settings(runs))
        tables = []
        for one, joined, common in zip(others, rows[1:], pairs, strict=True):
            table = compare_results(
                one,
                first,
                joined,
                rows[0],
                common,
                fold=options.fold,
                confidence=options.confidence,
            )
            show_results(table, common, options.confidence)
            tables.append(table)
        if options.csv is not None:
            print(write_csv(options.csv, pd.concat(tables, ignore_index=True)))


def show_settings(runs: Sequence[Run], table: pd.DataFrame) -> None:
    """Prints the settings that differ, a column a run, and whether the weights do."""
    console = Console(highlight=False)
    if table.empty:
        print("No recorded setting differs.")
    else:
        lacking = (table == NOT_SET).to_numpy().any()
        printed = Table(
            title="Settings that differ",
            caption=f"{NOT_SET}: not recorded." if lacking else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        printed.add_column("setting")
        for run in runs:
            printed.add_column(run.name, overflow="fold")
        for _, *values in table.itertuples():
            setting, *of_runs = values
            printed.add_row(setting, *map(_shown, of_runs))
        console.print(printed)
    weights = {run.weights for run in runs}
    if None not in weights:
        print(
            "All networks have the same weights."
            if len(weights) == 1
            else "The networks have other weights."
        )


def _shown(value: Any) -> str:
    words = value if isinstance(value, str) else shown(value)
    return words if len(words) <= _LONG else f"{words[: _LONG - 1]}…"


def show_results(table: pd.DataFrame, common: Pairing, confidence: float) -> None:
    """Prints the results of one run less the first one's, in percent but for AUROC."""
    row = table.iloc[0]
    printed = Table(
        title=f"{row['run']} less {row['reference']}, {row['fold']} fold",
        caption=_caption(table, common, confidence),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name, justify in (
        ("profile", "left"),
        ("result", "left"),
        ("first", "right"),
        ("this", "right"),
        ("difference", "right"),
    ):
        printed.add_column(name, justify=justify, no_wrap=name == "difference")  # type: ignore[arg-type]
    before = None
    for one in table.to_dict("records"):
        scale, form = (1, ".3f") if one["result"].startswith("AUROC") else (100, ".2f")
        value, low, high = (scale * one[f"difference{end}"] for end in ("", "_low", "_high"))
        printed.add_row(
            one["profile"] if one["profile"] != before else "",
            one["result"] + (" (%)" if scale == 100 else ""),
            _number(scale * one["reference_value"], form),
            _number(scale * one["value"], form),
            one["reason"] or with_interval(value, low, high, f"+{form}"),
        )
        before = one["profile"]
    Console(highlight=False).print(printed)


def _number(value: float, form: str) -> str:
    return "-" if np.isnan(value) else f"{value:{form}}"


def _caption(table: pd.DataFrame, common: Pairing, confidence: float) -> str:
    digital, of_chips = table.iloc[0], table[table["profile"] != ""]
    said = [
        f"Samples: the same {digital['samples']:,}, in pairs."
        if common.samples
        else f"Samples: {digital['samples']:,} against {digital['reference_samples']:,} others, as "
        "independent."
    ]
    if len(of_chips):
        this, first = (int(of_chips[name].max()) for name in ("chips", "reference_chips"))
        said.append(
            f"Chips: {this} of the same seeds, in pairs."
            if common.chips
            else f"Chips: {this} against {first} others, as independent."
        )
        if min(this, first) == 1:
            said.append("One chip tells nothing of others: intervals are for other samples alone.")
    elif common.chips:
        said.append("No profile is in both.")
    said.append(f"Intervals of {100 * confidence:g} %.")
    if len(of_chips):
        said.append(
            "Failure rate and AUROC of failure: among the samples that each run's own digital "
            "model gets right."
        )
    return " ".join([*said, *common.remarks])
