"""The page of results: Markdown made from the files of archived runs, and a part of it in README.

Nothing on it is typed by hand but the sentences that say what a table shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bridge.profiles import from_json
from experiments.analysis import DENOMINATORS, FULL_PROFILE
from experiments.artefacts import read_json, write_bytes
from experiments.fit_paper import cell_of
from experiments.paper import TABLE_ONE

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
"""Between these lines of README.md stands what `write` puts there."""


def write(results: Path, readme: Path) -> Path:
    """Writes README.md of the folder of results, and the marked part of the project's.

    Args:
      results: folder of the archived runs' folders and of fit_paper/.
      readme: the project's; must have the lines `BEGIN` and `END`.

    Returns:
      The page.

    Raises:
      ValueError: the lines are missing.
      FileNotFoundError: an archived run lacks a file.
    """
    text = require_place(readme)
    runs = [path.parent for path in sorted(results.glob("*/table_one.csv"))]
    fit = results / "fit_paper"
    table = pd.read_csv(fit / "table.csv") if (fit / "table.csv").exists() else None
    parts = [
        "# Results",
        "Made by `python -m experiments regenerate` from the per-sample tables in these folders; "
        "do not edit. Rates are analog-only failures in percent, D1 and D10 the tenths of lowest "
        "and highest curvature; brackets are 95 % intervals over chips and samples.",
        *([] if table is None else ["## Table I", _table_one(table, _interval)]),
        *_runs(runs),
        *([] if table is None else _fit(fit)),
        *_rescored(runs),
        "## Where each run comes from",
        _provenance(runs),
    ]
    page = write_bytes(results / "README.md", ("\n\n".join(parts) + "\n").encode())
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(
            f"{readme} lacks the lines {BEGIN} and {END}: put the results between them"
        )
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    place = results.relative_to(readme.parent).as_posix()
    short = [] if table is None else [_table_one(table, _rate)]
    part = "\n\n".join([*short, *_figure_one(runs, place)])
    write_bytes(readme, f"{before}{BEGIN}\n{part}\n{END}{after}".encode())
    return page


def require_place(readme: Path) -> str:
    """The text of a README that has a place for the results.

    Raises:
      ValueError: it has not.
    """
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{readme} lacks the lines {BEGIN} and {END}: put them where results go")
    return text


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _table_one(table: pd.DataFrame, render: Callable[[dict[str, Any], str], str]) -> str:
    """The paper's, the shipped chip's and the fitted chip's; then the rows that were not run.

    Args:
      table: as `fit_paper.tabulate` returns it.
      render: a row and the name of a rate, as text.
    """
    first = table.iloc[0]
    rows = []
    for row in table.to_dict("records"):
        of = [
            f"{render(row, f'{what}_d1')}, {render(row, f'{what}_d10')}"
            for what in ("shipped_all", "shipped_correct", "fitted")
        ]
        rows.append(
            [
                f"{_title(row['architecture'], row['data'])}, width {row['width']}",
                f"{row['digital_accuracy']:.1f} %",
                f"{row['paper_d1']:g}, {row['paper_d10']:g}",
                f"{of[0]} ({row['shipped_error']:.1f})",
                of[1],
                f"{of[2]} ({row['fitted_error']:.1f}; {row['role']})",
            ]
        )
    there = set(zip(table["architecture"], table["data"], strict=True))
    missing = [_title(*model) for model in TABLE_ONE if model not in there]
    header = ["model", "digital", "paper", "shipped, of all", "shipped, of the correct", "fitted"]
    reading = f"{first['fold']}, of {DENOMINATORS[first['denominator']]}"
    note = (
        f"D1, D10 under {FULL_PROFILE}, %; shipped: test fold; fitted: {reading}. In round "
        "brackets the mean absolute difference from the paper's two, in percentage points; the "
        "chip was fitted on the rows marked so and only tried on the others."
    )
    if missing:
        note += f" Not run: {'; '.join(missing)}."
    return f"{markdown(header, rows)}\n\n{note}"


def _rate(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f}"


def _interval(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _title(architecture: str, data: str) -> str:
    names = {"resnet18": "ResNet-18", "resnet50": "ResNet-50", "cifar10": "CIFAR-10"}
    names |= {"cifar100": "CIFAR-100", "tiny_imagenet": "Tiny-ImageNet", "imagenet": "ImageNet-1K"}
    return f"{names.get(architecture, architecture)}, {names.get(data, data)}"


def _figure_one(runs: Sequence[Path], place: str) -> Iterator[str]:
    """Fig. 1 of the runs whose model and data are the paper's, whatever the width."""
    for run in runs:
        settings = read_json(run / "settings.json")
        if (settings["model"]["architecture"], settings["data"]["name"]) == (
            "resnet18",
            "cifar100",
        ):
            title = f"Failure rate by curvature decile, {run.name}"
            yield f"![{title}]({place}/{run.name}/figures/figure_one_correct.png)"


def _runs(runs: Sequence[Path]) -> Iterator[str]:
    """For each run accuracies, D1 and D10 of every profile and fold, and its Fig. 1."""
    yield "## Every profile and fold"
    for run in runs:
        table = pd.read_csv(run / "table_one.csv")
        digital = table.groupby("fold", sort=False)["digital_accuracy"].first()
        accuracies = ", ".join(f"{fold} {value:.1f} %" for fold, value in digital.items())
        rows = [
            [
                row["fold"],
                row["profile"],
                f"{row['analog_accuracy']:.1f}",
                *(_interval(row, f"{end}_of_{of}") for of in DENOMINATORS for end in ("d1", "d10")),
            ]
            for row in table.to_dict("records")
        ]
        header = ["fold", "profile", "accuracy"]
        header += [f"{end} of {of}" for of in DENOMINATORS for end in ("D1", "D10")]
        chips = int(table["chips"].max())
        yield f"### {run.name}"
        yield f"Digital accuracy: {accuracies}; {chips} chip{'s' * (chips > 1)} a profile."
        yield f"![Fig. 1]({run.name}/figures/figure_one.png)"
        yield markdown(header, rows)


def _fit(folder: Path) -> Iterator[str]:
    """What each setting of the chip does alone, then the path of the search."""
    table = pd.read_csv(folder / "search.csv")
    ends = [name for name in table if name.endswith((" d1", " d10"))]
    header = ["setting", *(f"{name}, of {of}" for name in ends for of in DENOMINATORS), "misfit"]
    kept = read_json(folder / "fit.json")
    yield "## What the paper leaves open about the chip"
    yield (
        "The shipped chip with one setting changed: test fold, "
        f"{kept['limit']:,} samples, {kept['search_chips']} chips; of all samples and of the "
        "digitally correct ones; misfit: the smallest mean absolute difference from the paper's "
        "figures over folds and denominators, percentage points."
    )
    alone = table[table["step"] <= 1]
    yield markdown(header, list(_settings(alone, ends)))
    best = table.loc[table["misfit"].idxmin()]
    path = table.groupby("step", sort=True)["misfit"].min()
    steps = []
    for number, misfit in path.items():
        row = table.loc[table["misfit"].where(table["step"] == number).idxmin()]
        steps.append([number, row["change"], row["fold"], row["denominator"], f"{misfit:.2f}"])
    yield (
        f"The search: the best change of each step ({table['cell'].nunique()} chips were tried). "
        "It ends with the first step that is no better."
    )
    yield markdown(["step", "change", "fold", "denominator", "misfit"], steps)
    chips = {cell_of(chip): chip for chip in (from_json(one["chip"]) for one in kept["steps"])}
    yield f"The fitted chip: `{chips[best['cell']]}`."


def _settings(table: pd.DataFrame, ends: Sequence[str]) -> Iterator[list[str]]:
    for (change, _), rows in table.groupby(["change", "cell"], sort=False):
        of = rows[rows["fold"] == "test"].set_index("denominator")
        rates = [f"{of.loc[which, name]:.2f}" for name in ends for which in DENOMINATORS]
        yield [str(change), *rates, f"{rows['misfit'].min():.2f}"]


def _rescored(runs: Sequence[Path]) -> Iterator[str]:
    """What each choice of the score does."""
    found = [run for run in runs if (run / "rescore" / "variants.csv").exists()]
    if found:
        yield "## What the paper leaves open about the score"
        yield "Test fold, each variant against the shipped score; see `rescore --help`."
    for run in found:
        table = pd.read_csv(run / "rescore" / "variants.csv")
        rows = [
            [f"{value:.3f}" if isinstance(value, float) else value for value in row]
            for row in table.itertuples(index=False)
        ]
        yield f"### {run.name}"
        yield markdown([name.replace("_", " ") for name in table], rows)


def _provenance(runs: Sequence[Path]) -> str:
    rows = []
    for run in runs:
        stages = [read_json(path) for path in sorted((run / "stages").glob("*.json"))]
        seconds = ", ".join(f"{one['name']} {one['seconds']:,.0f} s" for one in stages)
        versions: dict[str, str] = {}
        for one in stages:
            versions |= one["versions"]
        kept = ("python", "jax", "flax", "torch", "aihwkit")
        devices = sorted({one["device"] for one in stages})
        rows.append(
            [
                f"`python -m experiments run {run.name}`",
                "; ".join(devices),
                ", ".join(f"{name} {versions[name]}" for name in kept if name in versions),
                seconds,
            ]
        )
    return markdown(["run", "device", "versions", "durations"], rows)
