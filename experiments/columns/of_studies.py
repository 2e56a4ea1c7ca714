"""The tables that the studies of a run leave, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from experiments.columns.column import (
    FRACTION,
    Column,
    Table,
    correlation,
    count,
    flag,
    fraction,
    over_chips,
    percent,
    positive,
    text,
    with_interval,
)
from experiments.columns.common import (
    CHIP,
    CHIPS,
    CLASS_NAME,
    CORRECT,
    CORRECT_SAMPLES,
    DIGITAL_ACCURACY,
    ESTIMATES,
    FOLD,
    FOLD_OR_POOLED,
    GRADIENT_NORM,
    INDEX,
    LABEL,
    LOSS,
    MARGIN,
    OVERLAP,
    PATH,
    PREDICTION,
    SAMPLE,
    SAMPLES,
    SCORES,
    SYSTEMATIC,
)
from experiments.columns.of_runs import SCORED

_STUDIES = "experiments.studies"
_CURVATURE = ESTIMATES["curvature"]

_COMPENSATION = text(
    "Drift compensation of the chips.", "none", "global", "global_exact", "per_column"
)
_TIME = positive("Time from programming to reading.", "s")
_FAILURE_RATE = fraction("Failures over the samples that the digital model gets right.")
_ACCURACY = fraction("Accuracy of the chip.")

_DRIFT = (
    Table(
        "drift_over_chips",
        ("drift.csv",),
        "A compensation and a time, over the chips.",
        f"{_STUDIES}.drift.over_chips",
        {
            "compensation": _COMPENSATION,
            "time_s": _TIME,
            "chips": CHIPS,
            "samples": SAMPLES,
            "digitally_correct": CORRECT_SAMPLES,
            "digital_accuracy": DIGITAL_ACCURACY,
            **with_interval(
                "accuracy",
                fraction("Accuracy, mean over chips; the interval is for other chips."),
            ),
            **over_chips("accuracy", fraction("")),
            **with_interval(
                "failure_rate",
                fraction(
                    "Failures over the samples that the digital model gets right, mean over chips; "
                    "the interval is for other chips."
                ),
            ),
            **over_chips("failure_rate", fraction("")),
        },
    ),
    Table(
        "drift",
        ("drift.parquet",),
        "A chip at one time under one compensation.",
        f"{_STUDIES}.drift.age",
        {
            "compensation": _COMPENSATION,
            "chip": CHIP,
            "time_s": _TIME,
            "samples": SAMPLES,
            "digitally_correct": CORRECT_SAMPLES,
            "failures": count("Samples that fail analog-only on this chip."),
            "failure_rate": _FAILURE_RATE,
            "accuracy": _ACCURACY,
            "digital_accuracy": DIGITAL_ACCURACY,
        },
    ),
)

_LAYERS = Table(
    "layers",
    ("layers.csv", "layers.parquet"),
    "A layer alone on tiles, and last all of them.",
    f"{_STUDIES}.layers.run",
    {
        "layer": text("Path of the layer, or all layers."),
        "tiles": count("Tiles that it takes."),
        "snr_db": Column(
            "dB",
            "Signal-to-noise ratio of its outputs in the running chip, where earlier layers err "
            "too; inf where nothing differs.",
        ),
        "own_snr_db": Column("dB", "The same, fed with the digital activations."),
        "clipped_share": fraction(
            "Largest share of a tile's outputs beyond its ADC range; missing without an ADC."
        ),
        "chips": CHIPS,
        "samples": count("Samples, summed over chips."),
        "digitally_correct": count("Samples that the digital model gets right, summed over chips."),
        "failures": count("Samples that fail analog-only, summed over chips."),
        **with_interval(
            "failure_rate",
            fraction(
                "failures over digitally_correct; the interval is for other samples on other "
                "chips, at 95 %."
            ),
        ),
        "analog_accuracy": fraction("Accuracy of the chips, mean over chips."),
    },
)

_NOISE = text("Kind of noise: a memory, weight noise or the ADC alone.")

_COMPARE_NOISE = (
    Table(
        "matched_noises",
        ("matched.csv",),
        "A kind of noise.",
        f"{_STUDIES}.compare_noise.match_factor",
        {
            "name": _NOISE,
            "factor": positive("Factor on its levels (of an ADC on the step) that was found."),
            "failure_rate": fraction(
                "Share of the digitally correct validation images that fail at this factor."
            ),
            "target": fraction(
                "Failure rate that was to be met on validation; of earlier versions an accuracy."
            ),
            "reached": flag("Whether it was met."),
            "breaks_at": positive(
                "Smallest factor tried that gives weights that are not finite; missing if none did."
            ),
            "chips": CHIPS,
            "test_failure_rate": fraction("The same rate on test, mean over chips."),
            **over_chips("test_failure_rate", fraction("")),
            "test_accuracy": fraction("Accuracy on test, mean over chips."),
            **over_chips("test_accuracy", fraction("")),
            "accuracy": fraction("Accuracy on validation; of earlier versions alone."),
        },
    ),
    Table(
        "noise_overlap",
        ("compare-noise/overlap.csv", "compare-noise/overlap.parquet"),
        "Two kinds of noise, on the digitally correct test samples.",
        "bridge.analysis.overlap.failure_overlap",
        OVERLAP,
    ),
    Table(
        "noise_systematic",
        ("compare-noise/systematic.csv",),
        "A kind of noise with several chips, on the digitally correct test samples.",
        "bridge.analysis.overlap.systematic_share",
        {"name": _NOISE, **SYSTEMATIC},
    ),
    Table(
        "noise_failures",
        ("failures.parquet",),
        "A digitally correct test image on one chip.",
        f"{_STUDIES}.compare_noise.run",
        {
            "index": INDEX,
            "name": _NOISE,
            "chip": CHIP,
            "failed": flag("Whether the chip is wrong."),
        },
    ),
)

_VARIANTS: Mapping[str, str] = {
    "shipped": "as the run has it",
    "recomputed": "the same once more",
    "raw inputs": "with respect to pixels in [0, 1]",
    "TensorFloat-32": "with convolutions in TensorFloat-32; on a GPU alone",
    "another key": "with other random vectors",
    "{n} probe": "with one random vector a sample",
    "{n} probes": "with as many random vectors a sample",
    "h = {step}": "with this step of the finite difference",
    "own prediction": "with the model's prediction as the label",
}

_OF_PAPER = {
    name: column
    for of, which in (
        ("all", "all samples"),
        ("correct", "samples that the digital model gets right"),
    )
    for end, where in (("d1", "lowest"), ("d10", "highest"))
    for name, column in with_interval(
        f"{end}_of_{of}",
        percent(
            f"Analog-only failures under adc+wnoise+pcm over the {which} of the bin of {where} "
            "score; not without chips."
        ),
    ).items()
}

_RESCORE = (
    Table(
        "rescore_scores",
        ("rescore/scores.parquet",),
        "A test sample, with a column a variant of the curvature score.",
        f"{_STUDIES}.rescore.run",
        {
            **SAMPLE,
            "prediction": PREDICTION,
            "correct": CORRECT,
            **{
                name: replace(_CURVATURE, definition=f"Curvature {how}.")
                for name, how in _VARIANTS.items()
            },
        },
    ),
    Table(
        "rescore_variants",
        ("variants.csv", "rescore.csv"),
        "A variant of the curvature score.",
        f"{_STUDIES}.rescore.tabulate",
        {
            "variant": text("Its name; shipped is the run's own score."),
            "samples": SAMPLES,
            "digitally_correct": CORRECT_SAMPLES,
            "chips": CHIPS,
            "device": text("What it was computed on."),
            "rho": correlation("Spearman's rho with the shipped score."),
            "rho_of_correct": correlation("The same among the digitally correct samples."),
            "d1_overlap": fraction("Share of the shipped lowest bin that is in the variant's."),
            "d10_overlap": fraction("Share of the shipped highest bin that is in the variant's."),
            **_OF_PAPER,
        },
    ),
)

_ESTIMATOR = "fd_h{step}_n{n}"
_RANKED: Mapping[str, Column] = {
    _ESTIMATOR: replace(
        _CURVATURE, definition="Finite difference (Eq. 1) with this step h and n random vectors."
    ),
    "fd_h{step}_adaptive": replace(
        _CURVATURE, definition="Finite difference with this step, each sample probed as needed."
    ),
    **{name: one for name, one in ESTIMATES.items() if name != "curvature"},
    "hessian_trace_h{step}": replace(
        ESTIMATES["hessian_trace"], definition="hessian_trace by differences with this step."
    ),
    "hessian_vector_tensorfloat32": replace(
        ESTIMATES["hessian_vector"], definition="hessian_vector in TensorFloat-32; on a GPU alone."
    ),
    "hessian_vector_bfloat16": replace(
        ESTIMATES["hessian_vector"], definition="hessian_vector in bfloat16; on a GPU alone."
    ),
    "gauss_newton_tensorfloat32": replace(
        ESTIMATES["gauss_newton"], definition="gauss_newton in TensorFloat-32; on a GPU alone."
    ),
    "gauss_newton_bfloat16": replace(
        ESTIMATES["gauss_newton"], definition="gauss_newton in bfloat16; on a GPU alone."
    ),
}
_ANOTHER_KEY = {
    f"{_ESTIMATOR}_another_key": replace(
        _CURVATURE, definition="The same with other random vectors."
    )
}

_RANK_CORRELATION = (
    Table(
        "rank_correlation_scores",
        ("rank-correlation/scores.parquet", "rank-correlation/scores_another_key.parquet"),
        "A test sample under several estimators.",
        "jaxcurv.dataset.score_dataset",
        {
            **{name: one for name, one in SCORED.items() if name not in ESTIMATES},
            **_RANKED,
            **_ANOTHER_KEY,
        },
    ),
    Table(
        "rank_correlation",
        ("rank_correlation.csv", "rank_correlation_correct.csv"),
        "An estimator, with a column for each; of all test samples, or of the digitally correct.",
        f"{_STUDIES}.rank_correlation.rank_correlations",
        {
            "score": text("The estimator or score of the row."),
            **{
                name: correlation(f"Spearman's rho of the row's score with this one: {meaning}")
                for name, meaning in (
                    (name, one.definition)
                    for name, one in {
                        **_RANKED,
                        **_ANOTHER_KEY,
                        "gradient_norm": GRADIENT_NORM,
                        "loss": LOSS,
                    }.items()
                )
            },
        },
    ),
)

_VALIDATED = ("curvature", "gradient_norm", "loss")

_VALIDATE = (
    Table(
        "validate_scores",
        ("validate/scores.parquet",),
        "A training image.",
        f"{_STUDIES}.validate.run",
        {
            "fold": FOLD,
            "index": INDEX,
            "label": LABEL,
            **ESTIMATES,
            **SCORES,
            **{
                f"{name}_averaged": replace(
                    {**ESTIMATES, **SCORES}[name],
                    definition=f"{name}, mean over epochs of training.",
                )
                for name in _VALIDATED
            },
        },
    ),
    Table(
        "validate",
        ("validate.csv",),
        "A score beside one published figure of the same images, in one fold.",
        f"{_STUDIES}.published_ranks.tabulate",
        {
            "fold": FOLD_OR_POOLED,
            "reference": text("The published figure."),
            "score": text("Score of the run, or another published figure."),
            "samples": count("Images that are ranked."),
            "epochs": count(
                "Epochs over which the score is averaged; 1 for one checkpoint, 0 for a published "
                "figure."
            ),
            **with_interval(
                "rho",
                correlation("Spearman's rho; the interval is for other images of this training."),
            ),
            **with_interval(
                "difference",
                Column(
                    "",
                    "rho of the average less that of one checkpoint; missing elsewhere.",
                    -2.0,
                    2.0,
                ),
            ),
        },
    ),
)

_SETTING = text("Setting of the chips: a profile, with @ and a time where it is not the run's.")

ATLAS = Table(
    "atlas",
    ("atlas.parquet", "atlas/*.parquet"),
    "An image.",
    f"{_STUDIES}.atlas_tables.atlas_table",
    {
        **SAMPLE,
        "prediction": PREDICTION,
        "correct": CORRECT,
        "chips": count("Simulated chips under each setting.", 1),
        "failures_{setting}": count(
            "Number of chips on which the image fails under {setting}: the digital model is right "
            "and the chip is wrong. Missing where the digital model is wrong. Divided by the "
            "column chips it estimates the failure probability."
        ),
        "wrong_{setting}": count(
            "Number of chips whose prediction is not the label under {setting}."
        ),
        "flip_probability_{setting}": fraction(
            "Probability that a chip under {setting} predicts another class than the digital "
            "model, computed from the digital model and the moments of the noise; no chip is "
            "simulated."
        ),
        "curvature": _CURVATURE,
        "gradient_norm": GRADIENT_NORM,
        "loss": LOSS,
        "margin": MARGIN,
        "cscore": fraction(
            "Consistency score of a training or validation image (Jiang et al., ICML 2021), from "
            "the file given: an estimate of the probability that networks trained without the "
            "image get it right. Missing for test images."
        ),
    },
)
"""Also what an atlas says of its own columns."""

_NEVER = "Share of the digitally correct images that fail on"

_SHARE = "Share of the variance of failure that is"

_ATLAS = (
    ATLAS,
    Table(
        "atlas_columns",
        ("columns.csv",),
        "A column of the atlas.",
        f"{_STUDIES}.atlas_tables.atlas_table",
        {"column": text("Its name."), "description": text("What it holds.")},
    ),
    Table(
        "atlas_summary",
        ("summary.csv", "atlas/*_summary.csv"),
        "A setting in one fold.",
        f"{_STUDIES}.atlas_tables.summarise",
        {
            "setting": _SETTING,
            "fold": FOLD_OR_POOLED,
            "chips": CHIPS,
            "samples": count("Images."),
            "digitally_correct": count("Images that the digital model gets right."),
            "digital_accuracy": DIGITAL_ACCURACY,
            "analog_accuracy": fraction("Accuracy of the chips, mean over chips."),
            **with_interval(
                "failure_rate",
                fraction(
                    "Failures over the digitally correct images, mean over chips; the interval is "
                    "for other images on other chips."
                ),
            ),
            "never_fail": fraction(f"{_NEVER} no chip."),
            "sometimes_fail": fraction(f"{_NEVER} some chips and not on others."),
            "always_fail": fraction(f"{_NEVER} all chips."),
            **with_interval("image_share", Column(FRACTION, f"{_SHARE} the image's own.")),
            **with_interval("chip_share", Column(FRACTION, f"{_SHARE} the chip's own.")),
            **with_interval(
                "rest_share", Column(FRACTION, f"{_SHARE} of the pair of image and chip.")
            ),
        },
    ),
    Table(
        "atlas_figure",
        ("atlas.csv",),
        "A point of the figure.",
        f"{_STUDIES}.atlas_figures.draw",
        {
            "panel": text("Which panel.", "chips", "curvature"),
            "setting": _SETTING,
            "fold": FOLD,
            "at": count("Number of chips on which images fail, or the bin of curvature from 1."),
            "share": fraction(
                "Share of the digitally correct images that fail on as many chips, or the failure "
                "probability in the bin."
            ),
            "expected": fraction(
                "Share expected were all images and chips alike; in the panel chips alone."
            ),
        },
    ),
    Table(
        "atlas_gallery",
        ("always.csv",),
        "An image that the gallery of those that fail on most chips shows.",
        f"{_STUDIES}.atlas_tables.most_failing",
        {
            "setting": _SETTING,
            "fold": FOLD,
            "index": INDEX,
            "path": PATH,
            "label": LABEL,
            "failures": count("Number of chips on which it fails.", 1),
            "chips": CHIPS,
            "margin": MARGIN,
            "class_name": CLASS_NAME,
        },
    ),
)

TABLES = (
    *_DRIFT,
    _LAYERS,
    *_COMPARE_NOISE,
    *_RESCORE,
    *_RANK_CORRELATION,
    *_VALIDATE,
    *_ATLAS,
)
