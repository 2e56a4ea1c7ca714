"""One self-contained HTML page of a run: the answer, the tables, the figures and what made them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from experiments.runs.files import write_bytes
from experiments.tables.failure_rates import rates
from experiments.tables.outcomes import DENOMINATORS, FULL_PROFILE, Denominator, select
from experiments.tables.sentences import answers, caption

# By the start of the file's name: the section of a figure and its caption. A figure of another
# name, or of a section that is not there, is shown last.
_FIGURES = {
    "figure_one": (
        "deciles",
        "Analog-only failure rate by curvature decile; the bands are intervals.",
    ),
    "figure_one_correct": (
        "deciles",
        "The same, of the digitally correct samples only: a digitally wrong sample cannot fail "
        "analog-only.",
    ),
    "predictors": (
        "predictors",
        "AUROC of each predictor with its interval; at the right its cost in forward passes.",
    ),
    "calibration": (
        "calibration",
        "Observed failure rate against predicted probability, for each profile under which samples "
        "fail. Points on the diagonal come true; their area grows with the samples in the bin. "
        "ECE, the expected calibration error, in the order of the legend.",
    ),
    "routing": (
        "routing",
        "Accuracy against the share routed to the digital model, and against energy. Dots: the "
        "thresholds chosen on validation.",
    ),
    "overlap": ("overlap", "How far the samples that fail are the same ones."),
    "drift": (
        "drift",
        "Accuracy of the same chips against time after programming; the bands are intervals over "
        "chips.",
    ),
    "gallery": (
        "gallery",
        "The images of lowest and of highest curvature. Blue: the prediction survives on "
        "the analog chip; red: an analog-only failure; grey: digitally wrong.",
    ),
    "score_histogram": ("", "Distribution of the score, each group as a share of itself."),
    "training_curve": (
        "",
        "Training of the digital model; the dot is the checkpoint in use.",
    ),
}
_SHARES = (0, 5, 10, 15, 20, 30, 40, 50, 75, 100)  # percent routed, of the table of curves


def write_report(
    path: Path,
    *,
    title: str,
    settings: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    deciles: pd.DataFrame,
    confidence: float,
    predictors: pd.DataFrame | None = None,
    verdict: str = "",
    calibration: pd.DataFrame | None = None,
    calibration_errors: pd.DataFrame | None = None,
    routing: pd.DataFrame | None = None,
    routing_choices: pd.DataFrame | None = None,
    routing_baselines: pd.DataFrame | None = None,
    routing_summary: str = "",
    table_one: pd.DataFrame | None = None,
    overlap: pd.DataFrame | None = None,
    systematic: pd.DataFrame | None = None,
    per_class: pd.DataFrame | None = None,
    vulnerable: pd.DataFrame | None = None,
    thumbnails: Sequence[bytes] = (),
    reproduce: Sequence[str] = (),
    figures: Sequence[Path] = (),
    drift_figure: Path | None = None,
    fold: str = "test",
    profile: str = FULL_PROFILE,
    drift_seconds: float | None = None,
    ideal_agreement: float | None = None,
) -> Path:
    """Write the report of one run. Same inputs, same bytes; every text is escaped.

    A section whose table is None is left out.

    Args:
        path: of the HTML file.
        title: of the page, for instance model and data set.
        settings: what was run, as `settings.Experiment` holds it; nested mappings become dotted
            names. simulate and analyse.energy, where they are there, enter the explanations.
        stages: one mapping a stage: name, seconds, device, versions (package -> version).
        deciles: as `analysis.failure_tables` returns it.
        confidence: of every interval, in (0, 1).
        predictors: as `prediction.compare` returns it; may have seconds_per_image too.
        verdict: what it says in one sentence, as `prediction.verdict` returns it.
        calibration: as `prediction.calibrate` returns it.
        calibration_errors: the same; may have auroc too.
        routing: curves, as `routing.route` returns them.
        routing_choices: the same; may have no rows.
        routing_baselines: the same.
        routing_summary: what routing is worth in one sentence, as `routing.summary` returns it.
        table_one: as `analysis.table_one` returns it.
        overlap: of the failing samples of two profiles, as `overlap.profile_overlap` returns
            it; may have no rows.
        systematic: on how many of its chips a profile's samples fail, as the same returns it; may
            have no rows, where no profile has several chips.
        per_class: as `analysis.per_class` returns it, with class_name.
        vulnerable: as `analysis.vulnerable` returns it, with class_name; predictions may be names.
        thumbnails: PNG files, one a row of `vulnerable`, or none.
        reproduce: command lines that make the run again.
        figures: PNG files to embed, known by the start of their names: figure_one, predictors,
            calibration, routing, overlap, gallery, score_histogram, training_curve; others follow
            under their own names.
        drift_figure: as `drift.draw` leaves it.
        fold: the fold of the answer and of the tables.
        profile: the profile of the answer and of the tables of one profile.
        drift_seconds: of the chips with PCM, in seconds.
        ideal_agreement: as `analysis.ideal_agreement` returns it.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: for a missing figure.
        ValueError: if a table lacks the fold, the profile or a column, or the thumbnails do not
            match the samples.
    """
    if thumbnails and len(thumbnails) != (0 if vulnerable is None else len(vulnerable)):
        raise ValueError(
            f"{len(thumbnails)} thumbnails for {0 if vulnerable is None else len(vulnerable)} "
            "vulnerable samples; give one each, or none"
        )
    shown = [*figures, *([] if drift_figure is None else [drift_figure])]
    pictures = [_picture(Path(figure)) for figure in shown]
    sections = {
        "table-one": ("Table I", table_one is not None),
        "deciles": ("Failure rate by curvature decile", True),
        "predictors": ("Which score predicts failure", predictors is not None),
        "calibration": ("Whether probabilities come true", calibration_errors is not None),
        "routing": ("Routing fragile samples to the digital model", routing is not None),
        "overlap": (
            "Whether the same samples fail",
            overlap is not None or systematic is not None,
        ),
        "drift": ("As the chips age", True),
        "gallery": ("Gallery", any(picture["section"] == "gallery" for picture in pictures)),
        "vulnerable": ("Most vulnerable samples", vulnerable is not None),
        "classes": ("Classes", per_class is not None),
        "accuracy": (
            "Accuracy and failure rate of every fold",
            table_one is not None or ideal_agreement is not None,
        ),
        "figures": ("More figures", False),
        "reproduce": ("How to reproduce", bool(reproduce)),
        "settings": ("Settings", True),
        "environment": ("Environment", True),
    }
    for picture in pictures:
        if not sections.get(picture["section"], ("", False))[1]:
            picture["section"] = "figures"
            sections["figures"] = ("More figures", True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, rate=_rate)
    last = int(deciles["decile"].max())
    script = (Path(__file__).parent / "page.js").read_text()
    # The only script that browsers run in the page: none that a name might bring in.
    script_hash = f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    page = environment.get_template("page.html.jinja").render(
        title=title,
        titles={name: text for name, (text, there) in sections.items() if there},
        pictures=pictures,
        answers=[]
        if predictors is None
        else answers(deciles, predictors, profile=profile, fold=fold, drift_seconds=drift_seconds),
        fold=fold,
        profile=profile,
        confidence=confidence,
        chips=int(deciles["chips"].max()),
        last_decile=last,
        table_one=_made(table_one, lambda table: _table_one(table, profile, last)),
        decile_grids=[
            _decile_grid(deciles, fold, "all", drift_seconds),
            _decile_grid(deciles, fold, "correct", drift_seconds),
        ],
        verdict=verdict,
        predictor_tables=[]
        if predictors is None
        else [
            _predictor_table(predictors, fold, profile, "correct", last),
            _predictor_table(predictors, fold, profile, "all", last),
        ],
        auroc_grid=_made(predictors, lambda table: _auroc_grid(table, fold)),
        calibration_errors=_made(
            calibration_errors,
            lambda table: _table("calibration_errors", _of(table, fold=fold), _CALIBRATED),
        ),
        calibration=_made(
            calibration,
            lambda table: _table("calibration", _of(table, fold=fold, profile=profile), _BINS),
        ),
        routing_summary=routing_summary,
        routing=_made(routing, lambda table: _routing_curves(table, profile)),
        routing_choices=_made(
            routing_choices,
            lambda table: _table("routing_choices", _of(table, profile=profile), _CHOICES),
        ),
        routing_baselines=_made(
            routing_baselines,
            lambda table: _table("routing_baselines", _of(table, profile=profile), _BASELINES),
        ),
        overlap=_made(overlap, lambda table: _table("overlap", _with_reasons(table), _OVERLAP)),
        systematic=_made(
            systematic, lambda table: _table("systematic", _with_reasons(table), _SYSTEMATIC)
        ),
        vulnerable=_made(vulnerable, lambda table: _table("vulnerable", table, _VULNERABLE)),
        thumbnails=[_data(thumbnail) for thumbnail in thumbnails],
        per_class=_made(per_class, lambda table: _table("per_class", table, _CLASSES)),
        ideal_agreement=ideal_agreement,
        accuracies=[] if table_one is None else table_one.to_dict("records"),
        words=_glossary(settings, last),
        energy=_energy(settings),
        reproduce=reproduce,
        settings=list(_flatten(settings)),
        stages=stages,
        versions=_versions(stages),
        script=Markup(script),
        script_hash=Markup(script_hash),
    )
    write_bytes(Path(path), page.encode())
    return Path(path)


def _made(table: pd.DataFrame | None, make: Callable[[pd.DataFrame], Any]) -> Any:
    return None if table is None else make(table)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _rate(percent: float) -> str:
    return "-" if percent != percent else f"{percent:.2f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _decimals(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _signed_percent(percent: float) -> str:
    return f"{percent:+.2f}"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _plain(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float):  # NumPy's float64 is one
        return f"{value:,.0f}" if 1000 <= abs(value) < np.inf else f"{value:.3g}"
    return str(value)


@dataclass(frozen=True)
class _Column:
    """How a column is headed and its values are written."""

    header: str
    show: Callable[[Any], str] = _plain
    optional: bool = False


_REASON = _Column("undefined because", optional=True)
_PREDICTED = {
    "predictor": _Column("predictor", _words),
    "auroc": _Column("AUROC", _decimals),
    "auroc_difference": _Column("difference to {reference}", _signed),
    "auroc_within_class": _Column("AUROC within classes", _decimals),
    "average_precision": _Column("average precision", _decimals),
    "spearman": _Column("Spearman's rho", _decimals),
    "d1": _Column("D1 (%)", _percent),
    "d10": _Column("D{last} (%)", _percent),
    "forward_passes": _Column("forward passes"),
    "seconds_per_image": _Column("ms an image", _milliseconds, optional=True),
    "reason": _REASON,
}
_CALIBRATED = {
    "profile": _Column("profile"),
    "predictor": _Column("predictor", _words),
    "samples": _Column("samples"),
    "predicted": _Column("predicted (%)", _percent),
    "observed": _Column("observed (%)", _percent),
    "expected_calibration_error": _Column("calibration error (%)", _percent),
    "auroc": _Column("AUROC", _decimals, optional=True),
}
_BINS = {
    "predictor": _Column("predictor", _words),
    "bin": _Column("bin"),
    "low": _Column("from (%)", _percent),
    "high": _Column("to (%)", _percent),
    "samples": _Column("samples"),
    "predicted": _Column("predicted (%)", _percent),
    "observed": _Column("observed (%)", _percent),
}
_CHOICES = {
    "router": _Column("router"),
    "kind": _Column("kind"),
    "threshold": _Column("threshold"),
    "target": _Column("validation target (%)", _percent),
    "validation_accuracy": _Column("reached there (%)", _percent),
    "fraction": _Column("routed (%)", _percent),
    "accuracy": _Column("accuracy (%)", _percent),
    "given_up": _Column("given up (%)", _percent),
    "energy": _Column("energy", _decimals),
    "saved": _Column("energy saved (%)", _percent),
}
_BASELINES = {
    "name": _Column("without routing"),
    "accuracy": _Column("accuracy (%)", _percent),
    "energy": _Column("energy", _decimals),
}
_OVERLAP = {
    "first": _Column("first"),
    "second": _Column("second"),
    "jaccard": _Column("failing samples in common (Jaccard)", _decimals),
    "jaccard_chance": _Column("expected by chance", _decimals),
    "jaccard_margin": _Column("expected from the margin alone", _decimals),
    "explained": _Column("part beyond chance that the margin explains", _decimals),
    "spearman": _Column("Spearman's rho of the shares of chips failed", _decimals),
    "spearman_given_margin": _Column("the same, given the margin", _decimals),
    "reason": _REASON,
}
_SYSTEMATIC = {
    "profile": _Column("profile"),
    "chips": _Column("chips"),
    "rate": _Column("failure rate (%)", _percent),
    "systematic": _Column("failures of samples that fail on most chips (%)", _percent),
    "systematic_expected": _Column("expected by chance (%)", _percent),
    "on_none": _Column("samples failing on no chip", _number),
    "on_some": _Column("on some", _number),
    "on_most": _Column("on most", _number),
    "on_all": _Column("on all", _number),
    "reason": _REASON,
}
_CLASSES = {
    "class_name": _Column("class"),
    "samples": _Column("samples"),
    "digital_accuracy": _Column("digital accuracy (%)", _percent),
    "analog_accuracy": _Column("analog accuracy (%)", _percent),
    "failures": _Column("failures, mean over chips"),
    "failure_rate": _Column("failure rate (%)", _percent),
    "mean_curvature": _Column("mean curvature"),
}
_VULNERABLE = {
    "fold": _Column("fold"),
    "index": _Column("index"),
    "class_name": _Column("class"),
    "digital_prediction": _Column("digital prediction"),
    "analog_prediction": _Column("first chip's prediction"),
    "curvature": _Column("curvature"),
    "margin": _Column("margin"),
    "flip_probability": _Column("flip probability (%)", _percent),
    "failed_share": _Column("fails on chips (%)", _percent),
}
_TABLE_ONE = {
    "fold": _Column("fold"),
    "of": _Column("of"),
    "d1": _Column("D1", _rate),
    "paper_d1": _Column("paper", _rate, optional=True),
    "d1_difference": _Column("difference", _signed_percent, optional=True),
    "d10": _Column("D{last}", _rate),
    "paper_d10": _Column("paper", _rate, optional=True),
    "d10_difference": _Column("difference", _signed_percent, optional=True),
    "trend_z": _Column("trend, z", _rate),
    "trend_p": _Column("p", _p_value),
}


def _table(
    name: str, table: pd.DataFrame, columns: Mapping[str, _Column], **in_headers: object
) -> dict[str, Any]:
    """Headers, and rows of cells: text, note (interval or range) and the number to sort by.

    `x_low` and `x_high` stand under `x` as its interval; where there is none, `x_min` and `x_max`,
    if they differ, or `x_expected`.
    """
    if missing := [one for one in columns if one not in table and not columns[one].optional]:
        raise ValueError(f"the report's {name} lacks the columns {', '.join(missing)}")
    there = {one: column for one, column in columns.items() if one in table}
    numbers = {one: _is_number(table[one]) for one in there}
    rows = [
        [
            {
                "text": _text(row[one], column.show),
                "note": _note(row, one, column.show) if numbers[one] else "",
                "number": _sort_key(row[one]) if numbers[one] else None,
            }
            for one, column in there.items()
        ]
        for row in table.to_dict("records")
    ]
    headers = [
        {"text": column.header.format(**in_headers), "number": numbers[one]}
        for one, column in there.items()
    ]
    return {"headers": headers, "rows": rows}


def _with_reasons(table: pd.DataFrame) -> pd.DataFrame:
    """Without the column of reasons why something is undefined, where nothing is."""
    return table if "reason" not in table or table["reason"].any() else table.drop(columns="reason")


def _text(value: Any, show: Callable[[Any], str]) -> str:
    return "-" if pd.isna(value) else show(value)


def _sort_key(value: Any) -> str:
    """As JavaScript reads it; empty for a missing value."""
    return "" if pd.isna(value) else repr(float(value)).replace("inf", "Infinity")


def _note(row: Mapping[Any, Any], name: str, show: Callable[[Any], str]) -> str:
    if (low := row.get(f"{name}_low")) is not None:
        return "" if pd.isna(low) else f"[{show(low)}, {show(row[f'{name}_high'])}]"
    if (expected := row.get(f"{name}_expected")) is not None:
        return "" if pd.isna(expected) else f"{show(expected)} expected"
    least, most = row.get(f"{name}_min"), row.get(f"{name}_max")
    return "" if least is None or not least < most else f"{show(least)} to {show(most)}"


def _is_number(column: pd.Series) -> bool:
    return is_numeric_dtype(column) and not is_bool_dtype(column)


def _of(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """The rows whose columns have these values, if any: not everything is defined for every run."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def _table_one(table: pd.DataFrame, profile: str, last: int) -> dict[str, Any]:
    rows = []
    for row in select(table, profile=profile).to_dict("records"):
        for denominator, name in DENOMINATORS.items():
            trend = "trend" if denominator == "all" else f"{denominator}_trend"
            one = {"fold": row["fold"], "of": name}
            for end in ("d1", "d10"):
                for suffix in ("", "_low", "_high"):
                    one[f"{end}{suffix}"] = row[f"{end}_of_{denominator}{suffix}"]
                one[f"paper_{end}"] = row[f"paper_{end}"]
                one[f"{end}_difference"] = one[end] - row[f"paper_{end}"]
            rows.append(one | {"trend_z": row[f"{trend}_z"], "trend_p": row[f"{trend}_p"]})
    shown = pd.DataFrame(rows)
    paper = bool(shown["paper_d1"].notna().any())
    if not paper:
        shown = shown.drop(columns=["paper_d1", "d1_difference", "paper_d10", "d10_difference"])
    return _table("table_one", shown, _TABLE_ONE, last=last) | {"paper": paper}


def _decile_grid(
    deciles: pd.DataFrame, fold: str, denominator: Denominator, drift_seconds: float | None
) -> dict[str, Any]:
    shown = select(rates(deciles, denominator), fold=fold)
    profiles = list(shown["profile"].unique())
    grid = shown.pivot(index="decile", columns="profile", values="rate")[profiles]
    failures = shown.groupby("profile")["failures"].sum()
    return {
        "caption": caption(shown, fold, denominator, drift_seconds),
        "denominator": DENOMINATORS[denominator],
        "profiles": profiles,
        "rows": [(f"D{decile}", list(row)) for decile, row in grid.iterrows()],
        "failures": [f"{failures[name]:,}" for name in profiles],
        "highest": max(shown["rate"].max(), 1e-9),  # the length of the longest bar
    }


def _predictor_table(
    predictors: pd.DataFrame, fold: str, profile: str, denominator: Denominator, last: int
) -> dict[str, Any]:
    """The best first; `undefined` says why, where no predictor has an AUROC."""
    rows = select(predictors, fold=fold, profile=profile, denominator=denominator)
    name = DENOMINATORS[denominator]
    first = rows.iloc[0]
    if rows["auroc"].isna().all():
        return {"denominator": name, "undefined": first["reason"]}
    rows = rows.sort_values("auroc", ascending=False, kind="stable", na_position="last")
    rows = _with_reasons(rows)
    table = _table("predictors", rows, _PREDICTED, reference=first["reference"], last=last)
    chips = "1 chip" if first["chips"] == 1 else f"{first['chips']} chips together"
    return table | {
        "denominator": name,
        "undefined": "",
        "caption": f"{profile}, {fold} fold, among {first['samples']:,} {name}: "
        f"{first['failures']:,} failures on {chips}. D1 and D{last}: failure rate where the score "
        "is lowest and highest, cut by each score among the samples that take part; Table I cuts "
        "by curvature among all samples.",
    }


def _auroc_grid(predictors: pd.DataFrame, fold: str) -> dict[str, Any] | None:
    """AUROC of every predictor and profile; None where it is defined under no profile."""
    rows = select(predictors, fold=fold, denominator="correct")
    defined = rows[rows["auroc"].notna()]
    if defined.empty:
        return None
    profiles = [name for name in rows["profile"].unique() if (defined["profile"] == name).any()]
    grid = rows.pivot(index="predictor", columns="profile", values="auroc")
    grid = grid.loc[rows["predictor"].unique(), profiles]
    best = grid.max()
    return {
        "profiles": profiles,
        "left_out": [name for name in rows["profile"].unique() if name not in profiles],
        "rows": [
            (
                _words(str(name)),
                [(_text(row[one], _decimals), bool(row[one] == best[one])) for one in profiles],
            )
            for name, row in grid.iterrows()
        ],
    }


def _routing_curves(routing: pd.DataFrame, profile: str) -> dict[str, Any]:
    """Accuracy of each router at a few shares, from the nearest point of its curve."""
    rows = {}
    curves = select(routing, profile=profile).groupby("router", sort=False)
    for number, (router, curve) in enumerate(curves):
        nearest = [(curve["fraction"] - share / 100).abs().idxmin() for share in _SHARES]
        if number == 0:
            for name in ("oracle", "random"):
                rows[name] = curve.loc[nearest, f"{name}_accuracy"].to_list()
        rows[str(router)] = curve.loc[nearest, "accuracy"].to_list()
    return {
        "shares": _SHARES,
        "rows": [(name, [_percent(value) for value in values]) for name, values in rows.items()],
    }


def _glossary(settings: Mapping[str, Any], last: int) -> list[tuple[str, str]]:
    """Terms and what they mean, with the settings of the chips where they are there."""
    adc = "each tile's outputs are quantised by a converter"
    wnoise = "Gaussian noise of the weights"
    pcm = "phase-change memory: programming noise, drift and read noise"
    if simulate := settings.get("simulate"):
        adc += _adc(simulate["adc"], simulate["calibration"])
        wnoise += _weight_noise(simulate["wnoise"])
        pcm += _phase_change(simulate["pcm"])
    return [
        (
            "analog-only failure",
            "a sample that the digital model gets right and the analog chip wrong.",
        ),
        (
            f"decile, D1 to D{last}",
            f"one of {last} equal parts of the samples in the order of a score, curvature unless "
            "said otherwise; D1 has the lowest scores.",
        ),
        ("ideal", "a chip without any of the following; a + joins those that a chip has."),
        ("adc", f"{adc}."),
        ("wnoise", f"{wnoise}."),
        ("pcm", f"{pcm}."),
        (
            "curvature",
            "how much the gradient of the loss by the input changes when the input moves a small "
            "step in random directions: the mean length of the change (Eq. 1 of the paper).",
        ),
        (
            "hessian vector, hessian trace, gauss newton",
            "the same from exact second derivatives: mean length of H v, trace of H, and trace of "
            "the Gauss-Newton matrix, which takes the network as linear around the input.",
        ),
        (
            "gradient norm, loss, el2n",
            "length of the gradient of the loss by the input; the loss; length of the difference "
            "between the predicted probabilities and the label's (one-hot).",
        ),
        (
            "entropy, least confidence, margin",
            "entropy of the predicted probabilities; 1 less the largest of them; the largest logit "
            "less the second largest, a small one counting as fragile. Label margin: the label's "
            "logit less the largest other.",
        ),
        (
            "label free",
            "with the model's own prediction in place of the label, as where no label is known.",
        ),
        (
            "flip probability",
            "the physical predictor: Phi(-(margin at mean weights) / sd), with sd the margin's "
            "standard deviation over chips by linear theory; no chip is run. Margin at mean "
            "weights: that of the digital prediction, were the weights what a chip's are on "
            "average. Unshifted: with the digital margin in its place.",
        ),
        (
            "margin + curvature, all scores",
            "cross-validated logistic models of these two scores, and of all.",
        ),
        (
            "AUROC",
            "probability that a failure has a higher score than a survivor; 0.5 is chance. Within "
            "classes: of the score's rank among the samples of its class, so that differences "
            "between classes do not count.",
        ),
    ]


def _adc(adc: Mapping[str, Any], images: int) -> str:
    if adc["range"] != "calibrated":
        return f"; {adc['bits']} bits, range {adc['range']:g}"
    covered = "" if adc["percentile"] == 100 else f" to percentile {adc['percentile']:g}"
    return f"; {adc['bits']} bits, range calibrated{covered} on {images:,} training images"


def _weight_noise(noise: Mapping[str, Any]) -> str:
    growing = "" if noise["kind"] == "constant" else ", growing with the weight as PCM's read noise"
    drawn = "once for each chip" if noise["drawn"] == "per_chip" else "anew at each operation"
    return f"; sigma = {noise['sigma']:g} of a tile's largest weight{growing}, drawn {drawn}"


def _phase_change(pcm: Mapping[str, Any]) -> str:
    levels = [
        f"{_words(name)} x {pcm[name]:g}"
        for name in ("programming_noise", "drift", "read_noise")
        if pcm[name] != 1
    ]
    scaled = f", with {', '.join(levels)}" if levels else ""
    compensation = pcm["compensation"]
    compensated = (
        "not compensated" if compensation is None else f"compensated ({_words(compensation)})"
    )
    return (
        f"{scaled}; read t_inference = {pcm['t_inference']:,g} s after programming; drift is "
        f"{compensated}"
    )


def _energy(settings: Mapping[str, Any]) -> str:
    """What one inference costs; in units of a digital one where the settings do not say."""
    energy = settings.get("analyse", {}).get("energy")
    if energy is None:
        return "a digital inference costs 1"
    return (
        f"a digital inference costs {energy['digital']:g}, an analog one {energy['analog']:g}, "
        "as the settings assume"
    )


def _picture(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"no figure at {path}; draw it before the report")
    kind = max((kind for kind in _FIGURES if path.name.startswith(kind)), key=len, default="")
    section, text = _FIGURES.get(kind, ("", _words(path.stem)))
    return {"section": section, "caption": text, "data": _data(path.read_bytes())}


def _data(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _versions(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Package and version; where stages differ, each version with the stages that ran on it."""
    used: dict[str, dict[str, list[str]]] = {}
    for stage in stages:
        for package, version in stage["versions"].items():
            used.setdefault(package, {}).setdefault(str(version), []).append(stage["name"])
    return [
        (
            package,
            next(iter(by_version))
            if len(by_version) == 1
            else ", ".join(f"{version} ({', '.join(at)})" for version, at in by_version.items()),
        )
        for package, by_version in sorted(used.items())
    ]
