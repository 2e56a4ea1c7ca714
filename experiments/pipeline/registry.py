"""The registry of the stages: which settings and files each reads; their work is in `stages`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.runs import job
from experiments.runs.descriptions import Framework
from experiments.runs.frameworks import framework_of, has_chips, in_jax
from experiments.settings.flags import Experiment
from experiments.stages import (
    analyse,
    export,
    flips,
    own,
    pretrained,
    report,
    score,
    simulate,
    train,
)

OF_CHIPS = ("export", "moments", "flips", "simulate")
"""Stages left out for a network that cannot go onto chips."""

_OF_SCORES = {"analyse": analyse.analyse_scores, "report": report.report_scores}
"""What stages do where there are no chips."""

_JAX = ("jax", "flax", "optax", "orbax-checkpoint")
_AIHWKIT = ("torch", "aihwkit")
_TORCH = (*_AIHWKIT, "safetensors")


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    run: Callable[[job.Job], job.Outcome]
    settings: tuple[str, ...]
    """The settings that it reads, by dotted name; a group's name stands for all in it. But for
    those of `SPEED` they decide its result, together with its inputs."""
    after: tuple[str, ...]
    """The stages whose outputs it reads."""
    packages: tuple[str, ...]
    """What must be installed; the versions are recorded."""
    cpu_only: bool = False
    """Keep JAX off the accelerator: this stage also uses torch."""
    shows: tuple[str, ...] = ()
    """Files of commands beside the stages that it reads where they are there."""
    makes: tuple[str, ...] = ()
    """Files that earlier versions did not write: a record without one is not up to date."""
    images: tuple[str, ...] = ()
    """The splits of the data set whose images it reads, but for a few to look at."""
    reads: tuple[Path, ...] = ()
    """Files from outside the run's folder."""
    always: str = ""
    """Why it runs each time, for what it reads is only known then; "" where that is known before.
    What follows runs only if its outputs come out different."""


SPEED = frozenset(
    {
        *("score.batch_size", "simulate.batch_size", "simulate.device"),
        *("data.strict", "train.keep_every"),
    }
)
"""Settings that decide no result: how fast and where it is computed, what is refused, what is kept
beside it. They are recorded."""

LATER = frozenset({"train.clip_sigma", "train.noise", "train.start"})
"""Settings newer than the keys of unfinished work, which leave them out where they are None: what
was begun without them goes on."""

_SCORED = ("train", "validation", "test")
_SAMPLES = ("data", "folds", "limit", "limit_train")
_CHIPS = (
    "simulate.profiles",
    "simulate.adc",
    "simulate.wnoise",
    "simulate.pcm",
    "simulate.clipping",
    "simulate.coarse_bits",
)

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "train",
            train.train,
            settings=("data", "model", "train", "seed"),
            after=(),
            packages=_JAX,
            images=("train",),
        ),
        Stage(
            "score",
            score.score,
            settings=(*_SAMPLES, "seed", "score"),
            after=("train",),
            packages=_JAX,
            images=_SCORED,
        ),
        Stage(
            "export",
            export.export,
            settings=("data.name", "data.image_size", "data.resize_size", "data.interpolation"),
            after=("train",),
            packages=(*_JAX, *_TORCH),
            cpu_only=True,
        ),
        Stage(
            "moments",
            flips.moments,
            settings=(
                *(*_SAMPLES, "seed", *_CHIPS),
                *("simulate.adc_calibration", "simulate.batch_size"),
            ),
            after=("export",),
            packages=(*_JAX, *_TORCH),
            cpu_only=True,
            images=_SCORED,
        ),
        Stage(
            "flips",
            flips.flips,
            settings=(*_SAMPLES, *_CHIPS),
            after=("train", "moments"),
            packages=(*_JAX, "safetensors"),
            images=_SCORED,
        ),
        Stage(
            "simulate",
            simulate.simulate,
            settings=(*_SAMPLES, "seed", "simulate"),
            after=("export",),
            packages=_TORCH,
            images=_SCORED,
        ),
        Stage(
            "analyse",
            analyse.analyse,
            settings=(
                *("data.name", "model.architecture", "model.factory"),
                *("score.estimator", "score.compare", "analyse"),
            ),
            after=("train", "score", "flips", "simulate"),
            packages=("scikit-learn",),
            makes=("routing_guarantees.parquet",),
        ),
        Stage(
            "report",
            report.report,
            settings=tuple(field.name for field in dataclasses.fields(Experiment)),
            after=("train", "score", "flips", "simulate", "analyse"),
            packages=("matplotlib", "jinja2"),
            shows=("drift/drift.png", "remedies/remedies.png"),
        ),
    )
}


def stages_of(experiment: Experiment, folder: Path) -> dict[str, Stage]:
    """The stages of a run by name, in order.

    Those of chips are left out where the network has no PyTorch counterpart and the chips are
    AIHWKit's. Of a factory that `train` has not called yet this is not known: then all are there,
    and none asks for torch. Chips in JAX need no export.
    """
    framework = framework_of(experiment, folder)
    left_out: tuple[str, ...] = () if has_chips(experiment, folder) else OF_CHIPS
    if in_jax(experiment):
        left_out = ("export",)
    return {name: stage_of(name, experiment, framework) for name in STAGES if name not in left_out}


def stage_of(name: str, experiment: Experiment, framework: Framework | None = "torch") -> Stage:
    """A stage as the experiment has it: `train` takes over given weights, or an own network.

    What a factory reads is not known before it is called: `train` then always runs. A factory's
    torch module is brought to JAX wherever that computes, which takes torch.

    Args:
      name: the stage's.
      experiment: the run's settings.
      framework: what `framework_of` says of the run.
    """
    stage = STAGES[name]
    if in_jax(experiment) and name in OF_CHIPS:
        stage = _in_jax(stage)
    if (factory := experiment.model.factory) is not None:
        if name == "train":
            stage = dataclasses.replace(
                stage,
                run=own.take_own,
                cpu_only=True,
                images=_SCORED,
                always=f"calls {factory}, to see whether its network has changed",
            )
        if name == "simulate" and not in_jax(experiment):
            # The products are read in the graph that JAX takes.
            stage = dataclasses.replace(stage, packages=("jax", *stage.packages), cpu_only=True)
        if framework != "torch":
            stage = _without(stage, *(_AIHWKIT if in_jax(experiment) else _TORCH))
        elif "jax" in stage.packages:
            stage = dataclasses.replace(
                stage, packages=tuple(dict.fromkeys([*stage.packages, *_TORCH]))
            )
        return stage if framework != "jax" or in_jax(experiment) else _without_chips(stage)
    if name != "train":
        return stage
    if (weights := experiment.model.weights) is None:
        return _trained(stage, experiment)
    return dataclasses.replace(_reading(stage, weights), run=pretrained.take_over, cpu_only=True)


def _trained(stage: Stage, experiment: Experiment) -> Stage:
    """Training, with what its noise is made of and the weights that it starts from."""
    if (noise := experiment.training_noise) is not None:
        parts = {"wnoise": noise.wnoise, "pcm": noise.memory, "clipping": noise.clipping}
        read = [f"simulate.{name}" for name, part in parts.items() if part is not None]
        stage = dataclasses.replace(stage, settings=(*stage.settings, *read))
    start = experiment.train.start
    return stage if start is None else _reading(stage, start)


def _reading(stage: Stage, weights: str) -> Stage:
    """A stage that reads given weights: a file, or published ones by name."""
    file = pretrained.weights_file(weights)
    return dataclasses.replace(
        stage,
        packages=(*_JAX, "torch", "safetensors"),
        reads=() if file is None else (file,),
    )


def _in_jax(stage: Stage) -> Stage:
    """A stage of chips where these are in JAX: it begins with what `train` left."""
    stage = _without(stage, *_AIHWKIT)
    settings = stage.settings
    return dataclasses.replace(
        stage,
        settings=settings if "simulate" in settings else (*settings, "simulate.engine"),
        after=tuple(dict.fromkeys("train" if name == "export" else name for name in stage.after)),
        packages=tuple(dict.fromkeys([*_JAX, *stage.packages])),
        cpu_only=False,
    )


def _without(stage: Stage, *packages: str) -> Stage:
    left = tuple(name for name in stage.packages if name not in packages)
    return dataclasses.replace(stage, packages=left)


def _without_chips(stage: Stage) -> Stage:
    return dataclasses.replace(
        stage,
        run=_OF_SCORES.get(stage.name, stage.run),
        after=tuple(name for name in stage.after if name not in OF_CHIPS),
        shows=(),
        makes=(),
    )
