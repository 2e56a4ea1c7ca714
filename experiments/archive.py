"""A run's results as a repository keeps them: small, and enough to make the paper's tables again.

Kept are the per-sample tables in narrow types (of flip probabilities the test fold; of the chips
their predictions, not their logits' scores), from which `regenerate` makes deciles, Table I,
predictors and the score's variants. The other tables and figures are copies of the run's, as are
the records of its stages: the hashes there are those of the run's own files.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pandas as pd

from experiments import analysis, analysis_figures, figures, prediction, rescore
from experiments.artefacts import read_parquet, write_csv, write_parquet
from experiments.records import read_record
from jaxcurv.files import write_whole
from jaxcurv.sealed import read_json

SMALL = 4 * 2**20
"""Bytes of the largest file that is copied as it is; larger weights are left out."""

_FILES = ("settings.json", "model.json", "history.csv", "costs.csv", "adc_ranges.csv")
_TABLES = (
    *("calibration", "calibration_errors", "routing_choices", "routing_baselines"),
    *("per_class", "overlap", "systematic"),
)
_KEPT_OF = dict.fromkeys(
    ("stages", "agreement", "compare-noise", "drift", "layers", "rescore"),
    (".csv", ".json", ".png", ".parquet"),
) | {"figures": (".png",)}  # whose tables are kept already


def archive(run: Path, place: Path) -> None:
    """Copies what is to be kept of a finished run; `regenerate` then makes its tables there.

    Args:
      run: folder of the run.
      place: folder to keep it in. What an earlier copy left is replaced; of drift/, layers/ and the
        like only what the run has.

    Raises:
      FileNotFoundError: the run is not finished.
    """
    scores, predictions, flips = _read(run)
    # By this file `regenerate` knows a place: it is the last, so that none is half of one run. By
    # the other, which it then makes, tables of several runs do.
    (place / "table_one.parquet").unlink(missing_ok=True)
    (place / "predictions.parquet").unlink(missing_ok=True)
    kept = [*scores.columns[:5], "curvature_standard_error", *prediction.score_columns(scores)]
    narrow = {"chip": "int16", "prediction": "int16", "index": "int32"}
    chips = predictions[["profile", "chip", "fold", "index", "prediction", "correct"]]
    physical = flips.loc[flips["fold"] == "test"].drop(columns="variance")
    real = dict.fromkeys(physical.select_dtypes("float64").columns, "float32")
    write_parquet(place / "scores.parquet", scores[kept])
    write_parquet(place / "flips.parquet", physical.astype({"index": "int32"} | real))
    for name in (*_FILES, *(f"{table}.csv" for table in _TABLES), "weights.safetensors"):
        (place / name).unlink(missing_ok=True)
        if (run / name).exists() and (run / name).stat().st_size <= SMALL:
            copy(run / name, place / name)
    for folder, kinds in _KEPT_OF.items():
        files = [
            path
            for path in sorted((run / folder).glob("*"))
            if path.suffix in kinds and path.stat().st_size <= SMALL
        ]
        if folder == "rescore" and not _is_of_scores(run):
            files = []
        if files or folder == "rescore":  # never beside another run's predictions
            shutil.rmtree(place / folder, ignore_errors=True)
        for path in files:
            copy(path, place / folder / path.name)
    write_parquet(place / "predictions.parquet", chips.astype(narrow))


def copy(source: Path, target: Path) -> None:
    """Copies a file, which is whole under its new name or not there; makes the folder."""
    write_whole(target, partial(shutil.copyfile, source))


def _is_of_scores(run: Path) -> bool:
    """Whether rescore/ is there and of the network that the run's scores are of."""
    path, record = run / "rescore" / "settings.json", read_record(run, "score")
    return (
        path.exists()
        and record is not None
        and read_json(path)["checkpoint_sha256"] in record["inputs"].values()
    )


def regenerate(place: Path) -> None:
    """Makes deciles.csv, table_one.csv, predictors.csv (test) and their figures once more.

    From scores.parquet, predictions.parquet and flips.parquet (its test fold) alone; how, say
    settings.json and costs.csv beside them. And variants.csv of rescore/, where that is.

    Raises:
      FileNotFoundError: one of these is missing.
    """
    for name in ("settings.json", "costs.csv"):
        if not (place / name).exists():
            raise FileNotFoundError(f"{place} lacks {name}: archive the run again, or remove it")
    settings = read_json(place / "settings.json")
    analyse, model = settings["analyse"], settings["model"]["architecture"]
    scores, predictions, flips = _read(place)
    joined = analysis.join(scores, predictions)
    interval = {"confidence": analyse["confidence"], "resamples": analyse["resamples"]}
    deciles = analysis.failure_tables(joined, bins=analyse["bins"], **interval)
    predictors = prediction.compare(
        joined[joined["fold"] == "test"],
        prediction.costs_table(pd.read_csv(place / "costs.csv")),
        flips,
        bins=analyse["bins"],
        **interval,
    )
    named = model, settings["data"]["name"]
    table_one = analysis.table_one(joined, deciles, model=named)
    for name, table in (
        ("deciles", deciles),
        ("table_one", table_one),
        ("predictors", predictors),
    ):
        write_csv(place / f"{name}.csv", table)
        write_parquet(place / f"{name}.parquet", table)
    drawn = [
        figures.figure_one(deciles, place / "figures" / "figure_one.png"),
        figures.figure_one(
            deciles, place / "figures" / "figure_one_correct.png", denominator="correct"
        ),
        analysis_figures.predictor_figure(predictors, place / "figures" / "predictors.png"),
    ]
    if (rescored := place / "rescore" / "scores.parquet").exists():
        variants = rescore.tabulate(
            read_parquet(rescored), predictions, bins=analyse["bins"], **interval
        )
        write_csv(place / "rescore" / "variants.csv", variants)
        drawn.append(rescore.draw(variants, place / "rescore" / "rescore.png"))
    for path in drawn:  # their tables are there already
        path.with_suffix(".svg").unlink()
        path.with_suffix(".csv").unlink()


def _read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    for name in ("scores", "predictions", "flips"):
        if not (folder / f"{name}.parquet").exists():
            raise FileNotFoundError(f"no {name}.parquet in {folder}: finish the run first")
    scores, predictions, flips = (
        read_parquet(folder / f"{name}.parquet") for name in ("scores", "predictions", "flips")
    )
    return scores, predictions, flips
