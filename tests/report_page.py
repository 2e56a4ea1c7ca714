"""Hand-made tables of the report page, and a page with every section."""

import io
from dataclasses import fields

import numpy as np
import pandas as pd
from PIL import Image

from bridge.chips.profiles import FULL_PROFILE as FULL
from bridge.report.page.contents import ReportContents, RunTables
from bridge.report.page.page import write_report

NAN = float("nan")
ATTACK = "<script>alert('x')</script>"


def png(width=32):
    file = io.BytesIO()
    Image.fromarray(np.arange(width * width, dtype=np.uint8).reshape(width, width)).save(
        file, "png"
    )
    return file.getvalue()


def deciles():
    """Two bins of 20 samples: none fails in the first, a quarter in the second."""
    rows = []
    for profile in ("ideal", FULL):
        for decile in (1, 2):
            rate = 0.25 * (decile == 2) * (profile == FULL)
            row = {"fold": "test", "profile": profile, "decile": decile, "chips": 1}
            row |= {"samples": 20, "failures": int(20 * rate), "tied": 0}
            for denominator in ("all", "correct"):
                for suffix in ("", "_min", "_max"):
                    row[f"rate_of_{denominator}{suffix}"] = rate
                row[f"rate_of_{denominator}_low"] = rate / 2
                row[f"rate_of_{denominator}_high"] = rate * 2
            rows.append(row)
    return pd.DataFrame(rows)


def predictors():
    """The margin is best, the constant undefined; under ideal nothing is defined."""
    rows = []
    for denominator in ("correct", "all"):
        for profile in ("ideal", FULL):
            for name, auroc in (("curvature", 0.7), ("margin", 0.9), ("a_constant", NAN)):
                value = NAN if profile == "ideal" else auroc
                row = {"fold": "test", "profile": profile, "predictor": name}
                row |= {"denominator": denominator, "chips": 1, "samples": 40}
                row |= {"failures": 0 if profile == "ideal" else 5, "reference": "margin"}
                for measure in ("auroc", "average_precision", "spearman", "auroc_difference"):
                    row[measure] = value - (0.9 if measure == "auroc_difference" else 0)
                    row[f"{measure}_low"] = row[measure] - 0.05
                    row[f"{measure}_high"] = row[measure] + 0.05
                row |= {"d1": 0.0, "d10": 0.25, "auroc_within_class": value}
                row |= {"forward_passes": 22.0, "seconds_per_image": 0.013}
                row["reason"] = "" if value == value else "the score is constant"
                rows.append(row | ({"reason": "no sample fails"} if profile == "ideal" else {}))
    return pd.DataFrame(rows)


def table_one():
    row = {"fold": "test", "profile": FULL, "chips": 1, "samples": 40}
    row |= {"digital_accuracy": 90.0, "trend_z": 3.0, "trend_p": 0.0002}
    row |= {"correct_trend_z": 2.0, "correct_trend_p": 0.0452}
    row |= {"paper_d1": 1.34, "paper_d10": 13.75}
    for suffix in ("", "_low", "_high", "_min", "_max"):
        row[f"analog_accuracy{suffix}"] = 80.0
        for denominator in ("all", "correct"):
            row[f"d1_of_{denominator}{suffix}"] = 0.0
            row[f"d10_of_{denominator}{suffix}"] = 25.0
    return pd.DataFrame([row, row | {"profile": "ideal", "paper_d1": NAN, "paper_d10": NAN}])


def systematic():
    row = {"profile": "pcm", "chips": 3, "samples": 1250, "rate": 0.2, "reason": ""}
    row |= {"systematic": 0.75, "systematic_low": 0.5, "systematic_high": 0.875}
    row |= {"on_none": 1200, "on_some": 30, "on_most": 15, "on_all": 5}
    row |= {"on_none_expected": 1100.25, "on_some_expected": 99.0, "on_most_expected": 50.0}
    return pd.DataFrame([row | {"on_all_expected": 0.75, "systematic_expected": 0.104}])


def coverage():
    """A hundred multiply-accumulates: 90 on tiles, 10 of two products that stay digital."""
    rows = [("stem", "convolution", "stem.weight", 1, 60, 2, "analog", "")]
    rows += [("depth", "convolution", "depth.weight", 1, 7, 0, "digital", "grouped")]
    rows += [("mixer", "matmul", "", 2, 3, 0, "digital", "two activations")]
    rows += [(ATTACK, "linear", "head.weight", 1, 30, 1, "analog", "")]
    names = ["layer", "operator", "weights", "calls", "macs", "tiles", "place", "reason"]
    return pd.DataFrame(rows, columns=names)


def sections():
    """Every optional input, small."""
    here = {"fold": "test", "profile": FULL}
    probability = here | {"predictor": "flip_probability"}
    bins = {"low": [0.0, 0.5], "high": [0.5, 1.0], "samples": [38, 2], "predicted": [0.1, 0.6]}
    bins |= {"observed": [0.1, 0.5], "observed_low": [0.0, 0.1], "observed_high": [0.2, 0.9]}
    error = probability | {"samples": 40, "predicted": 0.125, "observed": 0.12}
    error |= {"observed_low": 0.05, "observed_high": 0.25}
    curve = {"fraction": [0.0, 0.5, 1.0], "accuracy": [0.8, 0.88, 0.9]}
    curve |= {"random_accuracy": [0.8, 0.85, 0.9], "oracle_accuracy": [0.8, 0.9, 0.9]}
    choice = here | {"router": "analog margin", "kind": "analog", "target": 0.89}
    choice |= {"threshold": float("inf"), "validation_accuracy": 0.89, "fraction": 0.2}
    choice |= {"accuracy": 0.885, "accuracy_min": 0.88, "accuracy_max": 0.89}
    guarantee = here | {"router": "analog margin", "kind": "analog", "level": 0.01}
    guarantee |= {"threshold": -0.25, "threshold_min": float("-inf"), "threshold_max": 0.5}
    for name, low, middle, high in (
        *(("failing", 0.0, 0.0075, 0.02), ("fraction", 0.125, 0.5, 1.0)),
        ("accuracy", 0.875, 0.89, 0.9),
    ):
        guarantee |= {name: middle, f"{name}_min": low, f"{name}_max": high}
    shown = ["fold", "index", "class_name", "digital_prediction", "analog_prediction"]
    shown += ["curvature", "margin", "flip_probability", "failed_share"]
    return {
        "predictors": predictors(),
        "comparison": "The margin is enough.",
        "table_one": table_one(),
        "calibration": pd.DataFrame({"bin": [1, 2]} | bins).assign(**probability),
        "calibration_errors": pd.DataFrame([error | {"expected_calibration_error": 0.013}]),
        "routing": pd.DataFrame(curve).assign(router="analog margin", kind="analog", **here),
        "routing_choices": pd.DataFrame([choice | {"energy": 0.3, "saved": 0.7, "given_up": 0.01}]),
        "routing_guarantees": pd.DataFrame([guarantee | {"energy": 0.6, "saved": 0.4}]),
        "routing_baselines": pd.DataFrame(
            {"profile": FULL, "name": ["always analog"], "accuracy": [0.8], "energy": [0.1]}
        ),
        "coverage": coverage(),
        "overlap": pd.DataFrame(
            {
                "first": ["pcm", "ideal"],
                "second": ["adc", "adc"],
                "pairs": [4, 0],
                "jaccard": [0.345678, NAN],
                "jaccard_low": [0.2, NAN],
                "jaccard_high": [0.5, NAN],
                "jaccard_chance": [0.1, NAN],
                "jaccard_margin": [0.2, NAN],
                "explained": [-0.5, NAN],
                "spearman": [0.6, NAN],
                "spearman_low": [0.5, NAN],
                "spearman_high": [0.7, NAN],
                "spearman_given_margin": [0.55, NAN],
                "reason": ["", "no failures of ideal"],
            }
        ),
        "systematic": systematic(),
        "per_class": pd.DataFrame(
            {
                "class_name": ["10", "9", ATTACK],
                "samples": [100, 20, 3],
                "digital_accuracy": [1.0, 0.5, 0.0],
                "analog_accuracy": [0.9, 0.5, 0.0],
                "failures": [10.0, 0.5, 0.0],
                "failure_rate": [0.1, 0.05, NAN],
                "mean_curvature": [2.0, 10.0, 1e-7],
                "taken_for": [0.5, 9.0, 1.0],
            }
        ),
        "vulnerable": pd.DataFrame(
            [
                ["test", 7, "cat", "cat", "dog", 3.5, 0.1, 0.48, 1.0],
                ["test", 19, "dog", "dog", "cat", 12.25, 0.05, 0.49, 0.5],
                ["test", 100, "ant", "ant", "ant", 0.5, 2.0, 0.01, 0.0],
            ],
            columns=shown,
        ),
        "thumbnails": [png()] * 3,
        "reproduce": ["python -m experiments run digits", "echo '<b>'"],
    }


def write(path, **changes):
    """The page of these contents; a change may be a field of RunTables or of ReportContents."""
    given = {"title": "t", "settings": {}, "stages": [], "confidence": 0.95, "deciles": deciles()}
    given |= changes
    tables = {one.name: given.pop(one.name) for one in fields(RunTables) if one.name in given}
    return write_report(path, ReportContents(tables=RunTables(**tables), **given))


def write_full(folder):
    """A page with every section."""
    names = ("verdict", "drift", "figure_one", "predictors", "calibration", "routing", "mine_own")
    figures = [folder / f"{name}.png" for name in names]
    (folder / "figure_one.csv").write_text("decile\n1\n")
    for figure in figures:
        figure.write_bytes(png(64))
    stage = {"name": "score", "seconds": 1.5, "device": ATTACK, "versions": {"jax": "0.10"}}
    return write(
        folder / "report.html",
        **sections(),
        title=ATTACK,
        settings={"data": {"class_names": [ATTACK, "cat"]}, "folder": "/a/<b>"},
        stages=[stage, stage | {"name": "chips", "versions": {"jax": "0.11"}}],
        figures=figures,
        commands={
            "drift": "run drift",
            "remedies": "run remedies",
            "compensate": "compensate it",
            "predictors.csv": ATTACK,
        },
        drift="97 % at 20 s",
        drift_seconds=20.0,
        uncompensated=True,
        ideal_agreement=0.9984,
    )
