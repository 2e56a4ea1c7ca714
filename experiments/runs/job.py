"""One run of one stage: what it is given, and what it leaves."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.settings.flags import Data, Experiment
from jaxcurv import data
from jaxcurv.data.datasets import listing, listing_of, open_dataset

_SKIPPED = ".* files or links to folders are not read"
"""How the warning of files that are no images begins."""


@dataclass(frozen=True)
class Job:
    """One run of one stage."""

    experiment: Experiment
    folder: Path
    data_dir: Path | None
    key: str = ""
    """Key of the stage's settings and inputs; "" for work beside the stages."""
    images: Mapping[str, str] = field(default_factory=dict)
    """`list_images` of the data set."""

    def own_folder(self, name: str) -> Path:
        """The folder `name` of the run, and in it that of these settings and inputs."""
        return self.folder / name / self.key


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves."""

    outputs: list[Path]
    device: str
    measured: dict[str, float] = field(default_factory=dict)
    """What took how long, for the stage's record: no table holds a duration."""
    scratch: Path | None = None
    """Unfinished work, of no more use once the stage is recorded."""


def load_data(job: Job) -> data.ImageDataset:
    """The experiment's data set.

    Raises:
      FileNotFoundError, ModuleNotFoundError: it is not there, or nothing can read it.
      ValueError: its files are not as they should be, or a folder by its path is given for a
        network that would be trained on it.
    """
    settings = job.experiment.data
    if settings.folder is None:
        return data.load(settings.name, job.data_dir, settings.preprocessing)
    if job.experiment.model.factory is None:
        raise ValueError(
            f"--data.name {settings.name} is a path, which a network of your own takes "
            "(--model.factory): for others give the folder's name, and where it lies with "
            "--data-dir"
        )
    return open_dataset(
        settings.folder,
        settings.preprocessing,
        channels=None if settings.mean is None else len(settings.mean),
        held_out=settings.validation_fraction,
        seed=settings.split_seed,
    )


def list_images(settings: Data, data_dir: Path | None) -> dict[str, str]:
    """What tells an experiment's images from changed ones, by split; see `listing`.

    Files that are no images are named in a warning.

    Raises:
      FileNotFoundError: a folder of images has none, or none of a class.
      ValueError: there are such files, and the settings are strict.
    """
    if not settings.strict:
        return _listed(settings, data_dir)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", _SKIPPED, UserWarning)
        try:
            return _listed(settings, data_dir)
        except UserWarning as warning:
            raise ValueError(f"{warning} (--data.no-strict skips them)") from None


def skip_silently() -> None:
    """Files that are no images are not named again in this process."""
    warnings.filterwarnings("ignore", _SKIPPED, UserWarning)


def _listed(settings: Data, data_dir: Path | None) -> dict[str, str]:
    return (
        listing(settings.name, data_dir) if settings.folder is None else listing_of(settings.folder)
    )
