"""Fine-tuning at one budget: does weight on the vulnerable minority beat weight on all?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from bridge.chips.profiles import FULL_COMPENSATED, to_json
from bridge.report.tables.formats import with_interval
from experiments.runs.files import write_parquet
from experiments.settings.flags import Experiment
from experiments.studies import finetune_figures as figures
from experiments.studies.chip_settings import split_setting, title_of
from experiments.studies.finetune_networks import train, trainings_of, try_all
from experiments.studies.finetune_opened import PROFILE_FLAG, Opened, open_run
from experiments.studies.finetune_tables import ALL, VULNERABLE, summarise
from experiments.studies.finetune_variants import (
    NOISE_AWARE,
    ORIGINAL,
    PLAIN,
    WORDS,
    Variant,
    require_variants,
)
from experiments.studies.opening import Study
from jaxcurv.progress import progress
from jaxcurv.settings import is_number
from jaxcurv.storage.checksums import write_json


@dataclass(frozen=True)
class Finetune:
    """Fine-tuning of a run's network at one budget of gradient steps: on all images alike, or with
    weight on the vulnerable ones."""

    profile: str = FULL_COMPENSATED
    """Setting of the chips, and of the noise in noise-aware training: a hardware profile, or one
    with @ and the seconds after programming at which its memory is read, as in pcm_gdc@3600.
    Without @ they are those of --simulate.pcm.t-inference. Training draws what weights get of it:
    memory, weight noise drawn per chip and clipping."""
    variants: tuple[Variant, ...] = get_args(Variant)
    """Trainings to compare. `plain` has no noise, the others are noise-aware; `curvature`,
    `flip_probability` and `margin` have weight on the most vulnerable decile of the training images
    by that score, `random` on a random one. Plain and noise_aware must be among them."""
    emphasis: float = 4.0
    """Weight in the loss of the images of the chosen decile: how often one counts in an epoch,
    where 1 is once. The others have so much less that the mean weight is 1. Above 1 it favours the
    decile; at most 10."""
    steps: int = 300
    """Gradient steps of every training; the networks are those of the last step. 0 leaves them as
    they are."""
    learning_rate: float = 0.01
    """Peak learning rate, reached after a tenth of the steps; it falls to zero as a cosine.
    Momentum, weight decay, augmentation and clipping are those of --train.*."""
    batch_size: int | None = None
    """Images of a gradient step; `none` takes --train.batch-size."""
    seeds: int = 3
    """Training seeds: --seed, --seed + 1 and so on. A seed's trainings take the same images in the
    same order, with the same noise. Finished networks are kept: ask for more later."""
    chips: int = 5
    """Chips on which every network is tried, with seeds --seed, --seed + 1 and so on, the same for
    every network."""
    limit: int | None = None
    """Largest number of images of the test fold to try; `none` takes all that the run has
    scored."""
    out: Path | None = None
    """Folder of the results; `none` is finetune/ in the run's folder."""

    def __post_init__(self) -> None:
        split_setting(self.profile, PROFILE_FLAG)
        require_variants(self.variants)
        if not is_number(self.emphasis) or not 0 < self.emphasis <= 10:
            raise ValueError(
                "emphasis must be above 0 and at most 10, for the others would have a negative "
                f"weight; got {self.emphasis}"
            )
        if not is_number(self.learning_rate) or self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        if self.steps < 0 or min(self.seeds, self.chips) < 1:
            raise ValueError(
                "steps must not be negative, seeds and chips be at least 1; got "
                f"{self.steps}, {self.seeds}, {self.chips}"
            )
        if self.batch_size is not None and self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2; got {self.batch_size}")
        if self.limit is not None and self.limit < 10:
            raise ValueError(f"limit must be at least 10, to have deciles; got {self.limit}")


def run(opened: Opened, experiment: Experiment, settings: Finetune, out: Path) -> None:
    """Fine-tunes the network in each variant, tries all on the same chips and compares them.

    Leaves finetune.parquet (a row a variant, training seed and chip; `row_of`), finetune.csv (over
    seeds and chips, `summarise`), drawn as finetune.png, .svg and .pdf, weights/ with every
    fine-tuned network, which `train --train.start` goes on from, and settings.json. What is in
    weights/ and pieces/ is not computed again.
    """
    recipe = replace(opened.recipe, learning_rate=settings.learning_rate)
    trainings = trainings_of(
        opened,
        settings.variants,
        range(experiment.seed, experiment.seed + settings.seeds),
        recipe,
        out / "weights",
        steps=settings.steps,
        emphasis=settings.emphasis,
    )
    chips = range(experiment.seed, experiment.seed + settings.chips)
    trained = len(trainings) * settings.steps * recipe.batch_size
    tried = (1 + len(trainings)) * (1 + len(chips)) * len(opened.test)
    with progress(trained + tried, "finetune"):
        train(opened, trainings, recipe, steps=settings.steps)
        rows = try_all(opened, trainings, chips, out / "pieces")
    table = summarise(rows, experiment.analyse.confidence)
    write_parquet(out / "finetune.parquet", rows)
    title = (
        f"{experiment.data.title}, {experiment.model.title}, {title_of(opened.name)}: "
        f"{settings.steps} steps, training seeds: {settings.seeds}, chips: {settings.chips}"
    )
    figures.draw(table, out / "finetune.png", title)
    write_json(
        out / "settings.json",
        {
            **opened.scored.origin,
            "device": opened.scored.made_with["device"],
            "versions": opened.versions,
            "setting": opened.name,
            "profile": to_json(opened.profile),
            "noise": to_json(opened.noise),
            "recipe": asdict(recipe),
            "steps": settings.steps,
            "emphasis": settings.emphasis,
            "training_images": len(opened.indices),
            "test_images": len(opened.test),
            "chips": list(chips),
            "confidence": experiment.analyse.confidence,
            "weights": {
                f"{one.variant}, seed {one.seed}": one.path.relative_to(out).as_posix()
                for one in trainings
            },
        },
    )
    show(table, title)
    for sentence in verdicts(table, len(opened.indices)):
        print(sentence)
    print(f"{out / 'finetune.png'}, finetune.csv, finetune.parquet (each chip) and weights/")


def verdicts(table: pd.DataFrame, images: int) -> Iterator[str]:
    """What the intervals of the differences say, in sentences.

    Args:
      table: as `summarise` returns it.
      images: how many training images there were.
    """
    rates = table[table["measure"] == "failure_rate"].set_index(["variant", "images"])
    for variant in rates.index.unique("variant"):
        if variant in (ORIGINAL, PLAIN, NOISE_AWARE):
            continue
        said = []
        for which in (ALL, VULNERABLE):
            row = rates.loc[(variant, which)]
            value, low, high = (
                100 * row[f"difference_to_{NOISE_AWARE}{end}"] for end in ("", "_low", "_high")
            )
            shown = "fewer" if high < 0 else "more" if low > 0 else "no difference shown"
            said.append(f"{which} {with_interval(value, low, high, '+.1f')} ({shown})")
        yield f"Failures, {WORDS[variant]} less all alike, points: {'; '.join(said)}."
    counts = {"training seeds": rates["seeds"].max(), "chips": rates["chips"].max()}
    others = " and ".join(name for name, count in counts.items() if count > 1)
    intervals = (
        f"Intervals are for other {others},\nof these test images, not adjusted for their number."
        if others
        else "One seed and one chip\nhave no intervals."
    )
    yield (
        f"All were trained on the {images:,} training images that the run has scored. Failures: "
        f"images\nthat the network was right on before and that a chip gets wrong. {intervals}"
    )


def show(table: pd.DataFrame, title: str) -> None:
    """Prints accuracy and failures of each variant, and differences from the two references."""
    rows = table.set_index(["variant", "images", "measure"])
    measured = _printed(title, "digital", "chips", "failures", "of D10")
    less = {
        reference: _printed(
            f"Failures less those of {WORDS[reference]}, percentage points", "all", "D10"
        )
        for reference in (PLAIN, NOISE_AWARE)
    }
    for variant in table["variant"].unique():
        failing = {which: rows.loc[(variant, which, "failure_rate")] for which in (ALL, VULNERABLE)}
        accuracies = (rows.loc[(variant, ALL, one)] for one in ("digital_accuracy", "accuracy"))
        measured.add_row(
            WORDS[variant],
            *(f"{100 * row['value']:.1f}" for row in accuracies),
            _interval(failing[ALL], "value", ".1f"),
            _interval(failing[VULNERABLE], "value", ".0f"),
        )
        for reference, printed in less.items():
            name = f"difference_to_{reference}"
            printed.add_row(
                WORDS[variant], *(_interval(row, name, "+.1f") for row in failing.values())
            )
    console = Console(highlight=False)
    for printed in (measured, *less.values()):
        console.print(printed)


def _printed(title: str, *columns: str) -> Table:
    printed = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), min_width=60)
    printed.add_column("variant", no_wrap=True)
    for name in columns:
        printed.add_column(name, justify="right", no_wrap=True)
    return printed


def _interval(row: pd.Series, name: str, form: str) -> str:
    value, low, high = (100 * row[name + end] for end in ("", "_low", "_high"))
    return with_interval(value, low, high, form)


STUDY = Study(
    "finetune",
    Finetune,
    open_run,
    run,
    opened_with=("profile", "variants", "emphasis", "batch_size", "limit"),
    of=("train", "score", "export"),
)
