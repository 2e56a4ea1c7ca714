"""The columns of a report's tables: what heads them and how their values are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bridge.report.tables import formats


@dataclass(frozen=True)
class Column:
    """How a column is headed and its values are written."""

    header: str
    show: Callable[[Any], str] = formats.plain
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
    "predictor": Column("predictor", formats.words),
    "auroc": Column("AUROC", formats.decimals),
    "auroc_difference": Column("difference to {reference}", formats.signed),
    "auroc_within_class": Column("AUROC within classes", formats.decimals),
    "average_precision": Column("average precision", formats.decimals),
    "spearman": Column("Spearman's rho", formats.decimals),
    "d1": Column("D1 (%)", formats.percent),
    "d10": Column("D{last} (%)", formats.percent),
    "forward_passes": Column("cost in forward passes"),
    "seconds_per_image": Column("ms an image", formats.milliseconds, optional=True),
    "reason": _REASON,
}
_CALIBRATED = {
    "profile": Column("profile"),
    "predictor": Column("predictor", formats.words),
    "samples": Column("samples"),
    "predicted": Column("predicted (%)", formats.percent),
    "observed": Column("observed (%)", formats.percent),
    "expected_calibration_error": Column("calibration error (%)", formats.percent),
    "auroc": Column("AUROC", formats.decimals, optional=True),
}
_BINS = {
    "predictor": Column("predictor", formats.words),
    "bin": Column("bin"),
    "low": Column("from (%)", formats.percent),
    "high": Column("to (%)", formats.percent),
    "samples": Column("samples"),
    "predicted": Column("predicted (%)", formats.percent),
    "observed": Column("observed (%)", formats.percent),
}
_CHOICES = {
    "router": Column("router"),
    "kind": Column("kind"),
    "threshold": Column("threshold"),
    "target": Column("validation target (%)", formats.percent),
    "validation_accuracy": Column("reached there (%)", formats.percent),
    "fraction": Column("routed (%)", formats.percent),
    "accuracy": Column("accuracy (%)", formats.percent),
    "given_up": Column("given up (%)", formats.percent),
    "energy": Column("energy", formats.decimals),
    "saved": Column("energy saved (%)", formats.percent),
}
_GUARANTEES = {
    "router": Column("router"),
    "level": Column("level (%)", formats.percent),
    "threshold": Column("threshold"),
    "failing": Column("stays and fails (%)", formats.percent),
    "fraction": Column("routed (%)", formats.percent),
    "accuracy": Column("accuracy (%)", formats.percent),
    "energy": Column("energy", formats.decimals),
    "saved": Column("energy saved (%)", formats.percent),
}
_BASELINES = {
    "name": Column("without routing"),
    "accuracy": Column("accuracy (%)", formats.percent),
    "energy": Column("energy", formats.decimals),
}
_OVERLAP = {
    "first": Column("first"),
    "second": Column("second"),
    "jaccard": Column("failing samples in common (Jaccard)", formats.decimals),
    "jaccard_chance": Column("expected by chance", formats.decimals),
    "jaccard_margin": Column("expected from the margin alone", formats.decimals),
    "explained": Column("part beyond chance that the margin explains", formats.decimals),
    "spearman": Column("Spearman's rho of the shares of chips failed", formats.decimals),
    "spearman_given_margin": Column("the same, given the margin", formats.decimals),
    "reason": _REASON,
}
_SYSTEMATIC = {
    "profile": Column("profile"),
    "chips": Column("chips"),
    "rate": Column("failure rate (%)", formats.percent),
    "systematic": Column("failures of samples that fail on most chips (%)", formats.percent),
    "systematic_expected": Column("expected by chance (%)", formats.percent),
    "on_none": Column("samples failing on no chip", formats.number),
    "on_some": Column("on some", formats.number),
    "on_most": Column("on most", formats.number),
    "on_all": Column("on all", formats.number),
    "reason": _REASON,
}
_CLASSES = {
    "class_name": Column("class"),
    "samples": Column("samples"),
    "digital_accuracy": Column("digital accuracy (%)", formats.percent),
    "analog_accuracy": Column("analog accuracy (%)", formats.percent, optional=True),
    "failures": Column("failures, mean over chips", optional=True),
    "failure_rate": Column("failure rate (%)", formats.percent, optional=True),
    "mean_curvature": Column("mean curvature"),
    "taken_for": Column("failures taken for it, mean over chips", optional=True),
}
_ACCURACY = {
    "fold": Column("fold"),
    "samples": Column("samples"),
    "digital_accuracy": Column("digital accuracy (%)", formats.percent),
    "of_correct": Column("median curvature of the digitally correct"),
    "of_wrong": Column("of the digitally wrong"),
    "last_decile": Column("highest tenth of all above"),
}
_SCORE_DECILES = {
    "decile": Column("decile", "D{}".format),
    "samples": Column("samples"),
    "low": Column("curvature from"),
    "high": Column("to"),
    "digital_accuracy": Column("digital accuracy (%)", formats.percent),
    "median_margin": Column("median margin"),
}
_SCORE_COSTS = {
    "predictor": Column("score", formats.words),
    "forward_passes": Column("cost in forward passes"),
    "seconds_per_image": Column("ms an image", formats.milliseconds, optional=True),
    "spearman": Column("Spearman's rho with curvature", formats.decimals),
    "spearman_of_correct": Column("among the digitally correct", formats.decimals),
}
_HIGHEST = {
    "fold": Column("fold"),
    "index": Column("index", str),  # a name, as in the files: no thousands are separated
    "path": Column("file", optional=True),
    "class_name": Column("class"),
    "curvature": Column("curvature"),
    "loss": Column("loss"),
    "margin": Column("margin"),
}
_VULNERABLE = {
    "fold": Column("fold"),
    "index": Column("index", str),  # a name, as in the files: no thousands are separated
    "path": Column("file", optional=True),
    "class_name": Column("class"),
    "digital_prediction": Column("digital prediction"),
    "analog_prediction": Column("first chip's prediction"),
    "curvature": Column("curvature"),
    "margin": Column("margin"),
    "flip_probability": Column("flip probability (%)", formats.percent, optional=True),
    "failed_share": Column("fails on chips (%)", formats.percent),
}
PRODUCTS = {
    "layer": Column("layer"),
    "operator": Column("product", formats.words),
    "macs": Column("multiply-accumulates"),
    "share": Column("share (%)", formats.small_percent),
    "tiles": Column("tiles"),
    "reason": Column("digital because"),
}
TABLE_ONE = {
    "profile": Column("profile", optional=True),
    "fold": Column("fold"),
    "of": Column("of"),
    "d1": Column("D1", formats.rate),
    "paper_d1": Column("paper", formats.rate, optional=True),
    "d1_difference": Column("difference", formats.signed_percent, optional=True),
    "d10": Column("D{last}", formats.rate),
    "paper_d10": Column("paper", formats.rate, optional=True),
    "d10_difference": Column("difference", formats.signed_percent, optional=True),
    "trend_z": Column("trend, z", formats.rate),
    "trend_p": Column("p", formats.p_value),
}

LAYOUTS = {
    "calibration_errors": Layout(_CALIBRATED, ("fold",)),
    "calibration": Layout(_BINS, ("fold", "profile")),
    "routing_choices": Layout(_CHOICES, ("profile",)),
    "routing_guarantees": Layout(_GUARANTEES, ("profile",)),
    "routing_baselines": Layout(_BASELINES, ("profile",)),
    "overlap": Layout(_OVERLAP),
    "systematic": Layout(_SYSTEMATIC),
    "vulnerable": Layout(_VULNERABLE),
    "per_class": Layout(_CLASSES),
    "accuracy": Layout(_ACCURACY),
    "score_deciles": Layout(_SCORE_DECILES, ("fold",)),
    "score_costs": Layout(_SCORE_COSTS),
    "highest": Layout(_HIGHEST),
}
"""The tables of `contents.RunTables` that are shown as they stand."""
