"""The stages in order: which are up to date, and each other one in a process of its own.

A finished stage is skipped while its settings, the hashes of what it read and wrote, and package
versions are as its record says.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from experiments.pipeline.registry import stage_of
from experiments.pipeline.up_to_date import identity_of, is_up_to_date
from experiments.runs.files import require_writable, sha256
from experiments.runs.job import Job
from experiments.runs.records import recorded_settings, write_record
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
    raise_on_sigint,
    raise_on_sigterm,
)
from jaxcurv import progress
from jaxcurv.storage.checksums import write_json
from jaxcurv.storage.lock import hold

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
            identity = identity_of(stage, experiment, folder)
            if is_up_to_date(stage, identity, folder):
                say(f"{name}: up to date")
            else:
                progress.announce(name)
                job = Job(experiment, folder, data_dir, key_of(identity))
                if code := _exit_code_of(name, job, identity, debug):
                    raise StageFailed(code)
            # Of a finished stage too: a process may have been killed before, the file damaged.
            with at_work():
                write_json(folder / "settings.json", recorded_settings(folder))


def _exit_code_of(name: str, job: Job, identity: dict[str, Any], debug: bool) -> int:
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


def _work(name: str, job: Job, identity: dict[str, Any], debug: bool) -> None:
    """Runs one stage and records it; the body of the stage's own process."""
    stage = stage_of(name, job.experiment)
    if stage.cpu_only:
        os.environ["JAX_PLATFORMS"] = "cpu"
    raise_on_sigterm()
    raise_on_sigint()
    end_with_parent()
    tqdm.set_lock(threading.RLock())  # its own has a semaphore, whose leak Python would report
    started = time.monotonic()
    try:
        with progress.stage(name):
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
            "environment": environment(),
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
