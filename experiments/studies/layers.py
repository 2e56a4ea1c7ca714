"""Which layers of a chip err, and what each of them alone costs: tables and a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.chips.profiles import FULL_PROFILE, to_json
from bridge.report.figures.style import BLUE, GREEN, STYLE, VERMILLION, new_figure, write_figure
from experiments.runs.files import write_parquet
from experiments.settings.flags import Experiment, ProfileName
from experiments.studies.exported import Exported, open_exported
from experiments.studies.opening import Study
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json


@dataclass(frozen=True)
class Layers:
    """Which layers of a chip cause failures: each layer alone is put on crossbar tiles."""

    profile: ProfileName = FULL_PROFILE
    """Hardware profile of the layers that are on crossbar tiles."""
    limit: int | None = 1000
    """Largest number of images of the test fold on which failures are counted; `none` takes all."""
    images: int = 256
    """Largest number of these images on which signal-to-noise ratios are measured."""
    chips: int = 1
    """Chips on which failures are counted, with seeds --seed, --seed + 1 and so on.
    Signal-to-noise ratios are those of the first."""
    out: Path | None = None
    """Folder of the results; `none` is layers/ in the run's folder."""

    def __post_init__(self) -> None:
        if min(self.images, self.chips) < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                "limit, images and chips must be at least 1; got "
                f"{self.limit}, {self.images}, {self.chips}"
            )


def run(exported: Exported, experiment: Experiment, settings: Layers, out: Path) -> None:
    """Measures every layer, draws them and prints the table.

    Leaves layers.csv and layers.parquet (a row a layer), drawn as layers.png, .svg and .pdf, and
    settings.json.
    """
    count = min(settings.images, len(exported.test))
    samples = exported.test.__getitems__(range(count))
    images = np.stack([sample["image"] for sample in samples])
    passes = 1 + settings.chips * (len(exported.network.layers) + 1)
    with progress(count + passes * len(exported.test), "layers"):
        report = exported.network.layer_report(exported.profile, experiment.seed, images)
        failures = exported.network.layer_failures(
            exported.profile,
            exported.test,
            seed=experiment.seed,
            chips=settings.chips,
            batch_size=experiment.simulate.batch_size,
        )
    # In the order in which the layers run; the row of all of them, which only failures has, last.
    table = pd.concat([one.set_index("layer") for one in (report, failures)], axis=1).reset_index()
    table["tiles"] = table["tiles"].fillna(report["tiles"].sum()).astype(int)
    write_parquet(out / "layers.parquet", table)
    draw(table, out / "layers.png", title=f"{experiment.data.title}, {settings.profile}")
    write_json(
        out / "settings.json",
        {
            **exported.origin,
            **exported.made_with,
            "profile": to_json(exported.profile),
            "images": count,
            "seeds": list(range(experiment.seed, experiment.seed + settings.chips)),
        },
    )
    show(table)
    print(f"{out / 'layers.png'}, layers.csv and layers.parquet")


def draw(table: pd.DataFrame, path: Path, title: str) -> Path:
    """Each layer's failure rate with its interval, and its signal-to-noise ratios.

    Args:
      table: `bridge.chips.layer_report` beside `layer_failures`, the row of all layers last.
      path: the PNG file; SVG, PDF and CSV are put beside it.
      title: its beginning.
    """
    layers, whole = table.iloc[:-1], table.iloc[-1]
    place = np.arange(len(layers))
    rate, low, high = (
        100 * layers[f"failure_rate{end}"].to_numpy() for end in ("", "_low", "_high")
    )
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=7.0, height=1.5 + 0.17 * len(layers))
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(place, rate, height=0.7, color=VERMILLION)
        # At no failure the interval begins at 0 and rounding may put it beside.
        spread = np.clip([rate - low, high - rate], 0, None)
        left.errorbar(rate, place, xerr=spread, fmt="none", ecolor="black", elinewidth=0.7)
        left.set_yticks(place, layers["layer"], fontsize=6)
        left.invert_yaxis()
        left.set_xlim(left=0)
        left.set_xlabel(
            f"Analog-only failures with this layer alone on tiles\n(% of "
            f"{whole['digitally_correct']:,} digitally correct; "
            f"all layers: {100 * whole['failure_rate']:.1f} %)"
        )
        for name, colour, marker, dashes, label in (
            ("snr_db", BLUE, "o", "-", "in the running chip"),
            ("own_snr_db", GREEN, "s", "--", "this layer alone"),
        ):
            finite = layers[name].where(np.isfinite(layers[name]))
            right.plot(finite, place, dashes, color=colour, marker=marker, ms=3, label=label)
        right.set_xlabel("Signal-to-noise ratio of the outputs (dB)")
        figure.legend(loc="outside lower right", ncols=2)
        figure.suptitle(title, fontsize=9)
        return write_figure(figure, path, table)


def show(table: pd.DataFrame) -> None:
    """Prints a row a layer."""
    whole = table.iloc[-1]
    printed = Table(
        title=f"Analog-only failures, % of {whole['digitally_correct']:,} digitally correct",
        caption="Failures: this layer alone on tiles, with the 95 % interval. SNR: of its outputs.",
        box=box.SIMPLE_HEAD,
        min_width=80,  # of the caption
        padding=(0, 1, 0, 0),
    )
    printed.add_column("layer", no_wrap=True)
    for name in ("failures", "SNR (dB)", "own SNR (dB)"):
        printed.add_column(name, justify="right", no_wrap=True)
    for row in table.itertuples():
        rate, low, high = (
            100 * value for value in (row.failure_rate, row.failure_rate_low, row.failure_rate_high)
        )
        decibels = (
            "" if np.isnan(value) else f"{value:.1f}" for value in (row.snr_db, row.own_snr_db)
        )
        printed.add_row(row.layer, f"{rate:.1f} [{low:.1f}, {high:.1f}]", *decibels)
    Console(highlight=False).print(printed)


STUDY = Study(
    "layers",
    Layers,
    open_exported,
    run,
    opened_with=("profile", "limit"),
    of=("train", "export"),
    beside=("simulate",),
)
