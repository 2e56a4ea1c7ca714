"""A run's results as a repository keeps them: small, and enough to make the paper's tables again.

Kept are the per-sample tables in narrow types, from which `tools.regenerate` makes deciles,
Table I, predictors and the score's variants. The other tables and figures are copies of the run's,
as are the records of its stages: the hashes there are those of the run's own files.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pandas as pd
from PIL import Image

from bridge.report.tables.predictors import LABEL_FREE, NEED_LABEL, score_columns
from experiments.runs.files import read_parquet, write_parquet
from experiments.runs.records import read_record
from jaxcurv.storage.checksums import read_json
from jaxcurv.storage.files import write_whole
from tools import atlas

_LEVEL = 19
"""Effort of zstd: an archive is written once."""
_NARROW = {"prediction": "int16", "index": "int32"}

_FLAGS = "flags.json"
"""What a study's next command starts from, the paths of files among it: of no use elsewhere."""

SMALL = 4 * 2**20
"""Bytes of the largest file that is copied as it is; larger weights are left out."""

_FILES = (
    *("settings.json", "model.json", "history.csv"),
    *("adc_ranges.csv", "coverage.csv"),
)
_TABLES = (
    *("routing_choices", "routing_guarantees", "routing_baselines"),
    *("per_class", "overlap", "systematic"),
)
_KEPT_OF = dict.fromkeys(
    (
        *("stages", "compare-noise", "drift", "finetune", "layers"),
        *("rank-correlation", "remedies", "rescore", "student", "validate"),
    ),
    (".csv", ".json", ".png", ".parquet"),
) | {"figures": (".png",)}  # whose tables are kept already

_REMEDIES = ("finetune", "remedies")
"""What is kept of a run without its samples."""

_TRIES_WEIGHTS = ("compare-noise", "drift", "finetune", "layers", "remedies", "validate")
"""The studies that others are tried beside, on the same weights."""

_WEIGHTS_IN = {"rescore": "checkpoint_sha256", "validate": "weights"}
"""The studies of a network's scores, and what their settings.json calls the checkpoint's hash."""


def archive(run: Path, place: Path) -> None:
    """Copies what is to be kept of a finished run; `regenerate` then makes its tables there.

    Args:
      run: folder of the run.
      place: folder to keep it in. What an earlier copy left is replaced; of drift/, layers/ and the
        like only what the run has. Its atlas goes into atlas/ beside it.

    Raises:
      FileNotFoundError: the run is not finished.
      ValueError: its atlas was made of other scores; nothing is copied.
    """
    scores, predictions, flips = read_samples(run)
    atlas.require_own_scores(run)
    # By this file `regenerate` knows a place: it is the last, so that none is half of one run. By
    # the other, which it then makes, tables of several runs do.
    (place / "table_one.parquet").unlink(missing_ok=True)
    (place / "predictions.parquet").unlink(missing_ok=True)
    write_parquet(place / "scores.parquet", narrow_scores(scores), level=_LEVEL)
    write_parquet(place / "flips.parquet", narrow_flips(flips), level=_LEVEL)
    for name in (*_FILES, *(f"{table}.csv" for table in _TABLES)):
        (place / name).unlink(missing_ok=True)
        if (run / name).exists():
            copy(run / name, place / name)
    # Weights are large: kept where a study was made of them, to try others.
    (place / "weights.safetensors").unlink(missing_ok=True)
    studied = any((run / study).is_dir() for study in _TRIES_WEIGHTS)
    weights = run / "weights.safetensors"
    if studied and weights.exists() and weights.stat().st_size <= SMALL:
        copy(weights, place / weights.name)
    for folder in _KEPT_OF:
        _keep(run, place, folder)
    write_parquet(place / "predictions.parquet", narrow_predictions(predictions), level=_LEVEL)
    archive_atlas(run, place.parent / atlas.FOLDER, place.name)


def archive_remedies(run: Path, place: Path) -> None:
    """Copies what can be done about the failures of a run whose samples are not kept.

    Args:
      run: folder of the run.
      place: folder to keep it in.

    Raises:
      FileNotFoundError: the run has nothing of it.
    """
    there = [folder for folder in _REMEDIES if (run / folder / "settings.json").exists()]
    if not there:
        raise FileNotFoundError(f"no finished {' or '.join(_REMEDIES)} in {run}")
    for folder in there:
        _keep(run, place, folder)


def _keep(run: Path, place: Path, folder: str) -> None:
    """Copies what is to be kept of one folder of a run in place of what was there."""
    files = [
        path
        for path in sorted((run / folder).glob("*"))
        if path.suffix in _KEPT_OF[folder] and path.name != _FLAGS and path.stat().st_size <= SMALL
    ]
    if folder in _WEIGHTS_IN and not _is_of_scores(run, folder):
        files = []
    if files or folder in _WEIGHTS_IN:  # never beside another run's predictions
        shutil.rmtree(place / folder, ignore_errors=True)
    for path in files:
        copy(path, place / folder / path.name)


def archive_atlas(run: Path, folder: Path, name: str) -> None:
    """Copies a run's atlas in place of an earlier one, and writes the page of all atlases.

    Without an atlas in the run, an earlier one goes.

    Args:
      run: folder of the run.
      folder: where atlases are kept.
      name: what this one is called there.
    """
    files = atlas.files_of(run, name)
    there = atlas.has_atlas(run)
    for to, file in files.items():
        (folder / to).unlink(missing_ok=True)
        if there and file.exists():
            copy(file, folder / to)
    if there or folder.is_dir():
        atlas.write_page(folder)


def narrow_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """A run's scores as they are kept.

    Deciles are made of every fold, from the curvature; predictors of the test fold alone: the other
    scores of other folds are left out (NaN). So are label-free scores of the digitally correct
    samples, which equal those with the label; `read_samples` puts them back.
    """
    kept = scores[[*scores.columns[:5], *score_columns(scores)]].astype(
        _NARROW | {"label": "int16"}
    )
    test = kept["fold"] == "test"
    for name in score_columns(scores):
        if name != "curvature":
            kept[name] = kept[name].where(test & ~(name.endswith(LABEL_FREE) & kept["correct"]))
    return kept


def narrow_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    """The chips' predictions as they are kept: without the scores of their logits."""
    chips = predictions[["profile", "chip", "fold", "index", "prediction", "correct"]]
    return chips.astype(_NARROW | {"chip": "int16"})


def narrow_flips(flips: pd.DataFrame) -> pd.DataFrame:
    """The flip probabilities as they are kept: the test fold's, in float32."""
    physical = flips[flips["fold"] == "test"].drop(columns="variance", errors="ignore")
    real = dict.fromkeys(physical.select_dtypes("float64").columns, "float32")
    return physical.astype({"index": "int32"} | real)


def copy(source: Path, target: Path) -> None:
    """Copies a file, which is whole under its new name or not there; makes the folder.

    A picture is kept in at most 256 colours, a third of the size.
    """
    if source.suffix == ".png":
        write_whole(target, partial(reduce_colours, source))
    else:
        write_whole(target, partial(shutil.copyfile, source))


def reduce_colours(source: Path, target: Path) -> None:
    """Writes a picture in at most 256 colours as PNG."""
    with Image.open(source, formats=("PNG",)) as picture:
        colours = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(target, format="PNG", optimize=True)


def _is_of_scores(run: Path, study: str) -> bool:
    """Whether rescore/ or validate/ is there and of the network that the run's scores are of."""
    path, record = run / study / "settings.json", read_record(run, "score")
    if record is None or not path.exists():
        return False
    weights = read_json(path).get(_WEIGHTS_IN[study])
    if isinstance(weights, dict):  # of a factory's network, beside what tells its code
        weights = weights.get("weights")
    return weights in record["inputs"].values()


def archive_fit(out: Path, place: Path) -> None:
    """Keeps what `experiments.paper.fit.tabulate` needs of a fit."""
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("search", "fitted"):
        for path in sorted((out / folder).iterdir()):
            copy(path, place / folder / path.name)
    copy(out / "fit.json", place / "fit.json")


def read_samples(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores, predictions and flip probabilities of a run or of an archived one.

    Raises:
      FileNotFoundError: one of them is missing.
    """
    for name in ("scores", "predictions", "flips"):
        if not (folder / f"{name}.parquet").exists():
            raise FileNotFoundError(f"no {name}.parquet in {folder}: finish the run first")
    scores, predictions, flips = (
        read_parquet(folder / f"{name}.parquet") for name in ("scores", "predictions", "flips")
    )
    for name in NEED_LABEL:
        if (free := f"{name}{LABEL_FREE}") in scores:
            scores[free] = scores[free].where(~scores["correct"], scores[name])
    return scores, predictions, flips
