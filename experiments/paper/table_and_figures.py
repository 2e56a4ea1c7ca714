"""The paper's table and figures from finished runs: `table-one`, `figure-one` and `gallery`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.figures import paper as drawing
from bridge.report.figures import style
from bridge.report.figures.widths import DOUBLE, SINGLE
from bridge.report.folds import POOLED, Fold
from bridge.report.tables import outcomes
from bridge.report.tables.formats import with_interval
from experiments.runs.descriptions import read_framework
from experiments.runs.files import read_parquet, require_writable
from experiments.runs.records import read_record, recorded_settings
from experiments.settings.flags import Data, Figures, FigureWidth
from experiments.settings.values import positional
from experiments.system.errors import at_work
from jaxcurv.storage.lock import lock

_OURS_ALL, _OURS_CORRECT, _PAPER = style.BLUE, style.VERMILLION, style.BLACK


@dataclass(frozen=True)
class TableOne:
    """Table I of finished runs, beside the paper's."""

    runs: tuple[Path, ...] = field(default=(), metadata=positional("RUN"))
    """Folders of finished runs; without any, those in runs/ and experiments/results/."""
    out: Path = Path("runs/table_one")
    """Folder for table_one.csv, .png, .svg and .pdf."""
    figures: FigureWidth = field(default_factory=FigureWidth)
    """The figure."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class FigureOne:
    """Draws the failure rate against the curvature decile, a panel for each hardware profile."""

    run: Path = field(metadata=positional("RUN"))
    """Folder of a finished run."""
    denominator: outcomes.Denominator = "all"
    """Samples of a bin that the rate is a fraction of: `all` of them, or those that the digital
    model gets `correct`."""
    folds: tuple[str, ...] = ("train", "test", POOLED)
    """Folds to draw, a line each; those that the run lacks are left out. `pooled` is all
    together."""
    out: Path | None = None
    """Folder for figure_one.png, .svg, .pdf and .csv; `none` is figures/ in the run's folder."""
    figures: Figures = field(default_factory=Figures)
    """The figure."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Gallery:
    """Draws the images of lowest and of highest curvature of a run."""

    run: Path = field(metadata=positional("RUN"))
    """Folder of a finished run."""
    data_dir: Path | None = None
    """Folder of the data sets; `none` is $TFDS_DATA_DIR if that is set, else
    ~/tensorflow_datasets."""
    fold: Fold = "test"
    """Fold from which the images are."""
    profile: str = FULL_PROFILE
    """Hardware profile whose failures are marked."""
    count: int = 8
    """Number of images of lowest and of highest curvature each."""
    out: Path | None = None
    """Folder for gallery.png, .svg, .pdf and .csv; `none` is figures/ in the run's folder."""
    figures: FigureWidth = field(default_factory=FigureWidth)
    """The figure."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1; got {self.count}")


@dataclass(frozen=True)
class _Run:
    folder: Path
    settings: dict = field(repr=False)

    @property
    def model(self) -> str:
        model = self.settings["model"]
        return model.get("factory") or f"{model['architecture']}, width {model['width']}"

    @property
    def data(self) -> str:
        return self.settings["data"]["name"]


def table_one(options: TableOne) -> None:
    """Collects Table I of the runs, draws and prints it.

    Raises:
        FileNotFoundError: a folder, or every one, has no table.
        OSError: the output folder cannot be written, or another process writes there.
        WorkFailed: the figure could not be written after all.
    """
    runs = [_open(folder, "table_one.parquet") for folder in options.runs or _finished()]
    if not runs:
        raise FileNotFoundError("no finished run under runs/ or experiments/results/: name folders")
    require_writable(options.out)
    tables = []
    for run in runs:
        table = read_parquet(run.folder / "table_one.parquet")
        table = table[table["profile"] == FULL_PROFILE]
        if table.empty:
            raise ValueError(
                f"{run.folder} has no chips under {FULL_PROFILE}, which Table I is about: run it "
                "with --simulate.profiles that have it, or name other runs"
            )
        table.insert(0, "model", run.model)
        table.insert(1, "data", run.data)
        table.insert(2, "run", run.folder.name)
        tables.append(table)
    table = pd.concat(tables, ignore_index=True)
    with lock(options.out), at_work():
        path = draw_table_one(table, options.out / "table_one.png", width=options.figures.inches)
    show_table_one(table)
    print(f"{path}, .svg, .pdf and .csv")


def draw_table_one(table: pd.DataFrame, path: Path, *, width: float = DOUBLE) -> Path:
    """D1 and D10 of each row, of all and of the digitally correct samples, and the paper's.

    Args:
        table: `failure_rates.table_one` of one profile, with the columns model and data.
        path: the PNG file; SVG, PDF and CSV are put beside it.
        width: inches.
    """
    wide = width > SINGLE
    names = [
        f"{row.model}\n{row.data}, {row.fold}".replace(", ", ", " if wide else ",\n")
        for row in table.itertuples()
    ]
    with matplotlib.rc_context({**style.STYLE, "axes.grid": False}):
        figure = style.new_figure(width=width, height=(0.62 if wide else 0.8) * len(table) + 1.5)
        axis = figure.subplots()
        for number, row in enumerate(table.to_dict("records")):
            for offset, denominator, colour in (
                (0.16, "all", _OURS_ALL),
                (-0.16, "correct", _OURS_CORRECT),
            ):
                y = number + offset
                ends = [row[f"{name}_of_{denominator}"] for name in ("d1", "d10")]
                axis.plot(ends, [y, y], color=colour, linewidth=1, alpha=0.5)
                for name, marker in (("d1", "o"), ("d10", "s")):
                    rate, low, high = (
                        row[f"{name}_of_{denominator}{suffix}"] for suffix in ("", "_low", "_high")
                    )
                    error = [[rate - low], [high - rate]]
                    axis.errorbar(rate, y, xerr=error, fmt=marker, color=colour, capsize=2)
            if not np.isnan(row["paper_d1"]):
                ends = [row["paper_d1"], row["paper_d10"]]
                axis.plot(ends, [number, number], color=_PAPER, linewidth=1, linestyle=":")
                axis.plot(ends[0], number, "o", color=_PAPER, fillstyle="none", markersize=6)
                axis.plot(ends[1], number, "s", color=_PAPER, fillstyle="none", markersize=6)
        axis.set_yticks(range(len(table)), names)
        axis.invert_yaxis()
        axis.set_ylim(len(table) - 0.5, -0.5)
        axis.set_xlim(left=-1)
        axis.grid(True, axis="x")
        axis.set_xlabel("Analog-only failure rate (%)")
        between = " " if wide else "\n"
        axis.set_title(f"D1 (circles) and D10 (squares){between}under {FULL_PROFILE}")
        handles = [
            axis.plot([], [], color=colour, marker="o", label=label, fillstyle=fill)[0]
            for label, colour, fill in (
                ("ours, of all samples", _OURS_ALL, "full"),
                ("ours, of the digitally correct", _OURS_CORRECT, "full"),
                ("paper", _PAPER, "none"),
            )
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3 if wide else 1)
        return style.write_figure(figure, path, table)


def show_table_one(table: pd.DataFrame) -> None:
    """Prints D1 and D10 with their intervals and how far they are from the paper's, in percent."""
    printed = Table(
        title=f"Table I, {FULL_PROFILE}: analog-only failures, %",
        caption="With intervals. The paper's where it has such a row, of the usual width of 64, "
        "its split and denominator unknown; in brackets ours of all samples and of the "
        "correct ones minus it.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    printed.add_column("run")
    for name in ("of", "D1", "D10"):
        printed.add_column(name, justify="right", no_wrap=True)
    for row in table.to_dict("records"):
        cells = [_of_decile(row, name) for name in ("d1", "d10")]
        printed.add_row(
            f"{row['model']}\n{row['data']}, {row['fold']}\n{row['run']}",
            "\n".join([*outcomes.DENOMINATORS, "paper"][: len(cells[0])]),
            *map("\n".join, cells),
        )
    Console(highlight=False).print(printed)


def _of_decile(row: dict, name: str) -> list[str]:
    """The decile's rate for each denominator, then the paper's."""
    lines = []
    for denominator in outcomes.DENOMINATORS:
        rate = (row[f"{name}_of_{denominator}{end}"] for end in ("", "_low", "_high"))
        lines.append(with_interval(*rate))
    paper = row[f"paper_{name}"]
    if np.isnan(paper):
        return lines
    off = (row[f"{name}_of_{denominator}_minus_paper"] for denominator in outcomes.DENOMINATORS)
    return [*lines, f"{paper:.2f} ({', '.join(f'{one:+.2f}' for one in off)})"]


def figure_one(options: FigureOne) -> None:
    """Draws Fig. 1 of a run.

    Raises:
        FileNotFoundError: the folder has no decile table.
        ValueError: the run has none of the folds, or not all of the profiles.
        OSError: the output folder cannot be written, or another process writes there.
        WorkFailed: the figure could not be written after all.
    """
    run = _open(options.run, "deciles.parquet")
    deciles = read_parquet(run.folder / "deciles.parquet")
    if not deciles["fold"].isin(options.folds).any():
        raise ValueError(f"{run.folder} has none of the folds {', '.join(options.folds)}")
    there = list(deciles["profile"].unique())
    if missing := [one for one in options.figures.profiles if one not in there]:
        raise ValueError(
            f"{run.folder} has no chips under {missing[0]} (--figures.profiles): it has those of "
            f"{', '.join(there)}"
        )
    name = "figure_one" if options.denominator == "all" else "figure_one_correct"
    with _locked(run, options.out) as out, at_work():
        path = drawing.figure_one(
            deciles,
            out / f"{name}.png",
            denominator=options.denominator,
            folds=options.folds,
            profiles=options.figures.profiles,
            width=options.figures.inches,
        )
    print(f"{path}, .svg, .pdf and .csv")


def gallery(options: Gallery) -> None:
    """Draws Fig. 2 of a run.

    Raises:
        FileNotFoundError: the folder has no scores, or the data set is not there.
        ValueError: unknown profile or fold, or too few samples.
        OSError: the output folder cannot be written, or another process writes there.
        WorkFailed: the figure could not be written after all.
    """
    run = _open(options.run, "predictions.parquet", "scores.parquet")
    with _locked(run, options.out) as out:
        rows, images, class_names = _extremes(run, options)
        with at_work():
            path = drawing.gallery(
                rows, images, class_names, out / "gallery.png", width=options.figures.inches
            )
    print(f"{path}, .svg, .pdf and .csv")


def _extremes(run: _Run, options: Gallery) -> tuple[pd.DataFrame, np.ndarray, Sequence[str]]:
    """The samples to show, their images and the names of the classes."""
    from experiments.runs.samples import positions_of
    from jaxcurv import data

    # Of one fold: a folder may hold the predictions of some folds only.
    scores, predictions = (
        table[table["fold"] == options.fold]
        for table in map(
            read_parquet, (run.folder / "scores.parquet", run.folder / "predictions.parquet")
        )
    )
    if scores.empty or predictions.empty:
        raise ValueError(f"{run.folder} has no scores and predictions of the {options.fold} fold")
    joined = outcomes.join(scores, predictions)
    rows = drawing.gallery_rows(joined, options.fold, options.count, profile=options.profile)
    dataset = data.load(run.data, options.data_dir, Data(**run.settings["data"]).preprocessing)
    split = dataset.test if options.fold == "test" else dataset.train
    indices = data.with_labels(split, description=f"read labels of {options.fold}").indices
    shown = positions_of(indices, rows["index"].to_numpy())
    images = data.read(split, shown, description="read shown images").images
    return rows, images, dataset.class_names


@contextmanager
def _locked(run: _Run, out: Path | None) -> Iterator[Path]:
    """Where to draw: figures/ of the run, while nothing else writes in its folder, or `out`."""
    chosen = run.folder / "figures" if out is None else out
    require_writable(chosen)
    with lock(run.folder if out is None else out):
        yield chosen


def _open(folder: Path, *files: str) -> _Run:
    settings = recorded_settings(folder)
    missing = [name for name in files if not (folder / name).exists()]
    if missing or not settings:
        raise FileNotFoundError(
            f"no {missing[0] if missing else 'records in stages/'} in {folder}: give the folder of "
            "a finished run, such as runs/digits"
        )
    page = read_record(folder, "report")
    if page and read_framework(folder) == "jax" and page["settings"]["simulate"]["engine"] != "jax":
        raise FileNotFoundError(
            f"the chips in {folder} are of earlier settings, and its network has none without "
            "--simulate.engine jax: run it again with that flag"
        )
    return _Run(folder, settings)


def _finished() -> list[Path]:
    places = (Path("runs"), Path(__file__).parents[1] / "results")
    found = [
        path.parent
        for place in places
        for path in sorted(place.glob("*/table_one.parquet"))
        if (path.parent / "stages").exists()
    ]
    different: dict[str, Path] = {}
    for folder in found:  # of equal runs the first, which is that of the user
        different.setdefault(json.dumps(recorded_settings(folder), sort_keys=True), folder)
    return list(different.values())


COMMANDS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "table-one": (TableOne, table_one),
    "figure-one": (FigureOne, figure_one),
    "gallery": (Gallery, gallery),
}
