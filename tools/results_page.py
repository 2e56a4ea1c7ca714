"""The page of results: Markdown made from the files of archived runs, and a part of it elsewhere.

Nothing on it is typed by hand but the sentences that say what a table shows.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow.parquet as pq

from bridge.chips.memories.pcm import PCM
from bridge.chips.profiles import FULL_COMPENSATED, FULL_PROFILE, eight_profiles, from_json
from bridge.report.tables.formats import with_interval
from bridge.report.tables.outcomes import DENOMINATORS
from bridge.report.tables.paper_values import TABLE_ONE
from bridge.report.tables.predictors import NESTED, OTHERS
from experiments.paper.fit import cell_of
from experiments.runs.files import read_parquet
from experiments.runs.records import read_records, recorded_settings
from experiments.settings.presets import command_line
from experiments.studies.drift import duration
from experiments.studies.remedies import frontier_of, verdicts
from experiments.studies.remedies_tables import told
from jaxcurv.storage.checksums import read_json
from jaxcurv.storage.files import write_bytes
from tools import published

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
"""Between these lines of a page stands what `write` puts there."""

_NAMES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
    "imagenet": "ImageNet-1K",
}

_FITS = 99.0
"""Training accuracy, in percent, of a network that fits its training set."""

_Render = Callable[[dict[str, Any], str], str]
"""A row and the name of a rate, as text."""


@dataclass(frozen=True)
class _Run:
    """An archived run."""

    folder: Path
    settings: dict[str, Any]
    table_one: pd.DataFrame

    @property
    def model(self) -> tuple[str, str]:
        """Architecture or factory, and data set, the former as `TABLE_ONE` names them."""
        model = self.settings["model"]
        return model.get("factory") or model["architecture"], self.settings["data"]["name"]

    @property
    def published(self) -> str | None:
        """Name in `PUBLISHED`; None for a network that was trained here."""
        module, _, name = self.model[0].partition(":")
        return name if module == published.MODULE else None

    @property
    def title(self) -> str:
        names = ", ".join(_NAMES.get(name, name) for name in self.model)
        title = f"{names}, width {self.settings['model']['width']}"
        if (seed := self.settings.get("seed", 0)) != 0:
            title += f", training {seed + 1}"
        if (time := self.settings["simulate"]["pcm"]["t_inference"]) != PCM().t_inference:
            title += f", {time:g} s after programming"
        return title

    @property
    def accuracy(self) -> dict[str, float]:
        """The digital network's, by fold, in percent."""
        return self.table_one.groupby("fold", sort=False)["digital_accuracy"].first().to_dict()


def write(results: Path, into: Path, fits: Sequence[Path]) -> Path:
    """Writes README.md of the folder of results, and the marked part of another page.

    Args:
      results: folder of the archived runs' folders, all regenerated.
      into: the other page; must have the lines `BEGIN` and `END`.
      fits: folders of fits to the paper, in `results`, tabulated.

    Returns:
      The page.

    Raises:
      ValueError: the lines are missing.
      FileNotFoundError: an archived run lacks a file.
    """
    text = require_place(into)
    found = [
        _Run(path.parent, recorded_settings(path.parent), read_parquet(path))
        for path in sorted(results.glob("*/table_one.parquet"))
    ]
    runs = sorted(found, key=lambda run: [*TABLE_ONE, run.model].index(run.model))
    fitted = pd.concat([pd.read_csv(fit / "table.csv") for fit in fits]) if fits else None
    confidence = {run.settings["analyse"]["confidence"] for run in runs}
    parts = [
        "# Every archived run",
        "Made by `python -m tools regenerate` from the per-sample tables in these folders; "
        "do not edit. Rates are analog-only failures in percent, D1 and D10 the tenths of lowest "
        "and highest curvature; brackets are intervals for other chips and samples, "
        "of that one trained network; of an ADC alone, which draws nothing, for other samples "
        f"({' or '.join(f'{100 * level:g} %' for level in sorted(confidence))}).",
        *_regime(runs),
        "## Table I",
        *_table_one(runs, fitted, _interval),
        *_published(runs),
        *_predictors(runs),
        *_runs(runs),
        *_remedies(results),
        *(part for fit in fits for part in _fit(fit)),
        *_rescored(runs),
        "## Where each run comes from",
        _provenance(runs),
    ]
    page = write_bytes(results / "README.md", ("\n\n".join(parts) + "\n").encode())
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    place = Path(os.path.relpath(results, into.parent)).as_posix()
    part = "\n\n".join([*_table_one(runs, fitted, _rate), *_figure_one(runs, place)])
    write_bytes(into, f"{before}{BEGIN}\n{part}\n{END}{after}".encode())
    return page


def _remedies(results: Path) -> Iterator[str]:
    """What can be done about failures: the frontier of each network that remedies were tried on."""
    folders = [path.parent for path in sorted(results.glob("*/remedies/frontier.csv"))]
    if not folders:
        return
    yield "## What to do about failures"
    yield (
        "Accuracy of test images on the same chips, and energy, a digital pass being 1: of the "
        "remedies that none beats on validation images. Gain: points over the chip without a "
        "remedy; short: points below the digital model; brackets are 95 % intervals for other "
        "images on other chips."
    )
    header = ["remedy", "energy", "accuracy, %", "gain", "short"]
    for folder in folders:
        made = read_json(folder / "settings.json")
        yield f"### {folder.parent.name}, {made['profile_name']}"
        yield f"![Accuracy and energy of the remedies]({folder.parent.name}/remedies/remedies.png)"
        for time, rows in frontier_of(folder).groupby("time_s"):
            yield f"{duration(float(str(time)))} after programming:"
            yield markdown(header, [_remedy(row) for row in rows.to_dict("records")])
        yield from verdicts(folder)


def _remedy(row: Mapping[Any, Any]) -> list[str]:
    cells = [told(row), f"{row['energy']:.3f}"]
    for name in ("accuracy", "gain", "short"):
        value, low, high = (100 * row[name + end] for end in ("", "_low", "_high"))
        cells.append(with_interval(value, low, high, ".1f"))
    return cells


def require_place(page: Path) -> str:
    """The text of a page that has a place for the results.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has not one place, or several.
    """
    if not page.exists():
        raise FileNotFoundError(
            f"no {page} here: work in the checkout, or give --into and --results"
        )
    text = page.read_text()
    if not (text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END)):
        raise ValueError(
            f"{page} lacks the lines {BEGIN} and {END}, once and in this order: put them where "
            "results go"
        )
    return text


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; whatever is not `Code` is shown as it stands, HTML and links too."""
    lines = [
        [(one if isinstance(one, Code) else plain(str(one))).replace("|", "\\|") for one in line]
        for line in (header, *rows)
    ]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Code(str):
    """A line in backticks; those in it become quotes, for no character can mask them."""

    def __new__(cls, text: str) -> Code:
        """The text on one line, in backticks."""
        return super().__new__(cls, f"`{_line(text).replace('`', chr(39))}`")


def plain(text: str) -> str:
    """A line without HTML, links, pictures and code: names may come from elsewhere."""
    masked = _line(text).replace("&", "&amp;").replace("<", "&lt;").replace("`", "\\`")
    return masked.replace("](", "]\\(").replace("![", "!\\[")


def _line(text: str) -> str:
    return " ".join(text.split())


def _regime(runs: Sequence[_Run]) -> Iterator[str]:
    """How failures rise with curvature where a network has its training images right."""
    rows = []
    for run in runs:
        if run.model not in TABLE_ONE or run.accuracy.get("train", 0.0) < _FITS:
            continue
        deciles = read_parquet(run.folder / "deciles.parquet")
        deciles = deciles[deciles["fold"].isin(("train", "test")) & (deciles["profile"] != "ideal")]
        for (fold, profile), table in deciles.groupby(["fold", "profile"], sort=False):
            found = table.sort_values("decile")["rate_of_all"]
            rows.append(
                [
                    run.folder.name,
                    fold,
                    profile,
                    table["chips"].max(),
                    *(f"{100 * rate:.2f}" for rate in found),
                    f"{(found.diff().iloc[1:] >= 0).sum()} of {len(found) - 1}",
                ]
            )
    if not rows:
        return
    yield "## Where the network has its training images right"
    header = ["run", "fold", "profile", "chips", *(f"D{n}" for n in range(1, len(rows[0]) - 4))]
    yield markdown([*header, "steps that do not fall"], rows)
    yield (
        f"Networks of the paper's kind with at least {_FITS:g} % of the training images right: "
        "there a sample of high curvature can still fail on the chip alone. Failures of all "
        "samples of the fold, %, by tenths of curvature. A step that falls, or does not, may be "
        "chance; intervals of D1 and D10 are below."
    )


def _table_one(runs: Sequence[_Run], fitted: pd.DataFrame | None, render: _Render) -> Iterator[str]:
    """Table I: the paper's rates, the default chip's and the fitted one's, a row a run.

    The default chip has a column more where the fitted one counts another fold than test.
    """
    of_fit: dict[str, dict[str, Any]] = {}
    reading = ""
    if fitted is not None:
        of_fit = {row["preset"]: row for row in fitted.to_dict("records")}
        first = fitted.iloc[0]
        reading = f"{first['fold']}, of {DENOMINATORS[first['denominator']]}"
    same = fitted is not None and fitted["fold"].iloc[0] != "test"
    rows, there = [], set()
    for run in runs:
        if run.model not in TABLE_ONE:
            continue
        found = _only(run.table_one).to_dict("records")
        if not found:
            continue
        there.add(run.model)
        (row,) = found
        off = (abs(row[f"{end}_of_all"] - row[f"paper_{end}"]) for end in ("d1", "d10"))
        compensated = _only(run.table_one, FULL_COMPENSATED).to_dict("records")
        cells = ["-"] * (1 + same)
        if (fit := of_fit.get(run.folder.name)) is not None:
            cells = [f"{_ends(fit, 'fitted_', render)} ({fit['fitted_error']:.1f}; {fit['role']})"]
            if same:
                cells.insert(0, f"{_ends(fit, 'shipped_same_', render)} ({fit['same_error']:.1f})")
        rows.append(
            [
                run.title,
                ", ".join(
                    f"{run.accuracy[fold]:.1f}" if fold in run.accuracy else "-"
                    for fold in ("train", "test")
                ),
                f"{row['paper_d1']:g}, {row['paper_d10']:g}",
                f"{_ends(row, '', render, '_of_all')} ({sum(off) / 2:.1f})",
                _ends(row, "", render, "_of_correct"),
                *([_ends(one, "", render, "_of_correct") for one in compensated] or ["-"]),
                *cells,
            ]
        )
    header = [
        "model",
        "digital: train, test",
        "paper",
        "default chip, of all",
        "default chip, of the correct",
    ]
    header.append("drift compensated, of the correct")
    yield markdown([*header, *[f"default chip, {reading}"] * same, "fitted chip"], rows)
    note = (
        f"Digital accuracy, and D1, D10 under {FULL_PROFILE}, %; default chip: test fold. In round "
        "brackets the mean absolute difference from the paper's two, in percentage points. Drift "
        "compensated: "
        f"{FULL_COMPENSATED}, where it was run."
    )
    if fitted is not None:
        note += (
            " The chip was fitted on the rows marked fitted and applied unchanged to the others; "
            f"it counts {reading}."
        )
    missing = [model for model in TABLE_ONE if model not in there]
    if missing:
        names = "; ".join(", ".join(_NAMES[name] for name in model) for model in missing)
        note += f" Not run: {names}."
    yield note


def _published(runs: Sequence[_Run]) -> Iterator[str]:
    """What was seen of networks that others trained: accuracy, failure rates, AUROCs."""
    found = {run.published: run for run in runs if run.published is not None}
    if not found:
        return
    yield "## Networks that we did not train"
    predictors = ("curvature", "gradient_norm", "margin", "flip_probability")
    rows = []
    for name, about in published.PUBLISHED.items():
        if name not in found:
            continue
        run = found[name]
        stated = "-" if about.stated_error is None else f"{100 - about.stated_error:.2f} %"
        compared = read_parquet(run.folder / "predictors.parquet")
        for profile in (FULL_PROFILE, FULL_COMPENSATED):
            aurocs = _only(compared, profile)
            aurocs = aurocs[aurocs["denominator"] == "correct"].set_index("predictor")
            rows += [
                [
                    f"{about.name}, {about.source}",
                    stated,
                    f"{row['digital_accuracy']:.2f} %",
                    profile,
                    f"{row['analog_accuracy']:.2f} %",
                    _ends(row, "", _interval, "_of_all"),
                    _ends(row, "", _interval, "_of_correct"),
                    *(_interval(aurocs.loc[one].to_dict(), "auroc") for one in predictors),
                ]
                for row in _only(run.table_one, profile).to_dict("records")
            ]
    header = ["network", "stated", "digital", "profile", "analog"]
    header += ["D1, D10 of all", "D1, D10 of the correct"]
    yield markdown([*header, *(f"AUROC {one.replace('_', ' ')}" for one in predictors)], rows)
    yield (
        "CIFAR-10, whole test split, the default chip; AUROC among the digitally correct samples. "
        "Weights and images are others'; the networks are written again in "
        "tools/published_networks.py, under their layers' names. The commands are below."
    )


def _predictors(runs: Sequence[_Run]) -> Iterator[str]:
    """AUROC of the scores under every profile, and what curvature and the flip probability add."""
    named = ("margin", "gradient_norm", "curvature", "flip_probability", OTHERS[1])
    yield "## Which score predicts failure"
    rows = []
    for run in runs:
        table = read_parquet(run.folder / "predictors.parquet")
        here = (table["denominator"] == "correct") & (table["fold"] == "test")
        table = table[here & (table["reason"] == "")]
        for profile, of_profile in table.groupby("profile", sort=False):
            found = of_profile.set_index("predictor").to_dict("index")
            aurocs = (_interval(found[one], "auroc") if one in found else "-" for one in named)
            added = (
                _interval(found[one], "added_difference", "+.3f") if one in found else "-"
                for one in NESTED
            )
            rows.append([run.folder.name, profile, *aurocs, *added])
    header = ["run", "profile", *(one.replace("_", " ") for one in named)]
    added = (f"{more.removeprefix(less)} to {less}" for more, less in NESTED.items())
    yield markdown([*header, *(one.removeprefix(" + ") for one in added)], rows)
    yield (
        "AUROC among the digitally correct samples of the test fold. A score to others: what it "
        "adds to the AUROC of a cross-validated logistic model of the scores of one forward pass "
        "(logits), with the gradient norm and with curvature. Failure on another chip: whether one "
        "other simulated chip of the run fails on the sample. The models are not fitted anew in "
        "each resample: their intervals are somewhat narrow. Nothing is corrected for the number "
        "of rows: of many intervals some miss by chance."
    )


def _only(table: pd.DataFrame, profile: str = FULL_PROFILE) -> pd.DataFrame:
    """The rows of the test fold under a profile."""
    return table[(table["fold"] == "test") & (table["profile"] == profile)]


def _ends(row: dict[str, Any], before: str, render: _Render, after: str = "") -> str:
    return ", ".join(render(row, f"{before}{end}{after}") for end in ("d1", "d10"))


def _rate(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.2f}"


def _interval(row: dict[str, Any], name: str, form: str = ".2f") -> str:
    return with_interval(row[name], row[f"{name}_low"], row[f"{name}_high"], form)


def _figure_one(runs: Sequence[_Run], place: str) -> Iterator[str]:
    """Fig. 1 of the runs whose model and data are the paper's, whatever the width."""
    for run in runs:
        if run.model == ("resnet18", "cifar100"):
            name = run.folder.name
            title = f"Failure rate by curvature decile, {plain(name)}"
            yield f"{title}, all samples:"
            yield f"![{title}]({quote(f'{place}/{name}')}/figures/figure_one.png)"


def _runs(runs: Sequence[_Run]) -> Iterator[str]:
    """For each run accuracies, D1 and D10 of every profile and fold, and its Fig. 1."""
    yield "## Every profile and fold"
    for run in runs:
        table, name = run.table_one, run.folder.name
        accuracies = ", ".join(f"{fold} {value:.1f} %" for fold, value in run.accuracy.items())
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
        yield f"### {plain(name)}"
        yield f"Digital accuracy: {plain(accuracies)}; {chips} chip{'s' * (chips > 1)} a profile."
        yield f"![Failure rate by curvature decile]({quote(name)}/figures/figure_one.png)"
        yield markdown(header, rows)


def _fit(folder: Path) -> Iterator[str]:
    """What each setting of the chip does alone, then the path of the search."""
    table = pd.read_csv(folder / "search.csv")
    ends = [name for name in table if name.endswith((" d1", " d10"))]
    header = ["setting", *(f"{name}, of {of}" for name in ends for of in DENOMINATORS), "misfit"]
    kept = read_json(folder / "fit.json")
    yield f"## What the paper leaves open about the chip: {plain(folder.name)}"
    yield (
        "The default chip (as shipped) with one setting changed: test fold, "
        f"{100 * kept['share']:g} % of the scored samples, {kept['search_chips']} chips; of all "
        "samples and of the digitally correct ones; misfit: the smallest mean absolute difference "
        "from the paper's figures over folds and denominators, percentage points."
    )
    alone = table[table["step"] <= 1]
    yield markdown(header, list(_settings(alone, ends)))
    best = table.loc[table["misfit"].idxmin()]
    steps = []
    for number, rows in table.groupby("step", sort=True):
        row = rows.loc[rows["misfit"].idxmin()]
        steps.append(
            [number, row["change"], row["fold"], row["denominator"], f"{row['misfit']:.2f}"]
        )
    yield (
        f"The search: the best change of each step ({table['cell'].nunique()} chips were tried). "
        "It ends with the first step that is no better."
    )
    yield markdown(["step", "change", "fold", "denominator", "misfit"], steps)
    chips = {cell_of(chip): chip for chip in (from_json(one["chip"]) for one in kept["steps"])}
    yield f"The fitted chip: {Code(str(chips[best['cell']]))}."


def _settings(table: pd.DataFrame, ends: Sequence[str]) -> Iterator[list[str]]:
    for (change, _), rows in table.groupby(["change", "cell"], sort=False):
        of = rows[rows["fold"] == "test"].set_index("denominator")
        rates = [f"{of.loc[which, name]:.2f}" for name in ends for which in DENOMINATORS]
        yield [str(change), *rates, f"{rows['misfit'].min():.2f}"]


def _rescored(runs: Sequence[_Run]) -> Iterator[str]:
    """What each choice of the score does."""
    columns = ("rho", "rho_of_correct", "d1_overlap", "d10_overlap")
    found = [run for run in runs if (run.folder / "rescore" / "variants.csv").exists()]
    if found:
        yield "## What the paper leaves open about the score"
        yield (
            "Each variant differs from the default score (shipped) in one thing: Spearman's rho "
            "with it, of all and of the digitally correct samples; the share of its D1 and D10 "
            "that is in the variant's; and the variant's failure rates under "
            f"{FULL_PROFILE}, test fold."
        )
    for run in found:
        table = pd.read_csv(run.folder / "rescore" / "variants.csv")
        rows = [
            [
                row["variant"],
                row["samples"],
                *(f"{row[name]:.3f}" for name in columns),
                *(_interval(row, f"{end}_of_{of}") for of in DENOMINATORS for end in ("d1", "d10")),
            ]
            for row in table.to_dict("records")
        ]
        header = ["variant", "samples", "rho", "rho, correct", "D1 kept", "D10 kept"]
        header += [f"{end} of {of}" for of in DENOMINATORS for end in ("D1", "D10")]
        yield f"### {plain(run.folder.name)}"
        yield markdown(header, rows)


def _provenance(runs: Sequence[_Run]) -> str:
    rows = []
    for run in runs:
        stages = read_records(run.folder)
        versions: dict[str, str] = {}
        for one in stages:
            versions |= one["versions"]
        kept = ("python", "jax", "flax", "torch", "aihwkit")
        command = shlex.join(command_line(run.settings))
        rows.append(
            [
                run.folder.name,
                Code(f"python -m experiments run {command}"),
                "; ".join(sorted({one["device"] for one in stages})),
                ", ".join(f"{name} {versions[name]}" for name in kept if name in versions),
                ", ".join(_took(run.folder, one) for one in stages),
            ]
        )
    return markdown(["run", "command", "device", "versions", "durations"], rows)


def _took(folder: Path, record: dict[str, Any]) -> str:
    """A stage's duration; for those with a row a sample, how many a second, start included."""
    name, seconds = record["name"], record["seconds"]
    tables = {"score": "scores.parquet", "simulate": "predictions.parquet"}
    rate = ""
    if name in tables and seconds:
        rows = pq.read_metadata(folder / tables[name]).num_rows
        if name == "simulate":  # profiles may have been added since
            own = record["settings"]["simulate"].get("profiles", [*eight_profiles()])
            profiles = pd.read_parquet(folder / tables[name], columns=["profile"])["profile"]
            rows = int(profiles.isin(own).sum())
        rate = f" ({rows / seconds:,.0f} images/s)"
    return f"{name} {seconds:,.0f} s{rate}"
