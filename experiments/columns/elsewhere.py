"""The tables of commands that work on several runs, on none, or on your own tables."""

from __future__ import annotations

from experiments.columns.column import (
    POINTS,
    Column,
    Table,
    correlation,
    count,
    flag,
    fraction,
    percent,
    positive,
    text,
    with_interval,
)
from experiments.columns.common import (
    CHIPS,
    ESTIMATES,
    FOLD,
    INDEX,
    PROFILE,
    REASON,
    SAMPLES,
)
from experiments.columns.of_analysis import COMPARED, DECILES
from experiments.columns.of_runs import SCORED

_CURVATURE = ESTIMATES["curvature"]
_READING = text("Samples among which deciles are cut.", "test", "train", "train and test")
_DENOMINATOR = text("Samples of a decile that a rate is of.", "all", "correct")

_FITTED = {
    "shipped_all": "of the default chip on test, of all samples",
    "shipped_correct": "of the default chip on test, of the digitally correct samples",
    "shipped_same": "of the default chip, counted as fold and denominator say",
    "fitted": "of the fitted chip, counted as fold and denominator say",
}

_PAPER = (
    Table(
        "fit",
        ("fit*/table.csv",),
        "A row of Table I, with the chip that fit-paper found.",
        "experiments.paper.fit.tabulate",
        {
            "preset": text("Preset of the run."),
            "architecture": text("Network."),
            "width": count("Channels of its first stage.", 1),
            "data": text("Data set."),
            "role": text("Whether the chip was fitted on this row.", "fitted", "predicted"),
            "digital_accuracy": percent("Accuracy of the digital model on test."),
            "paper_d1": percent("The paper's rate of the lowest decile."),
            "paper_d10": percent("The paper's rate of the highest decile."),
            **{
                name: column
                for what, which in _FITTED.items()
                for end in ("d1", "d10")
                for name, column in with_interval(
                    f"{what}_{end}",
                    percent(
                        f"Failure rate in the {'lowest' if end == 'd1' else 'highest'} decile "
                        f"{which}."
                    ),
                ).items()
            },
            **{
                f"{what}_error": Column(
                    POINTS,
                    f"Mean absolute difference of {prefix}_d1 and {prefix}_d10 from the paper's.",
                    0.0,
                    100.0,
                )
                for what, prefix in (
                    ("shipped", "shipped_all"),
                    ("same", "shipped_same"),
                    ("fitted", "fitted"),
                )
            },
            "fold": _READING,
            "denominator": _DENOMINATOR,
        },
    ),
    Table(
        "fit_search",
        ("fit*/search.csv",),
        "A chip that the search tried, counted in one way.",
        "experiments.paper.search.misfits",
        {
            "step": count("Step of the search; those of one step differ in one setting each."),
            "change": text("What differs from the best chip of the step before."),
            "cell": text("Short name of the chip's settings."),
            "fold": _READING,
            "denominator": _DENOMINATOR,
            "{model} d1": percent("Failure rate in the lowest decile of this network."),
            "{model} d10": percent("Failure rate in the highest decile of this network."),
            "misfit": Column(
                POINTS, "Mean absolute difference of these rates from the paper's.", 0.0, 100.0
            ),
        },
    ),
    Table(
        "fit_searched",
        ("fit*/search/*.parquet",),
        "A sample of one run.",
        "experiments.paper.fit.run",
        {
            "fold": FOLD,
            "index": INDEX,
            "{cell}/{chip}": flag("Whether this chip of the settings {cell} is right."),
        },
    ),
    Table(
        "fit_fitted",
        ("fit*/fitted/*.parquet",),
        "A sample of one run.",
        "experiments.paper.fit.run",
        {
            "fold": FOLD,
            "index": INDEX,
            "{chip}": flag("Whether this chip is right; chips are counted from 0."),
        },
    ),
)

_YOURS = (
    Table(
        "own_scores",
        (),
        "An image of yours, as the command score --model leaves it.",
        "jaxcurv.dataset.score_dataset",
        SCORED,
    ),
    Table(
        "own_deciles",
        ("deciles.csv",),
        "A bin of the score; from analyse --scores.",
        "bridge.analysis.failures.failure_table",
        DECILES,
    ),
    Table(
        "own_predictors",
        ("predictors.csv",),
        "A score of yours; from analyse --scores.",
        "bridge.analysis.predictors.compare_predictors",
        {
            **COMPARED,
            "among": text("Samples that take part.", "correct", "all"),
        },
    ),
)

_HUNDRED = Table(
    "hundred_chips",
    ("hundred_chips.csv",),
    "A test image; in the archive alone.",
    "tools.hundred_chips.outcomes",
    {
        "index": INDEX,
        "curvature": _CURVATURE,
        "digital": flag("Whether the digital model is right."),
        "failing": fraction("Share of the chips that are wrong."),
        "predicted": fraction("Flip probability; no chip is simulated."),
    },
)

_BYTES = "bytes"

_BENCHMARKS = (
    Table(
        "benchmark_curvature",
        ("benchmark.csv",),
        "A point of the figure.",
        "experiments.benchmarks.curvature_figures.sweep",
        {
            "panel": text("What is varied.", "probes", "batch_size", "samples", "memory"),
            "x": count("Its value: probes, images a batch, or images.", 1),
            "contestant": text("What is timed."),
            "median": positive(
                "Median of the repeats: a time an image in ms (probes, batch_size), a time in s "
                "(samples), or memory in MB.",
                "ms, s or MB",
            ),
            "lowest": positive("Smallest of the repeats.", "ms, s or MB"),
            "highest": positive("Largest of the repeats.", "ms, s or MB"),
        },
    ),
    Table(
        "benchmark_load",
        ("load.csv",),
        "A number of samples.",
        "experiments.benchmarks.load.measure",
        {
            "work": text("What is measured.", "score", "simulate"),
            "samples": SAMPLES,
            "seconds": positive("Time of the work.", "s"),
            "cpu_seconds": positive("Time of all cores in the process.", "s"),
            "samples_per_second": positive("Samples a second.", "1/s"),
            "preparation_seconds": positive(
                "Time before it: libraries, network, compilation.", "s"
            ),
            "prepared_bytes": positive("Memory of the process after that.", _BYTES),
            "prepared_peak_bytes": positive("Highest memory until then.", _BYTES),
            "resident_bytes": positive("Memory after the work, its table still there.", _BYTES),
            "peak_bytes": positive("Highest memory of the process.", _BYTES),
            "table_bytes": positive("Size of the table in memory.", _BYTES),
            "file_bytes": positive("Size of the file.", _BYTES),
            "device": text("What it ran on."),
        },
    ),
)

_MOVED = Table(
    "comparison",
    (),
    "A result of one run beside the first run's, as the file of compare --csv has it.",
    "experiments.comparison.results.compare_results",
    {
        "run": text("The run."),
        "reference": text("The first run."),
        "fold": FOLD,
        "profile": text(f"{PROFILE.definition} Empty for the digital model."),
        "result": text(
            "What is compared; failure rate and AUROC are among the samples that each run's "
            "digital model gets right.",
            *("digital accuracy", "analog accuracy", "failure rate"),
            *("AUROC of curvature", "AUROC of margin"),
        ),
        "value": fraction("The run's, mean over chips."),
        "reference_value": fraction("The first run's."),
        **with_interval("difference", correlation("value less reference_value.")),
        "samples": count("Samples of the run that take part."),
        "reference_samples": count("Samples of the first run that take part."),
        "chips": CHIPS,
        "reference_chips": count("Number of the first run's chips."),
        "same_samples": flag("Whether both are of the same samples, and compared in pairs."),
        "same_chips": flag("Whether chips of equal seeds are compared in pairs."),
        "reason": REASON,
    },
)

TABLES = (*_PAPER, *_YOURS, _MOVED, _HUNDRED, *_BENCHMARKS)
