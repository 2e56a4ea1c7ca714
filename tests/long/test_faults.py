"""Runs and benchmarks that are killed again and again, in every stage."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from experiments.pipeline.registry import STAGES
from tests.conftest import SMALL, Command
from tests.kills import (
    at_work,
    end_benchmark,
    gone,
    require_ended,
    start,
    tables,
    wait_for,
    without,
)

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def undisturbed(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    """A finished run, and how many seconds each stage's command was at work."""
    folder = tmp_path_factory.mktemp("undisturbed") / "digits"
    seconds = {}
    for name in STAGES:
        process = start(folder, name)
        wait_for(folder, ".lock", process)
        began = time.monotonic()
        _, said = process.communicate()
        seconds[name] = time.monotonic() - began
        assert process.returncode == 0, said
    assert tables(folder, list(STAGES)) == tables(finished_run, list(STAGES))
    return folder, seconds


def kill_and_go_on(
    run: Path, stage: str, after: float, folder: Path, command: Command, *, alone: bool = False
) -> bool:
    """Kills a stage's command after so many seconds of work, runs it again, compares its tables.

    Args:
      alone: kill the command only, not the process of the stage, which then must end by itself.

    Returns:
      Whether it was killed at work, before its end.
    """
    without(run, stage, folder)
    process = start(folder, stage)
    wait_for(folder, ".lock", process)
    time.sleep(after)
    if process.poll() is None:
        process.kill() if alone else os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert gone(process.pid, within=30), "the stage lives on"
    at_work = (folder / ".lock").exists()
    _, said = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said
    result = command(stage, "digits", *SMALL, "--out", folder)
    assert result.returncode == 0, result.stderr
    assert tables(folder, [stage]) == tables(run, [stage])
    left = [path.name for path in folder.rglob(".*") if path.is_file()]
    assert ".lock" not in left
    return at_work


@pytest.mark.parametrize("stage", ["train", "score", "simulate", "analyse", "report"])
def test_a_killed_stage_leaves_the_same_tables(
    undisturbed: tuple[Path, dict[str, float]], command: Command, tmp_path: Path, stage: str
) -> None:
    run, seconds = undisturbed
    moment = random.Random(stage).uniform(0.1, 0.9) * seconds[stage]
    alone, tries = stage == "score", 0
    # Where the stage was faster than the kill, once more and a little sooner.
    while not kill_and_go_on(run, stage, moment, tmp_path / f"{tries}", command, alone=alone):
        moment, tries = 0.8 * moment, tries + 1
        assert tries < 9


def test_stages_killed_at_many_moments_leave_the_same_tables(
    undisturbed: tuple[Path, dict[str, float]], command: Command, tmp_path: Path
) -> None:
    run, seconds = undisturbed
    kills = dict.fromkeys(STAGES, 0)
    for stage in STAGES:
        for sixth in range(6):
            moment = (sixth + 0.5) / 6 * seconds[stage]
            folder = tmp_path / f"{stage}{sixth}"
            kills[stage] += kill_and_go_on(run, stage, moment, folder, command, alone=sixth % 2 > 0)
    print("killed at work:", kills)
    assert sum(kills.values()) >= 25
    assert all(kills.values())


def test_a_run_killed_again_and_again_comes_to_its_end(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """From nothing to the report, never more than some seconds at a time."""
    run, seconds = undisturbed
    folder, moments, kills = tmp_path / "run", random.Random(0), 0
    while True:
        process = start(folder, "run")
        try:
            longest = max(seconds.values()) + 2  # to begin
            _, said = process.communicate(timeout=moments.uniform(0.5, 1.5) * longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
            assert kills < 60, "it does not come forward"
            continue
        assert process.returncode == 0, said
        break
    print(f"killed {kills} times")
    assert kills >= 3
    assert tables(folder, list(STAGES)) == tables(run, list(STAGES))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_benchmark_ends_with_its_processes(tmp_path: Path, sent: signal.Signals) -> None:
    end_benchmark(tmp_path, sent)


def test_training_that_was_told_to_end_goes_on_from_its_last_epoch(
    finished_run: Path, tmp_path: Path
) -> None:
    folder = without(finished_run, "train", tmp_path / "run")
    many = ("--train.epochs", "2000")
    with at_work(folder, "train", *many, files="checkpoints/*/[0-9]") as process:
        process.terminate()
        _, said = process.communicate(timeout=60)
    require_ended(process, said, "train", signal.SIGTERM)
    whole = [path for path in folder.glob("checkpoints/*/*") if path.name.isdecimal()]
    last = max(int(path.name) for path in whole)
    with at_work(folder, "train", *many, files=f"checkpoints/*/{last + 1}") as process:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=60)
    require_ended(process, said, "train", signal.SIGINT)
    counted = re.search(r"^train: \d+ %, ([\d,]+)/", said, re.MULTILINE)
    assert counted is not None, said
    assert int(counted[1].replace(",", "")) > 0  # those of the finished epochs
