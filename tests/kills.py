"""Commands on a run that tests end at work."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.pipeline.registry import STAGES
from experiments.runs.records import read_record
from tests.conftest import SMALL


def start(
    folder: Path, command: str, *flags: str, background: bool = False
) -> subprocess.Popen[str]:
    """A command in a process group of its own, so that its stage can be killed with it.

    Args:
      background: with SIGINT ignored, as a script starts it that has no control of its jobs.
    """
    line = [sys.executable, "-m", "experiments", command, "digits", *SMALL, *flags]
    ignoring = ["bash", "-c", 'trap "" INT; exec "$@"', "bash"] if background else []
    return subprocess.Popen(
        [*ignoring, *line, "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(
    folder: Path, files: str, process: subprocess.Popen[str], count: int = 1
) -> list[Path]:
    """The files of a pattern, once so many are there; fails where the process ends before."""
    while len(found := list(folder.glob(files))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def at_work(
    folder: Path, command: str, *flags: str, files: str, background: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A command that has written the first of some files; nothing is left of it."""
    process = start(folder, command, *flags, background=background)
    try:
        wait_for(folder, files, process)
        yield process
    finally:
        if not gone(process.pid, within=1):
            with contextlib.suppress(ProcessLookupError):  # the last has just ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def gone(group: int, within: float) -> bool:
    """Whether no process of a group is left, after so many seconds at most."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def require_ended(
    process: subprocess.Popen[str], said: str, stage: str, sent: signal.Signals
) -> None:
    """Fails unless the command and its stage ended by a signal, and said so and nothing else."""
    ended = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[sent]
    assert process.returncode == 128 + sent, said
    assert said.count(f"{stage} {ended}; the same command goes on from here") == 1
    assert "Traceback" not in said
    assert "leaked" not in said


def without(run: Path, stage: str, folder: Path) -> Path:
    """A copy of a run as it was before a stage."""
    shutil.copytree(run, folder)
    for name in list(STAGES)[list(STAGES).index(stage) :]:
        record = read_record(folder, name)
        assert record is not None
        for output in map(folder.joinpath, record["outputs"]):
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        (folder / "stages" / f"{name}.json").unlink()
    for name, kept in (("score", "scores"), ("simulate", "chips")):  # beside their outputs
        if not (folder / "stages" / f"{name}.json").exists():
            shutil.rmtree(folder / kept)
    return folder


def tables(folder: Path, stages: Sequence[str]) -> dict[str, bytes]:
    """Every table that the stages left."""
    found = {}
    for name in stages:
        record = read_record(folder, name)
        assert record is not None, name
        found |= {
            output: (folder / output).read_bytes()
            for output in record["outputs"]
            if output.endswith((".parquet", ".csv"))
        }
    return found


def end_benchmark(folder: Path, sent: signal.Signals) -> None:
    """Sends a signal to a benchmark at work, and sees that nothing is left of it."""
    samples = ("--samples", "5000000", "6000000", "7000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "benchmark", "load", *samples, "--width", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    try:
        while not list(folder.glob("*/out*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send_signal(sent)
        _, said = process.communicate(timeout=60)
        assert gone(process.pid, within=30)
    finally:
        if not gone(process.pid, within=0.1):
            os.killpg(process.pid, signal.SIGKILL)
    if sent != signal.SIGKILL:
        assert process.returncode == 128 + sent
        assert b"Traceback" not in said
        assert not list(folder.iterdir())
