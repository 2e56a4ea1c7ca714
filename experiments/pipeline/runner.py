"""The stages in order: which are up to date, and each other one in a process of its own.

A finished stage is skipped while the settings that decide its result and the hashes of what it read
and wrote are as its record says. Other versions of packages are named, and change nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from experiments.pipeline.plan import epochs_gone, in_words, plan
from experiments.pipeline.registry import Stage, stages_of
from experiments.pipeline.up_to_date import (
    Identity,
    deciding,
    identity_of,
    is_up_to_date,
    other_versions,
)
from experiments.runs.files import sha256, writable
from experiments.runs.frameworks import (
    MISSING,
    cure,
    has_chips,
    require_chips,
    why_no_chips,
)
from experiments.runs.job import Job, list_images, skip_silently
from experiments.runs.records import read_record, write_record
from experiments.runs.remembered import recall_run, remember, settings_file
from experiments.runs.resume import key_of
from experiments.settings.flags import Experiment
from experiments.system.devices import require_device
from experiments.system.environment import environment, package_versions
from experiments.system.errors import StageFailed, at_work, show_error
from experiments.system.processes import (
    INTERRUPTED,
    TERMINATED,
    Terminated,
    end_with_parent,
    named_if_ended,
    raise_on_sigint,
    raise_on_sigterm,
)
from jaxcurv import progress
from jaxcurv.storage.lock import lock

_GRACE_SECONDS = 30.0
"""For a stage that was told to end; schedulers allow a job about as long."""

_OF_A_TERMINAL_SECONDS = 5.0
"""After Ctrl-C in a terminal, which reaches the stage too, it has ended by then; else it is sent
the signal, which came to the command alone."""


def run(
    experiment: Experiment,
    folder: Path,
    names: tuple[str, ...],
    *,
    preset: str,
    data_dir: Path | None,
    debug: bool,
    say: Callable[[str], None],
    dry_run: bool = False,
) -> None:
    """Runs stages in order, skipping those that are up to date.

    Says first which settings are not as the folder remembers them and, where something was run
    before, what will be computed again.

    Args:
      experiment: the settings. The folder remembers them once a stage has finished, was found up to
        date or was interrupted; not where it failed.
      folder: the run's folder.
      names: which stages; those that the run does not have are left out, and said.
      preset: the preset's name, remembered with the settings.
      data_dir: where data sets are; None for TFDS's default.
      debug: show tracebacks.
      say: prints one line of progress.
      dry_run: only say what would be done.

    Raises:
      ValueError, OSError: the run cannot start: something is not installed, the folder cannot be
        written, an earlier stage has not run, or the run has none of the stages.
      StageFailed: a stage failed and said why.
      WorkFailed: settings.json could not be written.
    """
    stages = stages_of(experiment, folder)
    there = [name for name in names if name in stages]
    if not there:
        require_chips(experiment, folder, names[0])
        raise ValueError(
            f"{names[0]} is for AIHWKit's chips: with --simulate.engine jax there is nothing to do"
        )
    for name in there:
        package_versions(stages[name].packages)
    if "simulate" in there:
        require_device(experiment.simulate.device)
    images = list_images(experiment.data, data_dir)
    if dry_run:
        _say_plan(experiment, folder, names, images, say, whole=True)
        return
    with writable(folder), lock(folder):
        _say_plan(experiment, folder, names, images, say)
        said = _left_out(names, experiment, folder)
        for name in names:
            stages = stages_of(experiment, folder)
            missing = _left_out(names, experiment, folder)
            if missing not in ("", said):  # `train` has found out
                said = missing
                say(missing)
            if name not in stages:
                continue
            stage = stages[name]
            identity = identity_of(stage, experiment, folder, images)
            code = 0
            if is_up_to_date(stage, identity, folder):
                say(f"{name}: up to date{_made_with_others(stage, folder)}")
            else:
                progress.announce(name)
                job = Job(experiment, folder, data_dir, key_of(deciding(identity)), images)
                try:
                    code = _exit_code_of(name, job, identity, debug)
                except (KeyboardInterrupt, Terminated):
                    remember(settings_file(folder), preset, asdict(experiment))
                    raise
                if code == 0 or code >= 128:  # else it failed, perhaps for a setting
                    with at_work():
                        remember(settings_file(folder), preset, asdict(experiment))
            if code:
                raise StageFailed(code)
        with at_work():
            remember(settings_file(folder), preset, asdict(experiment))


def _made_with_others(stage: Stage, folder: Path) -> str:
    """A remark on the package versions of a finished stage; empty where they are today's."""
    record = read_record(folder, stage.name)
    assert record is not None
    other = other_versions(record, package_versions(stage.packages))
    return f" (made with {other})" if other else ""


def _say_plan(
    experiment: Experiment,
    folder: Path,
    names: tuple[str, ...],
    images: Mapping[str, str],
    say: Callable[[str], None],
    *,
    whole: bool = False,
) -> None:
    """Says what changes and what will run; unless `whole`, only where that is news."""
    before = recall_run(folder)
    changed = [] if before is None else before.changes(experiment)
    steps = plan(experiment, folder, names, images)
    if changed:
        say(f"{folder} changes: {', '.join(changed)}")
    if whole or (any(step.why for step in steps) and any(step.seconds for step in steps)):
        for line in in_words(steps):
            say(line)
    if any(step.stage == "train" and not step.why for step in steps) and (
        gone := epochs_gone(experiment, folder)
    ):
        say(gone)
    if missing := _left_out(names, experiment, folder):
        say(missing)


def _left_out(names: tuple[str, ...], experiment: Experiment, folder: Path) -> str:
    """Which stages a run does not have, why and what to do about it; "" where it has all."""
    stages = stages_of(experiment, folder)
    missing = [name for name in names if name not in stages]
    if not missing or has_chips(experiment, folder):
        return ""
    factory = experiment.model.factory
    sections = f"; in the report {MISSING}" if "report" in names else ""
    why = f"for {why_no_chips(factory)}; {cure(factory)}"
    return f"left out: {', '.join(missing)}{sections}; {why}"


def _exit_code_of(name: str, job: Job, identity: Identity, debug: bool) -> int:
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


def _work(name: str, job: Job, identity: Identity, debug: bool) -> None:
    """Runs one stage and records it; the body of the stage's own process."""
    stage = stages_of(job.experiment, job.folder)[name]
    if stage.cpu_only:
        os.environ["JAX_PLATFORMS"] = "cpu"
    raise_on_sigterm()
    raise_on_sigint()
    end_with_parent()
    if job.images:  # which have been listed: what is skipped has been said
        skip_silently()
    tqdm.set_lock(threading.RLock())  # its own has a semaphore, whose leak Python would report
    try:
        with named_if_ended(name):
            _run_and_record(stage, job, identity)
    except KeyboardInterrupt:
        _end(INTERRUPTED)
    except Terminated:
        _end(TERMINATED)
    except Exception as error:
        show_error(error, debug)
        _end(1)


def _run_and_record(stage: Stage, job: Job, identity: Identity) -> None:
    started = time.monotonic()
    with progress.stage(stage.name):
        outcome = stage.run(job)
    packages = stages_of(job.experiment, job.folder)[stage.name].packages  # `train` knows them now
    record = {
        "name": stage.name,
        **identity,
        "outputs": {
            path.relative_to(job.folder).as_posix(): sha256(path) for path in outcome.outputs
        },
        "versions": package_versions(packages),
        "device": outcome.device,
        "platform": platform.platform(),
        "environment": environment(),
        "seconds": round(time.monotonic() - started, 1),
        "measured": outcome.measured,
    }
    write_record(job.folder, record)
    if outcome.scratch is not None:
        shutil.rmtree(outcome.scratch)
        with contextlib.suppress(OSError):  # where other unfinished work lies there
            outcome.scratch.parent.rmdir()


def _end(code: int) -> NoReturn:
    """Ends this process at once: in Python's own end, what libraries left unfinished complains."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
