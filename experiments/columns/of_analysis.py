"""The tables that the stage `analyse` leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from experiments.columns.column import (
    FRACTION,
    POINTS,
    Column,
    Table,
    correlation,
    count,
    fraction,
    over_chips,
    percent,
    positive,
    text,
    with_interval,
)
from experiments.columns.common import (
    CHIPS,
    CORRECT_SAMPLES,
    CURVE,
    DIGITAL_ACCURACY,
    ENERGY,
    ESTIMATES,
    FOLD,
    FOLD_OR_POOLED,
    FORWARD_PASSES,
    KIND,
    LABEL,
    LOSS,
    MARGIN,
    OVERLAP,
    PROFILE,
    REASON,
    ROUTER,
    SAMPLE,
    SAMPLES,
    SAVED,
    SYSTEMATIC,
)

_MADE = "bridge.report.tables"

DECILES: Mapping[str, Column] = {
    "decile": count("Bin of the score, 1 with the lowest; bins are of equal size.", 1),
    "chips": CHIPS,
    "samples": count("Samples of the bin."),
    "digitally_correct": CORRECT_SAMPLES,
    "analog_correct": count("Samples that a chip gets right, summed over chips."),
    "failures": count("Samples that fail analog-only, summed over chips."),
    "tied": count(
        "Samples whose score also occurs in another bin: only their index put them in this one."
    ),
    "score_low": Column("unit of the score", "Smallest score in the bin."),
    "score_high": Column("unit of the score", "Largest score in the bin."),
    **with_interval(
        "rate_of_all",
        fraction(
            "Analog-only failures over all samples of the bin, mean over chips; the interval is "
            "for other samples on other chips."
        ),
    ),
    **over_chips("rate_of_all", fraction("")),
    **with_interval(
        "rate_of_correct",
        fraction(
            "Analog-only failures over the samples of the bin that the digital model gets right, "
            "mean over chips; missing where there are none. The interval is for other samples on "
            "other chips."
        ),
    ),
    **over_chips("rate_of_correct", fraction("")),
}

COMPARED: Mapping[str, Column] = {
    "predictor": text("Score that predicts failure; with a plus a model of several scores."),
    "chips": CHIPS,
    "samples": count("Samples that take part."),
    "failures": count("Analog-only failures among them, summed over chips."),
    **with_interval(
        "auroc",
        fraction(
            "Probability that a sample that fails has a higher score than one that survives, mean "
            "over chips; 0.5 is chance."
        ),
    ),
    **with_interval(
        "average_precision",
        fraction("Mean precision at the rank of each failure, mean over chips."),
    ),
    **with_interval(
        "spearman", correlation("Spearman's rho of score and failure, mean over chips.")
    ),
    "d1": fraction(
        "Failure rate in the lowest bin of this score; margins with their sign changed."
    ),
    "d10": fraction("The same in the highest bin."),
    "auroc_within_class": fraction("AUROC of the score's rank among the samples of its class."),
    "reference": text("Score that auroc_difference compares with."),
    **with_interval("auroc_difference", correlation("auroc less that of the reference.")),
    "reason": REASON,
}
"""What `bridge.compare_predictors` tells of each score."""

_CORRECT_OR_ALL = text(
    "Samples that take part: those that the digital model gets right, or all.", "correct", "all"
)

PREDICTORS: Mapping[str, Column] = {
    "fold": FOLD,
    "profile": PROFILE,
    "denominator": _CORRECT_OR_ALL,
    **COMPARED,
    **with_interval(
        "added_difference",
        correlation(
            "AUROC of this model of several scores less that of the model without its last "
            "score; missing for other predictors."
        ),
    ),
    "forward_passes": FORWARD_PASSES,
}
"""What a run, and its student, tell of each score."""

_ENDS: Mapping[str, Column] = {
    name: one
    for of, which in (
        ("all", "all samples"),
        ("correct", "samples that the digital model gets right"),
    )
    for end, where in (("d1", "lowest"), ("d10", "highest"))
    for name, one in {
        **with_interval(
            f"{end}_of_{of}",
            percent(f"Analog-only failures over the {which} of the bin of {where} curvature."),
        ),
        **over_chips(f"{end}_of_{of}", percent("")),
        f"{end}_of_{of}_minus_paper": Column(
            POINTS,
            f"{end}_of_{of} less paper_{end}; missing where the paper has no such row.",
            -100.0,
            100.0,
        ),
    }.items()
}

TABLE_ONE: Mapping[str, Column] = {
    "fold": FOLD_OR_POOLED,
    "profile": PROFILE,
    "chips": CHIPS,
    "samples": SAMPLES,
    "failures": count("Samples that fail analog-only, mean over chips."),
    "digital_accuracy": percent("Accuracy of the digital model."),
    "analog_accuracy": percent("Accuracy of the chips, mean over chips."),
    **over_chips("analog_accuracy", percent("")),
    **_ENDS,
    "trend_z": Column("", "z of the trend of failures over the bins, of all samples."),
    "trend_p": Column("", "Two-sided p-value of trend_z.", 0.0, 1.0),
    "correct_trend_z": Column("", "The same of the samples that the digital model gets right."),
    "correct_trend_p": Column("", "Two-sided p-value of correct_trend_z.", 0.0, 1.0),
    "paper_d1": percent("The paper's rate of the lowest decile; missing where it has none."),
    "paper_d10": percent("The paper's rate of the highest decile; missing where it has none."),
}

_PER_CLASS: Mapping[str, Column] = {
    "label": LABEL,
    "samples": count("Samples of the class in the test fold."),
    "digital_accuracy": DIGITAL_ACCURACY,
    "analog_accuracy": fraction("Accuracy of the chips, mean over chips; not without chips."),
    "failures": count("Samples that fail analog-only, mean over chips; not without chips."),
    "failure_rate": fraction(
        "failures over the samples that the digital model gets right; not without chips."
    ),
    "mean_curvature": positive("Mean curvature of the samples."),
    "taken_for": count(
        "Failures of other classes that the chips take for this one, mean over chips; not without "
        "chips, nor in tables of earlier versions."
    ),
}

_CHOSEN_FOLD = {"fold": FOLD, "profile": PROFILE, "router": ROUTER, "kind": KIND}

_ANALYSED = (
    Table(
        "deciles",
        ("deciles.csv", "deciles.parquet"),
        "A bin of curvature under one profile, in one fold.",
        f"{_MADE}.failure_rates.failure_tables",
        {"fold": FOLD_OR_POOLED, "profile": PROFILE, **DECILES},
    ),
    Table(
        "table_one",
        ("table_one.csv", "table_one.parquet"),
        "A profile in one fold; the command table-one puts runs together.",
        f"{_MADE}.failure_rates.table_one",
        {
            "model": text("Network, with its width; only from the command table-one."),
            "data": text("Data set; only from the command table-one."),
            "run": text("Name of the run's folder; only from the command table-one."),
            **TABLE_ONE,
        },
    ),
    Table(
        "predictors",
        ("predictors.csv", "predictors.parquet"),
        "A predictor of failure under one profile, in one fold.",
        f"{_MADE}.predictors.compare",
        PREDICTORS,
    ),
    Table(
        "calibration",
        ("calibration.csv", "calibration.parquet"),
        "A bin of predicted probability, among the digitally correct samples.",
        f"{_MADE}.predictors.calibrate",
        {
            "fold": FOLD,
            "profile": PROFILE,
            "predictor": text("Probability that is compared with what is observed."),
            "bin": count("Number of the bin, from 1; bins are of equal width.", 1),
            "low": fraction("Lower edge of the bin, not in it but for 0."),
            "high": fraction("Upper edge of the bin, in it."),
            "samples": count("Samples of the bin."),
            "predicted": fraction("Mean predicted probability."),
            **with_interval(
                "observed",
                fraction("Share of the samples that fail, mean over chips; missing without any."),
            ),
        },
    ),
    Table(
        "calibration_errors",
        ("calibration_errors.csv", "calibration_errors.parquet"),
        "A predicted probability under one profile, in one fold.",
        f"{_MADE}.predictors.calibrate",
        {
            "fold": FOLD,
            "profile": PROFILE,
            "predictor": text("Probability that is compared with what is observed."),
            "samples": count("Samples that the digital model gets right."),
            "predicted": fraction("Mean predicted probability."),
            **with_interval(
                "observed", fraction("Share of the samples that fail, mean over chips.")
            ),
            "expected_calibration_error": fraction(
                "Mean distance of observed from predicted, bins weighted by their samples."
            ),
        },
    ),
    Table(
        "routing",
        ("routing.csv", "routing.parquet"),
        "A fraction of the test samples that is routed to the digital model.",
        f"{_MADE}.routers.route",
        CURVE,
    ),
    Table(
        "routing_choices",
        ("routing_choices.csv", "routing_choices.parquet"),
        "A router under one profile, its threshold chosen on validation and tried on test.",
        f"{_MADE}.routers.route",
        {
            **_CHOSEN_FOLD,
            "target": fraction("Accuracy that the threshold had to reach on validation."),
            "threshold": Column("unit of the score", "Samples of at least this score are routed."),
            "validation_accuracy": fraction("Accuracy reached on validation."),
            "validation_energy": replace(ENERGY, definition="Mean energy of a validation sample."),
            "given_up": Column(
                FRACTION,
                "Accuracy of the digital model less accuracy, on the fold; negative where routing "
                "gains.",
                -1.0,
                1.0,
            ),
            "fraction": fraction("Share of the samples that is routed."),
            "accuracy": fraction("Accuracy of routed and other samples, mean over chips."),
            **over_chips("accuracy", fraction("")),
            "energy": ENERGY,
            "saved": SAVED,
        },
    ),
    Table(
        "routing_guarantees",
        ("routing_guarantees.csv", "routing_guarantees.parquet"),
        "A router under one profile at one level, its thresholds guaranteed by validation.",
        f"{_MADE}.guarantees.guarantee",
        {
            **_CHOSEN_FOLD,
            "level": fraction("Largest share of all samples that may stay on the chip and fail."),
            "calibration": count("Validation samples on which thresholds are chosen."),
            "chips": CHIPS,
            "threshold": Column(
                "unit of the score",
                "Samples of at most this score stay on the chip; the middle one of the chips' "
                "thresholds, -inf where all are routed.",
            ),
            **over_chips("threshold", Column("unit of the score", "")),
            "failing": fraction(
                "Share of all samples that stays and fails on the fold, mean over chips."
            ),
            **over_chips("failing", fraction("")),
            "fraction": fraction("Share of the samples that is routed, mean over chips."),
            **over_chips("fraction", fraction("")),
            "accuracy": fraction("Accuracy of routed and other samples, mean over chips."),
            **over_chips("accuracy", fraction("")),
            "energy": ENERGY,
            "saved": SAVED,
        },
    ),
    Table(
        "routing_baselines",
        ("routing_baselines.csv", "routing_baselines.parquet"),
        "A way without routing under one profile.",
        f"{_MADE}.routers.route",
        {
            "fold": FOLD,
            "profile": PROFILE,
            "name": text("What answers.", "always analog", "always digital"),
            "accuracy": fraction("Its accuracy, mean over chips."),
            "energy": ENERGY,
        },
    ),
    Table(
        "per_class",
        ("per_class.csv", "per_class.parquet"),
        "A class of the test fold, under the profile of --analyse.profile.",
        f"{_MADE}.failure_rates.per_class",
        _PER_CLASS,
    ),
    Table(
        "overlap",
        ("overlap.csv", "overlap.parquet"),
        "Two profiles, on the digitally correct test samples.",
        f"{_MADE}.profile_overlap.profile_overlap",
        OVERLAP,
    ),
    Table(
        "systematic",
        ("systematic.csv", "systematic.parquet"),
        "A profile with several chips, on the digitally correct test samples.",
        f"{_MADE}.profile_overlap.profile_overlap",
        {"profile": PROFILE, **SYSTEMATIC},
    ),
)

_WITHOUT_CHIPS = (
    Table(
        "accuracy",
        ("accuracy.csv", "accuracy.parquet"),
        "A fold of a run without chips.",
        f"{_MADE}.digital.accuracy",
        {
            "fold": FOLD_OR_POOLED,
            "samples": SAMPLES,
            "digital_accuracy": DIGITAL_ACCURACY,
            "of_correct": positive("Median curvature of the samples that the model gets right."),
            "of_wrong": positive("Median curvature of the samples that the model gets wrong."),
            "last_decile": positive("Curvature above which a tenth of the samples lies."),
        },
    ),
    Table(
        "score_deciles",
        ("score_deciles.csv", "score_deciles.parquet"),
        "A bin of curvature in one fold of a run without chips.",
        f"{_MADE}.digital.score_deciles",
        {
            "fold": FOLD_OR_POOLED,
            "decile": DECILES["decile"],
            "samples": count("Samples of the bin."),
            "low": positive("Smallest curvature in the bin."),
            "high": positive("Largest curvature in the bin."),
            "digital_accuracy": DIGITAL_ACCURACY,
            "median_margin": positive("Median margin of the samples.", "logits"),
        },
    ),
    Table(
        "score_costs",
        ("score_costs.csv", "score_costs.parquet"),
        "A score of a run without chips.",
        f"{_MADE}.digital.score_costs",
        {
            "predictor": text("The score."),
            "forward_passes": FORWARD_PASSES,
            "spearman": correlation("Spearman's rho with curvature, of all test samples."),
            "spearman_of_correct": correlation("The same of those that the model gets right."),
        },
    ),
    Table(
        "highest",
        ("highest.csv", "highest.parquet"),
        "A test sample of high curvature that the model gets right, highest first; without chips.",
        f"{_MADE}.digital.highest",
        {
            **SAMPLE,
            "curvature": ESTIMATES["curvature"],
            "loss": LOSS,
            "margin": MARGIN,
        },
    ),
)

TABLES = (*_ANALYSED, *_WITHOUT_CHIPS)
