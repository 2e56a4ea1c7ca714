"""The vulnerability atlases that a repository keeps: a Parquet file a run, and their page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.runs.files import read_parquet
from jaxcurv.storage.files import write_bytes
from tools.results_page import Code, markdown

FOLDER = "atlas"
"""Folder of the atlases, in that of the results, and of a run's own."""

_KEPT = {"{}.parquet": "atlas.parquet", "{}.png": "atlas.png", "{}_always.png": "always.png"}
_SUMMARY = "{}_summary.csv"
_SHARES = ("image_share", "chip_share", "rest_share")


def files_of(run: Path, name: str) -> dict[str, Path]:
    """What is kept of a run's atlas: the run's file for each name that it gets. The pictures of
    images that fail are there only where some do.

    Args:
      run: folder of the run.
      name: the name that the atlas is kept under.

    Raises:
      ValueError: the atlas was made of other scores than the run has now.
    """
    table = read_parquet(run / FOLDER / "atlas.parquet")
    scores = read_parquet(run / "scores.parquet")
    keys = ["fold", "index"]
    joined = table[[*keys, "curvature"]].merge(scores[[*keys, "curvature"]], how="outer", on=keys)
    if not joined["curvature_x"].equals(joined["curvature_y"].astype("float32")):
        raise ValueError(
            f"{run / FOLDER} was made of other scores than {run / 'scores.parquet'}: run atlas "
            "again, or delete the folder"
        )
    kept = {**_KEPT, _SUMMARY: "summary.csv"}
    return {to.format(name): run / FOLDER / file for to, file in kept.items()}


def write_page(folder: Path) -> Path:
    """Writes README.md of the atlases: how to load one, what its columns hold, what it shows.

    Args:
      folder: the kept files.

    Returns:
      The page.
    """
    files = sorted(folder.glob("*.parquet"))
    first = files[0]
    columns = read_parquet(first).columns
    failures = next(name for name in columns if name.startswith("failures_"))
    parts = [
        "# Vulnerability atlas",
        "Made by `python -m tools archive` from the files in this folder; do not edit. Each file "
        "has a row an image of the official data set: on how many simulated chips it fails, and "
        "what the digital model says of it. `python -m experiments atlas PRESET` computes one.",
        "```python\n"
        "import pandas as pd\n"
        f'atlas = pd.read_parquet("experiments/results/{FOLDER}/{first.name}")\n'
        f'print(atlas.nlargest(20, "{failures}")[["fold", "index", "label", "{failures}"]])\n'
        "```",
        'What a column holds stands in the file too: `atlas.attrs["columns"]`; devices, seeds and '
        'versions: `atlas.attrs["made"]`.',
        "To cite an atlas, cite this software and the paper that CITATION.cff names, with the "
        "name of the file and the commit that you took it from.",
    ]
    for path in files:
        parts += _section(path)
    return write_bytes(folder / "README.md", ("\n\n".join(parts) + "\n").encode())


def _section(path: Path) -> list[str]:
    table, name = read_parquet(path), path.stem
    parts = [f"## {name}", f"{table.attrs['title']}; {len(table):,} images."]
    described = table.attrs["columns"].items()
    parts.append(
        markdown(["column", "what it holds"], [[Code(one), text] for one, text in described])
    )
    summary = path.with_name(_SUMMARY.format(name))
    if summary.exists():
        rows = pd.read_csv(summary).to_dict("records")
        header = ["setting", "fold", "digitally correct", "failures", "never", "always"]
        shown = [
            [
                Code(row["setting"]),
                row["fold"],
                f"{row['digitally_correct']:,}",
                *(_percent(row, one) for one in ("failure_rate", "never_fail", "always_fail")),
                *(_percent(row, one) for one in _SHARES),
            ]
            for row in rows
        ]
        parts += [
            markdown([*header, "image's own", "chip's own", "of the pair"], shown),
            "Failures, images that never and always fail: % of the digitally correct images. The "
            "last three: shares of the variance of failure, %. Brackets are intervals for other "
            "images on other chips of this one network.",
        ]
    for file in (f"{name}.png", f"{name}_always.png"):
        if path.with_name(file).exists():
            parts.append(f"![{file}]({file})")
    return parts


def _percent(row: dict[str, float], name: str) -> str:
    value = f"{100 * row[name]:.1f}"
    if f"{name}_low" not in row:
        return value
    return f"{value} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"
