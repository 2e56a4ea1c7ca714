"""A run that is killed, told to end, out of disk, or not alone: nothing lost, nothing wrong."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from experiments.pipeline.stages import STAGES
from experiments.runs.records import read_record
from tests.conftest import Command

TINY = (
    *("--model.width", "2", "--train.epochs", "3", "--train.warmup-epochs", "1"),
    *("--limit", "40", "--score.estimator.probes", "2", "--score.compare"),
    *("--analyse.resamples", "20", "--simulate.chips", "1", "--flip.programmings", "2"),
    *("--simulate.calibration", "32",),
)  # fmt: skip
KILLED = ("train", "score", "simulate", "analyse", "report")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
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
    return folder, seconds


def start(folder: Path, command: str, *flags: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, so that its stage can be killed with it."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", command, "digits", *TINY, *flags, "--out", folder],
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


CHECKPOINT = "checkpoints/*/[0-9]"


@contextlib.contextmanager
def long_training(run: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that trains, as a copy of a run, and has an epoch; nothing is left of it."""
    process = start(without(run, "train", folder), "train", "--train.epochs", "2000")
    try:
        wait_for(folder, CHECKPOINT, process)
        yield process
    finally:
        if not gone(process.pid, within=1):
            os.killpg(process.pid, signal.SIGKILL)


def without(run: Path, stage: str, folder: Path) -> Path:
    """A copy of a run as it was before a stage."""
    shutil.copytree(run, folder)
    later = list(STAGES)[list(STAGES).index(stage) :]
    for name in later:
        record = read_record(folder, name)
        assert record is not None
        for output in map(folder.joinpath, record["outputs"]):
            shutil.rmtree(output) if output.is_dir() else output.unlink()
        (folder / "stages" / f"{name}.json").unlink()
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
    result = command(stage, "digits", *TINY, "--out", folder)
    assert result.returncode == 0, result.stderr
    assert tables(folder, [stage]) == tables(run, [stage])
    left = [path.name for path in folder.rglob(".*") if path.is_file()]
    assert ".lock" not in left
    return at_work


@pytest.mark.parametrize("stage", KILLED)
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


@pytest.mark.long
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


@pytest.mark.long
def test_a_run_killed_again_and_again_comes_to_its_end(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """From nothing to the report, never more than some seconds at a time."""
    run, seconds = undisturbed
    folder, moments, kills = tmp_path / "run", random.Random(0), 0
    while True:
        process = start(folder, "run")
        try:
            longest = max(seconds.values()) + 5  # to begin
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


def test_finished_chips_are_not_run_again(
    undisturbed: tuple[Path, dict[str, float]], command: Command, tmp_path: Path
) -> None:
    run, _ = undisturbed
    folder = without(run, "simulate", tmp_path / "run")
    process = start(folder, "simulate")
    wait_for(folder, "chips/*/*[0-9].parquet", process, count=3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path.stem for path in folder.glob("chips/*/*[0-9].parquet")}
    result = command("simulate", "digits", *TINY, "--out", folder)
    assert result.returncode == 0, result.stderr
    assert 3 <= len(kept) < 8
    for profile in ("ideal", "adc", "wnoise", "pcm", "adc+wnoise", "adc+pcm", "adc+wnoise+pcm"):
        assert (f"chip 0: {profile}, test" in result.stderr) == (f"{profile}-0" not in kept)
    assert tables(folder, ["simulate"]) == tables(run, ["simulate"])


def test_sigterm_ends_a_stage_with_its_own_code(
    undisturbed: tuple[Path, dict[str, float]], command: Command, tmp_path: Path
) -> None:
    run, _ = undisturbed
    folder = without(run, "train", tmp_path / "run")
    process = start(folder, "train", "--train.epochs", "15")
    wait_for(folder, CHECKPOINT, process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "train terminated; the same command goes on from here" in said
    assert "Traceback" not in said
    assert "leaked" not in said
    assert not (folder / ".lock").exists()
    again = command("train", "digits", *TINY, "--train.epochs", "15", "--out", folder)
    assert again.returncode == 0, again.stderr
    assert int(re.findall(r"(?<!read )train: +(\d+)%", again.stderr)[0]) > 0  # where it begins


@pytest.mark.parametrize("to", ["the command", "its group"])
def test_an_interrupt_reaches_the_stage(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path, to: str
) -> None:
    """As a supervisor sends it, and as a terminal does."""
    run, _ = undisturbed
    folder = tmp_path / "run"
    with long_training(run, folder) as process:
        (os.kill if to == "the command" else os.killpg)(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert said.count("train interrupted; the same command goes on from here") == 1
    assert "Traceback" not in said
    assert "leaked" not in said


LOSES_A_SIGNAL = """
import gc, os, sys, time
from experiments import termination
from experiments.runs.processes import Terminated, raise_on_sigterm

raise_on_sigterm()
sent = int(sys.argv[1])

def callback(phase, info):
    if phase == "start":
        os.kill(os.getpid(), sent)
        for _ in range(1000):  # the exception comes here, and Python cannot let it out
            pass

termination.AGAIN_SECONDS = 2
gc.collect()
gc.disable()
gc.callbacks.append(callback)
gc.collect()
gc.callbacks.remove(callback)
print("went on", flush=True)
try:
    time.sleep(20)
except (Terminated, KeyboardInterrupt) as error:
    sys.exit(type(error).__name__)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_python_loses_comes_again(sent: signal.Signals) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOSES_A_SIGNAL, str(int(sent))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout == "went on\n"
    assert result.returncode == 1
    expected = "Terminated" if sent == signal.SIGTERM else "KeyboardInterrupt"
    assert result.stderr == f"{expected}\n"


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


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_benchmark_ends_with_its_processes(tmp_path: Path, sent: signal.Signals) -> None:
    samples = ("--samples", "5000000", "6000000", "7000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "benchmark", "load", *samples, "--width", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert process.stderr is not None
    said = b""
    try:
        while b"score 5,000,000" not in said:
            more = os.read(process.stderr.fileno(), 4096)
            assert more, said
            said += more
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send_signal(sent)
        _, rest = process.communicate(timeout=60)
        assert gone(process.pid, within=30)
    finally:
        if not gone(process.pid, within=0.1):
            os.killpg(process.pid, signal.SIGKILL)
    if sent != signal.SIGKILL:
        assert process.returncode == 128 + sent
        assert b"Traceback" not in said + rest
        assert not list(tmp_path.iterdir())


def test_a_stage_that_the_system_kills_is_named(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    run, _ = undisturbed
    folder = tmp_path / "run"
    with long_training(run, folder) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in map(int, children):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said
    assert errors[0].startswith("error: train was ended by SIGKILL")


def test_a_second_run_is_refused_until_the_first_is_gone(
    undisturbed: tuple[Path, dict[str, float]], command: Command, tmp_path: Path
) -> None:
    run, _ = undisturbed
    folder = tmp_path / "run"
    with long_training(run, folder) as process:
        second = command("score", "digits", *TINY, "--out", folder)
        process.kill()  # the stage's process ends by itself
        process.communicate(timeout=30)
        assert gone(process.pid, within=30)
    assert second.returncode == 2
    assert f"{folder} is in use by process {process.pid} on " in second.stderr
    assert "--train.epochs 2000" in second.stderr
    assert "choose another place" in second.stderr
    assert read_record(folder, "train") is None
    # The first one is dead now: its lock is in nobody's way.
    third = command("train", "digits", *TINY, "--out", folder)
    assert third.returncode == 0, third.stderr


def in_small_file_system(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs bash where $SMALL is an empty file system of 6 MB, of its own."""
    with_mount = 'mkdir -p "$SMALL" && mount -t tmpfs -o size=6m tmpfs "$SMALL" || exit 99; '
    result = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "bash", "-c", with_mount + script, "bash"]
        + [str(argument) for argument in arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHON": sys.executable},
    )
    if result.returncode == 99 or "unshare" in result.stderr:
        pytest.skip(f"no file system may be mounted here: {result.stderr.strip()}")
    return result


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALL", str(tmp_path / "small"))
    return tmp_path / "small"


def test_a_full_disk_is_one_error_and_earlier_results_stay(
    undisturbed: tuple[Path, dict[str, float]], tmp_path: Path, small: Path
) -> None:
    run, _ = undisturbed
    folder = without(run, "score", tmp_path / "run")
    result = in_small_file_system(
        # Room for the lock and for what says what is scored, not for scores.
        'cp -r "$1" "$SMALL/run"; head -c 100M /dev/zero > "$SMALL/other" 2> /dev/null; '
        'truncate -s -12K "$SMALL/other"; '
        '"$PYTHON" -m experiments score digits --out "$SMALL/run" "${@:2}"; code=$?; '
        'rm "$SMALL/other"; '
        '"$PYTHON" -m experiments score digits --out "$SMALL/run" "${@:2}" || exit 98; '
        'rm -r "$1"; cp -r "$SMALL/run" "$1"; exit $code',
        folder,
        *TINY,
    )
    assert result.returncode == 1, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    assert "No space left on device" in errors[0]
    assert str(small / "run" / "scores") in errors[0]
    assert "Traceback" not in result.stderr
    assert tables(folder, ["train", "score"]) == tables(run, ["train", "score"])


def test_a_read_only_place_is_one_error_before_work(tmp_path: Path, small: Path) -> None:
    result = in_small_file_system(
        'mount -o remount,ro "$SMALL" || exit 99; '
        '"$PYTHON" -m experiments run digits --out "$SMALL/run" "$@"',
        *TINY,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: cannot write to the output folder")
    assert "Read-only file system" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "stage"), [("scores.parquet", "analyse"), ("weights.safetensors", "simulate")]
)
def test_a_file_that_vanished_is_named(
    undisturbed: tuple[Path, dict[str, float]],
    command: Command,
    tmp_path: Path,
    file: str,
    stage: str,
) -> None:
    run, _ = undisturbed
    folder = without(run, stage, tmp_path / "run")
    (folder / file).unlink()
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    result = command(stage, "digits", *TINY, "--out", folder)
    assert result.returncode == 2
    assert f"{folder / file} is not as" in result.stderr
    assert "again before" in result.stderr
    assert before.items() <= {path: path.read_bytes() for path in folder.glob("*.*")}.items()


def test_a_damaged_piece_of_unfinished_work_is_named(
    undisturbed: tuple[Path, dict[str, float]], command: Command, tmp_path: Path
) -> None:
    run, _ = undisturbed
    folder = without(run, "simulate", tmp_path / "run")
    process = start(folder, "simulate")
    piece = wait_for(folder, "chips/*/ideal-0.parquet", process)[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    content = bytearray(piece.read_bytes())
    content[len(content) // 3] ^= 0x10
    piece.write_bytes(content)
    result = command("simulate", "digits", *TINY, "--out", folder)
    assert result.returncode == 1
    assert f"{piece} is damaged" in result.stderr
    assert "delete or replace it, and run again" in result.stderr
    piece.unlink()
    assert command("simulate", "digits", *TINY, "--out", folder).returncode == 0
    assert tables(folder, ["simulate"]) == tables(run, ["simulate"])
