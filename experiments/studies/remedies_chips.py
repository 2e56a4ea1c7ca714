"""The logits behind every remedy: each kind of chip, at each time, on every image. All are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bridge.chips.profiles import Profile, to_json
from experiments.chips.protocol import Chip, Programmable
from experiments.runs.resume import key_of, table_at
from jaxcurv.data import Normalised
from jaxcurv.progress import progress

OWN = ""
"""The network of the run."""


@dataclass(frozen=True)
class Kind:
    """How a chip is made and run."""

    compensated: bool = False
    """Whether its drift is compensated by one factor a tile."""
    recalibrated: bool = False
    """Whether its BatchNorm statistics are measured on it."""
    digital_layers: tuple[str, ...] = ()
    """Layers that no tile computes."""
    extra_bits: int = 0
    """Bits that its ADC has more than the profile says."""
    other: int = 0
    """0 for the chip itself; k for the k-th other chip that answers the same images."""
    reads: int = 1
    """Passes over the same devices whose logits are averaged."""
    network: str = OWN
    """Whose weights it has: the run's network, or the hash of a fine-tuned one's file."""


@dataclass(frozen=True, eq=False)
class Bench:
    """What chips are made of, and what they are tried on."""

    networks: Mapping[str, Programmable]
    """The run's network under OWN, and a fine-tuned one under its hash."""
    profile: Profile
    """Its memory's time and compensation are those of the kind and the time."""
    folds: Mapping[str, Normalised] = field(repr=False)
    """The images, test and validation, and `measured`: those that set statistics and fits."""
    seeds: Sequence[int]
    batch_size: int
    folder: Path
    """Where what is finished is kept, and looked for."""

    def profile_of(self, kind: Kind, time: float = 0.0) -> Profile:
        """The profile of a kind of chip, so many seconds after programming."""
        memory = self.profile.memory
        assert memory is not None
        compensation = "global" if kind.compensated else None
        aged = replace(memory, compensation=compensation, t_inference=time)
        made = replace(self.profile, memory=aged)
        if not kind.extra_bits:
            return made
        assert made.adc is not None
        return replace(made, adc=replace(made.adc, bits=made.adc.bits + kind.extra_bits))

    def images(self, fold: str, count: int | None = None) -> NDArray[np.float32]:
        """The first images of a fold, None for all, normalised."""
        source = self.folds[fold]
        samples = source.__getitems__(range(len(source) if count is None else count))
        return np.stack([sample["image"] for sample in samples])


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits float32 [chips, samples, class] and labels [samples], by fold."""

    logits: Mapping[str, NDArray[np.float32]]
    labels: Mapping[str, NDArray[np.int64]]

    def right(self) -> dict[str, NDArray[np.bool_]]:
        """Whether the largest logit is the label's, [chips, samples] by fold."""
        return {
            fold: some.argmax(axis=-1) == self.labels[fold] for fold, some in self.logits.items()
        }


def predictions(
    bench: Bench, kinds: Sequence[Kind], times: Sequence[float]
) -> dict[tuple[Kind, float], Predictions]:
    """Tries every kind of chip at every time on all images.

    Args:
      bench: what to try, and on what.
      kinds: the kinds of chips.
      times: seconds after programming.

    Returns:
      The predictions of the chips, in the order of the bench's seeds, by kind and time.
    """
    images = bench.images("measured")
    count = sum(map(len, bench.folds.values()))

    @lru_cache(maxsize=1)
    def programmed(kind: Kind, seed: int) -> Chip:
        return bench.networks[kind.network].program(
            bench.profile_of(kind), seed, digital_layers=kind.digital_layers
        )

    def tried(kind: Kind, seed: int, time: float) -> pd.DataFrame:
        chip = programmed(replace(kind, recalibrated=False, reads=1), seed).at(time)
        if kind.recalibrated:
            chip = chip.recalibrated(images, bench.batch_size)
        tables = []
        for fold, source in bench.folds.items():
            table = chip.predict(
                source,
                f"{fold} of chip {seed}",
                batch_size=bench.batch_size,
                reads=kind.reads,
            )
            tables.append(table[["index", "label", "logits"]].assign(fold=fold))
        return pd.concat(tables, ignore_index=True)

    found: dict[tuple[Kind, float], list[pd.DataFrame]] = {
        (kind, time): [] for kind in kinds for time in times
    }
    of_kinds = [
        kind.reads * count
        + kind.recalibrated * bench.networks[kind.network].batch_norms * len(images)
        for kind in kinds
    ]
    with progress(sum(of_kinds) * len(times) * len(bench.seeds), "remedies"):
        for number in bench.seeds:
            for kind, work in zip(kinds, of_kinds, strict=True):
                # Another chip of these seeds is one of more seeds: both are one file.
                seed, itself = number + kind.other * len(bench.seeds), replace(kind, other=0)
                what = [kind.recalibrated, kind.digital_layers, itself.other, kind.reads]
                if kind.network != OWN:  # the run's own keep their names
                    what.append(kind.network)
                key = key_of([to_json(bench.profile_of(itself)), what])
                for time in times:
                    path = bench.folder / f"{key}-{seed}-{time!r}.parquet"
                    with progress(work, f"chip {seed}"):
                        table = table_at(path, lambda: tried(itself, seed, time))  # noqa: B023
                    found[kind, time].append(table)
    return {which: _stacked(tables) for which, tables in found.items()}


def digital_predictions(bench: Bench) -> Predictions:
    """The same of the digital model, as of one chip."""

    def tried() -> pd.DataFrame:
        tables = []
        for fold, source in bench.folds.items():
            table = bench.networks[OWN].predict(
                source, f"digital {fold}", batch_size=bench.batch_size
            )
            tables.append(table[["index", "label", "logits"]].assign(fold=fold))
        return pd.concat(tables, ignore_index=True)

    with progress(sum(map(len, bench.folds.values())), "digital"):
        return _stacked([table_at(bench.folder / "digital.parquet", tried)])


def layers_alone(bench: Bench, time: float) -> pd.DataFrame:
    """What each layer alone costs on the first chip, compensated, on the validation images.

    Returns:
      The table of `bridge.chips.layer_failures`.
    """
    profile, source = bench.profile_of(Kind(compensated=True), time), bench.folds["validation"]

    def measured() -> pd.DataFrame:
        options = {"seed": bench.seeds[0], "chips": 1, "batch_size": bench.batch_size}
        return bench.networks[OWN].layer_failures(profile, source, **options)

    key = key_of([to_json(profile), bench.seeds[0]])
    with progress((2 + len(bench.networks[OWN].layers)) * len(source), "layers"):
        return table_at(bench.folder / f"layers-{key}.parquet", measured)


def _stacked(tables: Sequence[pd.DataFrame]) -> Predictions:
    logits, labels = {}, {}
    for fold in tables[0]["fold"].unique():
        rows = [table[table["fold"] == fold] for table in tables]
        logits[fold] = np.stack([np.stack(one["logits"].to_list()) for one in rows])
        labels[fold] = rows[0]["label"].to_numpy()
    return Predictions(logits, labels)
