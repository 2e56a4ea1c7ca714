"""The tables of samples and chips that the stages of a run leave, and those of its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from experiments.columns.column import (
    PERCENT,
    Column,
    Table,
    count,
    flag,
    fraction,
    percent,
    positive,
    text,
)
from experiments.columns.common import (
    BY_PRODUCTS,
    CHIP,
    CHIPS,
    CLASS_NAME,
    CORRECT,
    ENTROPY,
    ESTIMATES,
    FOLD,
    FOLD_OR_POOLED,
    FORWARD_PASSES,
    INDEX,
    LABEL,
    LEAST_CONFIDENCE,
    LOSS,
    MARGIN,
    PATH,
    PREDICTION,
    PROFILE,
    SAMPLE,
    SCORES,
)
from experiments.columns.of_analysis import DECILES

_MADE = "bridge.report.tables"

_NEED_LABEL = ("curvature", "gradient_norm", "loss", "el2n")

SCORED: Mapping[str, Column] = {
    "index": INDEX,
    "path": PATH,
    "label": LABEL,
    "prediction": PREDICTION,
    "correct": CORRECT,
    **ESTIMATES,
    **SCORES,
    **BY_PRODUCTS,
}
"""What `jaxcurv.score_dataset` tells of each sample."""

_SAMPLES = (
    Table(
        "history",
        ("history.csv", "figures/training_curve.csv"),
        "An epoch of training.",
        "jaxcurv.training.checkpoints.Epoch",
        {
            "epoch": count("Epochs that have passed.", 1),
            "train_loss": replace(LOSS, definition="Mean loss while training in this epoch."),
            "train_accuracy": fraction("Share of the training images right, as they were seen."),
            "validation_loss": replace(LOSS, definition="Mean loss on validation after it."),
            "validation_accuracy": fraction("Share of the validation images right after it."),
        },
    ),
    Table(
        "scores",
        ("scores.parquet", "scores/*/*.parquet"),
        "A scored sample; in scores/ those of one fold, kept for a later command.",
        "jaxcurv.dataset.score_dataset",
        {
            "fold": FOLD,
            **SCORED,
            **{
                f"{name}_label_free": replace(
                    {**ESTIMATES, **SCORES}[name],
                    definition=f"{name} with the model's own prediction as the label.",
                )
                for name in _NEED_LABEL
            },
        },
    ),
    Table(
        "predictions",
        ("predictions.parquet", "chips/*/*[0-9].parquet"),
        "A sample on one chip; in chips/ one finished chip, kept for a later command.",
        "experiments.stages.simulate.simulate",
        {
            "profile": PROFILE,
            "chip": CHIP,
            "fold": FOLD,
            "index": INDEX,
            "prediction": count("Class that the chip predicts, counted from 0."),
            "correct": flag("Whether the chip's prediction is the label."),
            "margin": replace(MARGIN, definition=f"{MARGIN.definition[:-1]}, of the chip."),
            "entropy": replace(ENTROPY, definition="Entropy of the chip's probabilities."),
            "least_confidence": replace(
                LEAST_CONFIDENCE, definition="1 less the chip's largest probability."
            ),
        },
    ),
    Table(
        "adc_ranges",
        ("adc_ranges.csv", "chips/*/*.adc.parquet"),
        "A converter of one chip.",
        "experiments.chips.protocol.Chip.converters",
        {
            "profile": PROFILE,
            "chip": CHIP,
            "tile": text("Layer and number of the tile."),
            "range": positive(
                "Largest output that the ADC resolves, in units of the tile's largest weight."
            ),
            "clipped_share": fraction(
                "Share of the tile's outputs beyond the range, on unseen test images."
            ),
        },
    ),
    Table(
        "output_noise",
        ("output_noise.parquet",),
        "A sample under one kind of noise of the operations.",
        "experiments.stages.flips.moments",
        {
            "fold": FOLD,
            "index": INDEX,
            "noise": text("What quantises or adds noise at each operation, named as a profile."),
            "variance": positive("Variance that it adds to the sample's margin.", "logits^2"),
        },
    ),
    Table(
        "flips",
        ("flips.parquet",),
        "A sample under one profile.",
        "jaxcurv.flips.flip_probability",
        {
            "fold": FOLD,
            "profile": PROFILE,
            "index": INDEX,
            "margin": MARGIN,
            "shift": Column("logits", "Change of the margin at the mean weights of the chips."),
            "variance": positive(
                "Variance of the margin over chips, by linear theory; not archived.", "logits^2"
            ),
            "probability": fraction(
                "Flip probability: Phi(-(margin + shift) / sd), that a chip predicts another class "
                "than the digital model."
            ),
            "unshifted": fraction("The same with shift 0 and the variance at the digital weights."),
        },
    ),
    Table(
        "coverage",
        ("coverage.csv",),
        "A matrix product of a network of your own.",
        "bridge.chips.coverage.coverage",
        {
            "layer": text("Path of the layer."),
            "operator": text("PyTorch's or JAX's name of the product."),
            "weights": text("Parameters that are a factor; empty for two activations."),
            "calls": count("Calls in one forward pass.", 1),
            "macs": count("Multiply-accumulates for one sample, of all calls."),
            "tiles": count("Tiles that hold the weights; 0 where digital."),
            "place": text("What computes it.", "analog", "digital"),
            "reason": text("Why it is digital; empty where it is not."),
        },
    ),
    Table(
        "costs",
        ("costs.csv",),
        "A predictor; in the archive alone.",
        f"{_MADE}.predictors.costs_table",
        {"predictor": text("The score."), "forward_passes": FORWARD_PASSES},
    ),
)

_HISTOGRAM = "Samples of the bin that"

_FIGURES = (
    Table(
        "figure_one",
        ("figure_one.csv", "figure_one_correct.csv", "verdict.csv"),
        "A bin of curvature in Fig. 1 or in the report's first figure: of all samples, or of the "
        "digitally correct.",
        f"{_MADE}.failure_rates.rates",
        {
            "fold": FOLD_OR_POOLED,
            "profile": PROFILE,
            "decile": DECILES["decile"],
            "chips": CHIPS,
            "failures": DECILES["failures"],
            "tied": DECILES["tied"],
            "rate": percent("Analog-only failure rate, mean over chips."),
            "low": Column(PERCENT, "Lower end of the interval of rate.", 0.0, 100.0),
            "high": Column(PERCENT, "Upper end of the interval of rate.", 0.0, 100.0),
        },
    ),
    Table(
        "gallery",
        ("gallery.csv", "gallery_digital.csv"),
        "An image that the gallery shows.",
        "bridge.report.figures.paper.gallery",
        {
            "end": text(
                "Whether its curvature is among the lowest or the highest.", *("lowest", "highest")
            ),
            **SAMPLE,
            "curvature": ESTIMATES["curvature"],
            "profile": PROFILE,
            "chip": CHIP,
            "digital_prediction": PREDICTION,
            "digital_correct": CORRECT,
            "analog_prediction": count("Class that the chip predicts, counted from 0."),
            "analog_correct": flag("Whether the chip's prediction is the label."),
            "class_name": CLASS_NAME,
        },
    ),
    Table(
        "score_histogram",
        ("score_histogram.csv",),
        "A bin of curvature, of equal width on a log axis; the first holds zeros.",
        "bridge.report.figures.scores.score_histogram",
        {
            "low": positive("Lower edge."),
            "high": positive("Upper edge."),
            "digitally_wrong": count(f"{_HISTOGRAM} the digital model gets wrong."),
            "survives": count(f"{_HISTOGRAM} the digital model and the chip get right."),
            "fails": count(f"{_HISTOGRAM} fail analog-only."),
            "digitally_correct": count(f"{_HISTOGRAM} the model gets right, without chips."),
        },
    ),
)

TABLES = (*_SAMPLES, *_FIGURES)
