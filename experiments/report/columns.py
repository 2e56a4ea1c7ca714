"""The columns of a report's tables: what heads them and how their values are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.tables.formats import (
    decimals,
    milliseconds,
    number,
    p_value,
    percent,
    plain,
    rate,
    signed,
    signed_percent,
    words,
)


@dataclass(frozen=True)
class Column:
    """How a column is headed and its values are written."""

    header: str
    show: Callable[[Any], str] = plain
    optional: bool = False
    """Whether a table may lack it."""


@dataclass(frozen=True)
class Layout:
    """How a table of the run is shown as it stands."""

    columns: Mapping[str, Column]
    one: tuple[str, ...] = ()
    """What is shown of one alone: fold, profile."""


_REASON = Column("undefined because", optional=True)
PREDICTED = {
    "predictor": Column("predictor", words),
    "auroc": Column("AUROC", decimals),
    "auroc_difference": Column("difference to {reference}", signed),
    "auroc_within_class": Column("AUROC within classes", decimals),
    "average_precision": Column("average precision", decimals),
    "spearman": Column("Spearman's rho", decimals),
    "d1": Column("D1 (%)", percent),
    "d10": Column("D{last} (%)", percent),
    "forward_passes": Column("forward passes"),
    "seconds_per_image": Column("ms an image", milliseconds, optional=True),
    "reason": _REASON,
}
_CALIBRATED = {
    "profile": Column("profile"),
    "predictor": Column("predictor", words),
    "samples": Column("samples"),
    "predicted": Column("predicted (%)", percent),
    "observed": Column("observed (%)", percent),
    "expected_calibration_error": Column("calibration error (%)", percent),
    "auroc": Column("AUROC", decimals, optional=True),
}
_BINS = {
    "predictor": Column("predictor", words),
    "bin": Column("bin"),
    "low": Column("from (%)", percent),
    "high": Column("to (%)", percent),
    "samples": Column("samples"),
    "predicted": Column("predicted (%)", percent),
    "observed": Column("observed (%)", percent),
}
_CHOICES = {
    "router": Column("router"),
    "kind": Column("kind"),
    "threshold": Column("threshold"),
    "target": Column("validation target (%)", percent),
    "validation_accuracy": Column("reached there (%)", percent),
    "fraction": Column("routed (%)", percent),
    "accuracy": Column("accuracy (%)", percent),
    "given_up": Column("given up (%)", percent),
    "energy": Column("energy", decimals),
    "saved": Column("energy saved (%)", percent),
}
_BASELINES = {
    "name": Column("without routing"),
    "accuracy": Column("accuracy (%)", percent),
    "energy": Column("energy", decimals),
}
_OVERLAP = {
    "first": Column("first"),
    "second": Column("second"),
    "jaccard": Column("failing samples in common (Jaccard)", decimals),
    "jaccard_chance": Column("expected by chance", decimals),
    "jaccard_margin": Column("expected from the margin alone", decimals),
    "explained": Column("part beyond chance that the margin explains", decimals),
    "spearman": Column("Spearman's rho of the shares of chips failed", decimals),
    "spearman_given_margin": Column("the same, given the margin", decimals),
    "reason": _REASON,
}
_SYSTEMATIC = {
    "profile": Column("profile"),
    "chips": Column("chips"),
    "rate": Column("failure rate (%)", percent),
    "systematic": Column("failures of samples that fail on most chips (%)", percent),
    "systematic_expected": Column("expected by chance (%)", percent),
    "on_none": Column("samples failing on no chip", number),
    "on_some": Column("on some", number),
    "on_most": Column("on most", number),
    "on_all": Column("on all", number),
    "reason": _REASON,
}
_CLASSES = {
    "class_name": Column("class"),
    "samples": Column("samples"),
    "digital_accuracy": Column("digital accuracy (%)", percent),
    "analog_accuracy": Column("analog accuracy (%)", percent),
    "failures": Column("failures, mean over chips"),
    "failure_rate": Column("failure rate (%)", percent),
    "mean_curvature": Column("mean curvature"),
}
_VULNERABLE = {
    "fold": Column("fold"),
    "index": Column("index"),
    "class_name": Column("class"),
    "digital_prediction": Column("digital prediction"),
    "analog_prediction": Column("first chip's prediction"),
    "curvature": Column("curvature"),
    "margin": Column("margin"),
    "flip_probability": Column("flip probability (%)", percent),
    "failed_share": Column("fails on chips (%)", percent),
}
TABLE_ONE = {
    "fold": Column("fold"),
    "of": Column("of"),
    "d1": Column("D1", rate),
    "paper_d1": Column("paper", rate, optional=True),
    "d1_difference": Column("difference", signed_percent, optional=True),
    "d10": Column("D{last}", rate),
    "paper_d10": Column("paper", rate, optional=True),
    "d10_difference": Column("difference", signed_percent, optional=True),
    "trend_z": Column("trend, z", rate),
    "trend_p": Column("p", p_value),
}

LAYOUTS = {
    "calibration_errors": Layout(_CALIBRATED, ("fold",)),
    "calibration": Layout(_BINS, ("fold", "profile")),
    "routing_choices": Layout(_CHOICES, ("profile",)),
    "routing_baselines": Layout(_BASELINES, ("profile",)),
    "overlap": Layout(_OVERLAP),
    "systematic": Layout(_SYSTEMATIC),
    "vulnerable": Layout(_VULNERABLE),
    "per_class": Layout(_CLASSES),
}
"""The tables of `contents.RunTables` that are shown as they stand."""
