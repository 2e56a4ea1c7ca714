"""The stages in order: which are up to date, and each other one in a process of its own.

A finished stage is skipped while its settings, the hashes of what it read and wrote, and package
versions are as its record says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from experiments import flips, pretrained, stages
from experiments.artefacts import sha256
from experiments.errors import at_work
from experiments.records import read_record, recorded_settings, write_record
from experiments.settings import Experiment
from experiments.termination import (
    INTERRUPTED,
    TERMINATED,
    Terminated,
    end_with_parent,
    raise_on_sigterm,
)
from jaxcurv.lock import hold
from jaxcurv.sealed import write_json

_JAX = ("jax", "flax", "optax", "orbax-checkpoint")
_TORCH = ("torch", "aihwkit", "safetensors")


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    run: Callable[[stages.Job], stages.Outcome]
    settings: tuple[str, ...]
    """The parts of the experiment that it depends on, besides its inputs."""
    after: tuple[str, ...]
    """The stages whose outputs it reads."""
    packages: tuple[str, ...]
    """What must be installed; the versions are recorded."""
    cpu_only: bool = False
    """Keep JAX off the accelerator: this stage also uses torch."""
    shows: tuple[str, ...] = ()
    """Files of commands beside the stages that it reads where they are there."""
    reads: tuple[Path, ...] = ()
    """Files from outside the run's folder."""


_SCORED = ("data", "folds", "limit", "seed")

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "train",
            stages.train,
            settings=("data", "model", "train", "seed"),
            after=(),
            packages=_JAX,
        ),
        Stage(
            "score",
            stages.score,
            settings=(*_SCORED, "score"),
            after=("train",),
            packages=_JAX,
        ),
        Stage(
            "export",
            stages.export,
            settings=("data",),
            after=("train",),
            packages=(*_JAX, *_TORCH),
            cpu_only=True,
        ),
        Stage(
            "moments",
            flips.moments,
            settings=(*_SCORED, "simulate", "flip"),
            after=("export",),
            packages=(*_JAX, *_TORCH),
            cpu_only=True,
        ),
        Stage(
            "flips",
            flips.flips,
            settings=(*_SCORED, "simulate"),
            after=("train", "moments"),
            packages=(*_JAX, "safetensors"),
        ),
        Stage(
            "simulate",
            stages.simulate,
            settings=(*_SCORED, "simulate"),
            after=("export",),
            packages=_TORCH,
        ),
        Stage(
            "analyse",
            stages.analyse,
            settings=("data", "model", "analyse"),
            after=("score", "flips", "simulate"),
            packages=("scikit-learn",),
        ),
        Stage(
            "report",
            stages.report,
            settings=tuple(field.name for field in dataclasses.fields(Experiment)),
            after=("train", "score", "flips", "simulate", "analyse"),
            packages=("matplotlib", "jinja2"),
            shows=("drift/drift.png",),
        ),
    )
}


def stage_of(name: str, experiment: Experiment) -> Stage:
    """A stage as the experiment has it: with given weights, `train` takes them over."""
    stage = STAGES[name]
    if name != "train" or experiment.model.weights is None:
        return stage
    file = pretrained.weights_file(experiment)
    return dataclasses.replace(
        stage,
        run=pretrained.take_over,
        packages=(*_JAX, "torch", "safetensors"),
        cpu_only=True,
        reads=() if file is None else (file,),
    )


_GRACE_SECONDS = 30.0
"""For a stage that was told to end; schedulers allow a job about as long."""


_OF_A_TERMINAL_SECONDS = 5.0
"""After Ctrl-C in a terminal, which reaches the stage too, it has ended by then; else it is sent
the signal, which came to the command alone."""


class StageFailed(Exception):
    """A stage ended with an error that it has already shown."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code


def run(
    experiment: Experiment,
    folder: Path,
    names: tuple[str, ...],
    *,
    data_dir: Path | None,
    debug: bool,
    say: Callable[[str], None],
) -> None:
    """Runs stages in order, skipping those that are up to date.

    Args:
      experiment: the settings; those of the finished stages are kept in `settings.json`.
      folder: the run's folder.
      names: which stages.
      data_dir: where data sets are; None for TFDS's default.
      debug: show tracebacks.
      say: prints one line of progress.

    Raises:
      ValueError, OSError: the run cannot start: something is not installed, the folder cannot be
        written, or an earlier stage has not run.
      StageFailed: a stage failed and said why.
      WorkFailed: settings.json could not be written.
    """
    for name in names:
        package_versions(stage_of(name, experiment).packages)
    if "simulate" in names:
        require_device(experiment.simulate.device)
    require_writable(folder)
    with hold(folder):
        for name in names:
            stage = stage_of(name, experiment)
            identity = _identity(stage, experiment, folder)
            if _is_up_to_date(stage, identity, folder):
                say(f"{name}: up to date")
            else:
                say(f"{name} ...")
                fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
                job = stages.Job(experiment, folder, data_dir, fingerprint)
                if code := _exit_code_of(name, job, identity, debug):
                    raise StageFailed(code)
            # Of a finished stage too: a process may have been killed before, the file damaged.
            with at_work():
                write_json(folder / "settings.json", recorded_settings(folder))


def _exit_code_of(name: str, job: stages.Job, identity: dict[str, Any], debug: bool) -> int:
    """Runs one stage in a process of its own, which ends with this one."""
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(name, job, identity, debug)
    )
    try:
        process.start()
        process.join()
    except BaseException as interruption:
        if process.is_alive() and process.pid is not None:
            if isinstance(interruption, Terminated):
                process.terminate()
            elif isinstance(interruption, KeyboardInterrupt):
                process.join(timeout=_OF_A_TERMINAL_SECONDS)
                if process.is_alive():
                    os.kill(process.pid, signal.SIGINT)
            process.join(timeout=_GRACE_SECONDS)
        raise
    finally:
        # Also after a second Ctrl-C: the lock is not released while the stage works.
        if process.is_alive():
            process.kill()
            process.join()
    assert process.exitcode is not None
    if process.exitcode >= 0:
        return process.exitcode
    ended = -process.exitcode
    names = {one.value: one.name for one in signal.Signals}
    print(
        # A progress bar may stand in the line.
        f"\nerror: {name} was ended by {names.get(ended, f'signal {ended}')}"
        + (", as a system does that is out of memory" if ended == signal.SIGKILL else "")
        + "; the same command goes on from here",
        file=sys.stderr,
    )
    return 128 + ended


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of Python, of this package and of what a stage needs.

    Raises:
      ModuleNotFoundError: names the missing ones and what installs them.
    """
    versions, missing = {"python": platform.python_version()}, []
    for name in ("jaxcurv", "numpy", "pandas", "pyarrow", "tensorflow-datasets", *names):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise ModuleNotFoundError(
            f"not installed: {', '.join(missing)}; "
            'pip install ".[experiments]" in the checkout installs it'
        )
    return versions


def require_device(name: str, flag: str = "--simulate.device") -> None:
    """Refuses a torch device, which `flag` named, that is not there.

    Raises:
      ValueError: torch has no such device.
    """
    if name == "cpu":
        return
    import torch

    if (torch.device(name).index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices, not {name}: "
            f"use {flag} cpu, or install torch for CUDA"
        )


def require_writable(folder: Path, flag: str = "--out") -> None:
    """Makes the folder, which `flag` named, and proves that files can be written there.

    Raises:
      OSError: they cannot.
    """
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder} ({error.strerror}): choose another with "
            f"{flag}"
        ) from error


def _identity(stage: Stage, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """What decides the stage's result: settings, versions and the hashes of its inputs.

    Raises:
      FileNotFoundError: an earlier stage has not run.
      ValueError: what it wrote has changed since, or was made with other settings.
    """
    # Through JSON, so that it compares equal to what is read back from a record.
    settings = json.loads(json.dumps(dataclasses.asdict(experiment)))
    inputs = {}
    for name in _before(stage):
        record = read_record(folder, name)
        if record is None:
            raise FileNotFoundError(
                f"{stage.name} needs the results of {name} in {folder}: run {name} first"
            )
        for key, value in record["settings"].items():
            if settings[key] != value:
                differing = ", ".join(_differing(key, value, settings[key]))
                raise ValueError(
                    f"{name} in {folder} was run with other flags ({differing}): give the same, or "
                    f"run {name} again"
                )
        for output, digest in record["outputs"].items() if name in stage.after else ():
            if not (folder / output).exists() or sha256(folder / output) != digest:
                raise ValueError(
                    f"{folder / output} is not as {name} wrote it: run {name} again before "
                    f"{stage.name}"
                )
            inputs[output] = digest
    inputs |= {str(path): sha256(path) for path in stage.reads}
    inputs |= {name: sha256(folder / name) for name in stage.shows if (folder / name).exists()}
    return {
        "settings": {name: settings[name] for name in stage.settings},
        "inputs": inputs,
        "versions": package_versions(stage.packages),
    }


def _before(stage: Stage) -> list[str]:
    """The stages that lead to this one, in order."""
    needed = set(stage.after).union(*(_before(STAGES[name]) for name in stage.after))
    return [name for name in STAGES if name in needed]


def _differing(name: str, was: Any, now: Any) -> Iterator[str]:
    """The flags of a setting, or of a group of settings, that are not as they were."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            yield from _differing(f"{name}.{key}", was.get(key), now.get(key))
    elif was != now:
        yield f"--{name.replace('_', '-')} was {was}, is {now}"


def _is_up_to_date(stage: Stage, identity: dict[str, Any], folder: Path) -> bool:
    record = read_record(folder, stage.name)
    return (
        record is not None
        and all(record[key] == value for key, value in identity.items())
        and all(
            (folder / name).exists() and sha256(folder / name) == digest
            for name, digest in record["outputs"].items()
        )
    )


def _work(name: str, job: stages.Job, identity: dict[str, Any], debug: bool) -> None:
    """Runs one stage and records it; the body of the stage's own process."""
    stage = stage_of(name, job.experiment)
    if stage.cpu_only:
        os.environ["JAX_PLATFORMS"] = "cpu"
    raise_on_sigterm()
    end_with_parent()
    tqdm.set_lock(threading.RLock())  # its own has a semaphore, whose leak Python would report
    started = time.monotonic()
    try:
        outcome = stage.run(job)
        outputs = {
            path.relative_to(job.folder).as_posix(): sha256(path) for path in outcome.outputs
        }
        record = {
            "name": name,
            **identity,
            "outputs": outputs,
            "device": outcome.device,
            "platform": platform.platform(),
            "environment": _environment(),
            "seconds": round(time.monotonic() - started, 1),
            "measured": outcome.measured,
        }
        write_record(job.folder, record)
        if outcome.scratch is not None:
            shutil.rmtree(outcome.scratch)
    except KeyboardInterrupt:
        print(f"{name} interrupted; the same command goes on from here", file=sys.stderr)
        _end(INTERRUPTED)
    except Terminated:
        print(f"{name} terminated; the same command goes on from here", file=sys.stderr)
        _end(TERMINATED)
    except Exception as error:
        show_error(error, debug)
        _end(1)


def _end(code: int) -> NoReturn:
    """Ends this process at once: in Python's own end, what libraries left unfinished complains."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _environment() -> dict[str, str]:
    """The variables that change what JAX, XLA, CUDA or torch compute, or on how many devices."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(
            ("JAX_", "XLA_", "CUDA_", "CUBLAS_", "TORCH_", "OMP_", "MKL_", "NVIDIA_")
        )
    }


def show_error(error: Exception, debug: bool) -> None:
    """One line on standard error, or the whole traceback."""
    if debug:
        traceback.print_exception(error)
        return
    expected = isinstance(error, ValueError | OSError | ImportError | FloatingPointError)
    what = "" if expected else f"unexpected {type(error).__name__}: "
    hint = "" if expected else " (--debug shows where)"
    print(f"error: {what}{' '.join(str(error).split())}{hint}", file=sys.stderr)
