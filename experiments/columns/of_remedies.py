"""The tables of what can be done about failures: remedies, fine-tuning, a student."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.columns.column import (
    FRACTION,
    Column,
    Table,
    count,
    fraction,
    positive,
    text,
    with_interval,
)
from experiments.columns.common import CHIP, CHIPS, FOLD, INDEX
from experiments.columns.of_analysis import DECILES, PREDICTORS

_STUDIES = "experiments.studies"

_PASSES = "passes of the whole network"

_REMEDY: Mapping[str, Column] = {
    "time_s": positive("Time from programming to reading.", "s"),
    "first": text(
        "Who answers first: chip (no remedy), a chip that is compensated or recalibrated or has "
        "its logits fitted or some layers digital or the weights of a fine-tuned network, or "
        "digital, the digital model."
    ),
    "second": text(
        "Who answers in place of the first where the score is high; empty where nobody does."
    ),
    "score": text(
        "What decides who gets the second answer; empty where nobody or everybody does.",
        *("", "margin", "curvature", "student"),
    ),
    "rule": text(
        "Who gets it: none; share, the images of the highest scores up to a share; risk, those "
        "above the threshold that bounds the failures of all others; all.",
        *("none", "share", "risk", "all"),
    ),
    "at": fraction("The share, or the bound of the failures; missing for the other rules."),
    "routed": fraction("Share of the test images that get the second answer, mean over chips."),
    "analog_passes": positive("Work of a sample on tiles.", _PASSES),
    "digital_passes": positive("Work of a sample on digital hardware.", _PASSES),
    **with_interval(
        "accuracy",
        fraction(
            "Accuracy of the test images, mean over chips; the interval is for other images on "
            "other chips."
        ),
    ),
    **with_interval(
        "gain",
        Column(
            FRACTION,
            "Accuracy less that of the chip without a remedy, on the same chips and images.",
            *(-1.0, 1.0),
        ),
    ),
    **with_interval(
        "over_free",
        Column(
            FRACTION,
            "Accuracy less that of the chip with every remedy that takes no energy (compensated, "
            "and recalibrated where there are BatchNorms), on the same chips and images.",
            *(-1.0, 1.0),
        ),
    ),
    **with_interval(
        "short",
        Column(
            FRACTION,
            "Accuracy of the digital model less this one, on the same images.",
            *(-1.0, 1.0),
        ),
    ),
    **with_interval(
        "failure_rate",
        fraction("Wrong answers over the test images that the digital model gets right."),
    ),
    "failed": fraction(
        "Test images whose answer is wrong though the digital model is right, over all of them."
    ),
    "validation_accuracy": fraction(
        "Accuracy of the validation images, mean over chips: the frontier is chosen by it."
    ),
    "validation_analog_passes": positive("analog_passes of the validation images.", _PASSES),
    "validation_digital_passes": positive("digital_passes of the validation images.", _PASSES),
    "chips": CHIPS,
    "samples": count("Test images."),
}

_SET = {"": "all images", "_d10": "the decile of highest curvature under the original network"}
_OF_SET = {
    "samples": count("Test images: {images}."),
    "digitally_correct": count("Those that the original network gets right: {images}."),
    "digital_accuracy": fraction("Accuracy of the digital network: {images}."),
    "accuracy": fraction("Accuracy of the chip: {images}."),
    "failures": count("Images that the original network gets right and the chip wrong: {images}."),
    "failure_rate": fraction("failures over digitally_correct: {images}."),
}
_VARIANT = text(
    "How the network was fine-tuned: original, not at all; plain, without noise; else with noise "
    "of the chips, on all images alike or with weight on a decile.",
    *("original", "plain", "noise_aware", "curvature", "flip_probability", "margin", "random"),
)


def _difference(reference: str) -> dict[str, Column]:
    return with_interval(
        f"difference_to_{reference}",
        Column(
            FRACTION,
            f"value less that of {reference}, on the same training seeds and chips; missing of "
            "itself.",
            *(-1.0, 1.0),
        ),
    )


TABLES = (
    Table(
        "remedies",
        ("remedies.csv", "remedies.parquet"),
        "A remedy at one time.",
        f"{_STUDIES}.remedies_tables.remedies_table",
        {
            **_REMEDY,
            "energy": positive(
                "Mean energy of a sample, in the unit of --analyse.energy (1 is a digital "
                "inference).",
                "energy",
            ),
        },
    ),
    Table(
        "remedies_frontier",
        ("frontier.csv",),
        "A remedy that none beats at one time and one energy of an analog pass.",
        f"{_STUDIES}.remedies_tables.frontiers",
        {
            **_REMEDY,
            "energy": positive("Mean energy of a test image.", "digital passes"),
            "validation_energy": positive(
                "Mean energy of a validation image: the frontier is chosen by it.",
                "digital passes",
            ),
            "analog_cost": positive("Energy of an analog pass.", "digital passes"),
        },
    ),
    Table(
        "remedies_deciles",
        ("remedies/deciles.csv",),
        "A bin of curvature under one first answer at one time.",
        f"{_STUDIES}.remedies_deciles.deciles_table",
        {"time_s": _REMEDY["time_s"], "first": _REMEDY["first"], **DECILES},
    ),
    Table(
        "finetune",
        ("finetune.parquet",),
        "A network on one chip.",
        f"{_STUDIES}.finetune_tables.row_of",
        {
            "variant": _VARIANT,
            "seed": count("Seed of the training; missing of the original."),
            "chip": CHIP,
            **{
                f"{name}{end}": Column(
                    one.unit, one.definition.format(images=images), one.low, one.high
                )
                for end, images in _SET.items()
                for name, one in _OF_SET.items()
            },
        },
    ),
    Table(
        "finetune_over_seeds",
        ("finetune.csv",),
        "A variant, a set of test images and a measure.",
        f"{_STUDIES}.finetune_tables.summarise",
        {
            "variant": _VARIANT,
            "images": text("Which test images: all, or the decile D10.", "all", "D10"),
            "measure": text(
                "What value is of: columns of finetune.parquet.",
                *("digital_accuracy", "accuracy", "failure_rate"),
            ),
            **with_interval(
                "value",
                fraction(
                    "Mean over training seeds and chips; the interval is for other seeds and chips."
                ),
            ),
            **_difference("plain"),
            **_difference("noise_aware"),
            **_difference("random"),
            "seeds": count("Training seeds; 0 of the original."),
            "chips": CHIPS,
            "samples": count("Test images in the set."),
            "digitally_correct": count("Those that the original network gets right."),
        },
    ),
    Table(
        "student",
        ("student.csv",),
        "A score that predicts failure on chips of one profile, the student's among them.",
        f"{_STUDIES}.student_tables.compare",
        PREDICTORS,
    ),
    Table(
        "student_scores",
        ("student.parquet",),
        "A scored sample.",
        f"{_STUDIES}.student._scores",
        {
            "fold": FOLD,
            "index": INDEX,
            "student": fraction(
                "Share of the chips that the student predicts to fail on the sample."
            ),
        },
    ),
)
