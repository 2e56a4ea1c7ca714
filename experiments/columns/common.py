"""Columns that several tables have in common."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.columns.column import (
    FRACTION,
    Column,
    correlation,
    count,
    flag,
    fraction,
    over_chips,
    positive,
    text,
    with_interval,
)

FOLD = text(
    "Part of the data set; train and validation divide the official training split.",
    *("train", "validation", "test"),
)
FOLD_OR_POOLED = text(
    "Part of the data set; train and validation divide the official training split, and pooled is "
    "all scored folds together.",
    *("train", "validation", "test", "pooled"),
)
INDEX = Column(
    "",
    "Index of the sample within its official split (the training split for train and validation). "
    "In a folder of images a number made from the file's path.",
)
PATH = text("File of the image within its split; only where the images are files.")
LABEL = count("True class, counted from 0.")
CLASS_NAME = text("Name of the true class.")
PREDICTION = count("Class that the digital model predicts, counted from 0.")
CORRECT = flag("Whether the digital model's prediction is the label.")
PROFILE = text("Hardware profile of the chips: its non-idealities, joined by +.")
CHIP = count("Seed of the chip.")
CHIPS = count("Number of simulated chips.", 0)
SAMPLES = count("Number of samples.")
CORRECT_SAMPLES = count("Samples that the digital model gets right.")
FORWARD_PASSES = positive(
    "Time of computing the score for one sample, in times of one forward pass of the network.",
    "forward passes",
)
REASON = text('Why values of the row are missing; "" where none is.')
DIGITAL_ACCURACY = fraction("Share of the samples that the digital model gets right.")
KIND = text(
    "Where the score comes from: analog, the chip's own logits; known, stored before; digital, "
    "computed by the digital model for each sample; student, by a tiny network for each sample, "
    "before it comes to a chip.",
    *("analog", "known", "digital", "student"),
)
ROUTER = text("Score by which samples are routed to the digital model, and where it comes from.")
ENERGY = positive(
    "Mean energy of a sample, in the unit of --analyse.energy (1 is a digital inference).",
    "energy",
)
SAVED = Column(
    FRACTION,
    "Share of the digital model's energy that is saved; negative where routing costs more.",
    high=1.0,
)

SAMPLE = {"fold": FOLD, "index": INDEX, "path": PATH, "label": LABEL}

_SQUARED = "nats per squared unit of the input"

ESTIMATES: Mapping[str, Column] = {
    "curvature": positive(
        "Input loss curvature by finite differences (Eq. 1 of Sharma et al.).",
        "nats per unit of the input",
    ),
    "hessian_vector": positive(
        "Mean length of H v over random v, H the Hessian of the loss by the input.", _SQUARED
    ),
    "hessian_trace": Column(_SQUARED, "Hutchinson's estimate of the trace of H; may be negative."),
    "gauss_newton": positive(
        "Trace of the Gauss-Newton matrix of the loss by the input.", _SQUARED
    ),
    "low_rank_gauss_newton": positive(
        "Estimate of that trace from a random subspace of low rank.", _SQUARED
    ),
}
"""The scores of the curvature estimators."""

LOSS = positive("Loss of the digital model; of cross-entropy in nats.", "nats")
GRADIENT_NORM = positive(
    "Euclidean norm of the loss's gradient by the input.", "nats per unit of the input"
)
ENTROPY = positive("Entropy of the predicted probabilities.", "nats")
LEAST_CONFIDENCE = fraction("1 less the largest predicted probability.")
MARGIN = positive("Largest logit less the second largest. Falls with fragility.", "logits")

SCORES: Mapping[str, Column] = {
    "loss": LOSS,
    "gradient_norm": GRADIENT_NORM,
    "margin": MARGIN,
    "entropy": ENTROPY,
    "least_confidence": LEAST_CONFIDENCE,
    "el2n": positive("Euclidean distance of the predicted probabilities from the label's (EL2N)."),
    "label_margin": Column(
        "logits", "Logit of the label less the largest other; negative where the model is wrong."
    ),
}
"""The other scores of the digital model."""

_OF_SCORE = "unit of the score"

BY_PRODUCTS: Mapping[str, Column] = {
    "{estimator}_standard_error": positive(
        "Standard error of the estimator's score over its probes; missing for a single probe, 0 "
        "for an exact estimator.",
        _OF_SCORE,
    ),
    "{estimator}_probes": count("Random vectors that the adaptive estimator took of this sample."),
    "{estimator}_frobenius_norm": positive(
        "Frobenius norm of the Hessian (hessian_vector) or of the Gauss-Newton matrix.", _SQUARED
    ),
    "{estimator}_top_eigenvalue": Column(
        _SQUARED, "Largest eigenvalue of the Gauss-Newton matrix."
    ),
    "{estimator}_residual_trace": Column(
        _SQUARED, "Trace of the Gauss-Newton matrix outside of the subspace of low rank."
    ),
}
"""What estimators tell beside their score."""

OVERLAP: Mapping[str, Column] = {
    "first": text("First of the two profiles or kinds of noise that are compared."),
    "second": text("Second of the two; the same as first for chips of one kind with each other."),
    "chips_first": count("Number of chips of first."),
    "chips_second": count("Number of chips of second."),
    "pairs": count("Pairs of chips in jaccard."),
    "rate_first": fraction(
        "Share of the digitally correct samples that fail under first, mean over chips."
    ),
    "rate_second": fraction("The same under second."),
    **with_interval(
        "jaccard",
        fraction(
            "Samples that fail on both chips of a pair over those that fail on either, mean over "
            "the pairs; the interval is for other samples."
        ),
    ),
    "jaccard_chance": fraction(
        "The same if samples failed independently, each at its chip's failure rate."
    ),
    "jaccard_margin": fraction(
        "The same if samples failed independently, at the failure rate of their bin of margin."
    ),
    "explained": Column(
        FRACTION,
        "(jaccard_margin - jaccard_chance) / (jaccard - jaccard_chance): the part of the overlap "
        "beyond chance that the margin gives. Noise may put it outside 0 to 1.",
    ),
    **with_interval(
        "spearman",
        correlation(
            "Spearman's rho of the shares of chips on which a sample fails; the interval is for "
            "other samples."
        ),
    ),
    "spearman_given_margin": correlation(
        "The same with the rank of the margin partialled out of both."
    ),
    "reason": REASON,
}
"""What `bridge.analysis.failure_overlap` tells of two sets of chips."""

_EXPECTED = {
    "on_none": "no chip",
    "on_some": "at least one and at most half of the chips",
    "on_most": "more than half of the chips, but not all",
    "on_all": "all chips",
}

SYSTEMATIC: Mapping[str, Column] = {
    "chips": CHIPS,
    "samples": count("Samples that the digital model gets right."),
    **{name: count(f"Samples that fail on {where}.") for name, where in _EXPECTED.items()},
    "events": count("Failures, summed over chips."),
    "rate": fraction("Failures over chips times samples."),
    **with_interval(
        "systematic",
        fraction(
            "Share of the failures whose sample fails on more than half of the chips; the interval "
            "is for other samples."
        ),
    ),
    "chip_specific": fraction("Share of the other failures, 1 - systematic."),
    **{
        f"{name}_expected": count(f"{name}, had each chip failed on each sample independently.")
        for name in _EXPECTED
    },
    "systematic_expected": fraction(
        "systematic, had each chip failed on each sample independently."
    ),
    "reason": REASON,
}
"""What `bridge.analysis.systematic_share` tells of a kind of noise."""

CURVE: Mapping[str, Column] = {
    "fold": FOLD_OR_POOLED,
    "profile": PROFILE,
    "router": ROUTER,
    "kind": KIND,
    "fraction": fraction("Share of the samples that is routed, those of highest score first."),
    "threshold": Column(
        "unit of the score",
        "Score of the last sample that is routed; inf where none is, missing where each chip has "
        "scores of its own.",
    ),
    "accuracy": fraction("Accuracy of routed and other samples together, mean over chips."),
    **over_chips("accuracy", fraction("")),
    "energy": ENERGY,
    "random_accuracy": fraction("Accuracy expected if as many samples were routed at random."),
    "oracle_accuracy": fraction(
        "Accuracy if those samples were routed first that the digital model rescues, and those "
        "last that it spoils."
    ),
}
"""A routing curve."""
