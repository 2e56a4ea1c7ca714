"""One run of one stage: what it is given, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiments.settings.flags import Experiment
from jaxcurv import data


@dataclass(frozen=True)
class Job:
    """One run of one stage."""

    experiment: Experiment
    folder: Path
    data_dir: Path | None
    key: str = ""
    """Key of the stage's settings and inputs; "" for work beside the stages."""
    images: Mapping[str, str] = field(default_factory=dict)
    """`jaxcurv.data.datasets.listing` of the data set."""

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
    """The experiment's data set."""
    return data.load(job.experiment.data.name, job.data_dir, job.experiment.data.preprocessing)
