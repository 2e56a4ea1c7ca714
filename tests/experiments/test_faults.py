"""A run that is killed, told to end, out of disk, or not alone: nothing lost, nothing wrong."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from experiments.cli import commands
from experiments.runs.records import read_record
from tests.conftest import SMALL
from tests.kills import at_work, end_benchmark, gone, require_ended, tables, wait_for, without
from tests.one_process import stages_in_this_process, succeed

MANY = ("--simulate.chips", "500")
PIECE = "chips/*/*[0-9].parquet"
PROFILES = ("ideal", "adc", "wnoise", "pcm", "adc+wnoise", "adc+pcm", "adc+wnoise+pcm")


class Killed(NamedTuple):
    """What a killed simulation left, and what a command said that came while it was at work."""

    folder: Path
    code: int
    """The other command's exit code."""
    said: str
    """The other command's standard error."""
    command: int
    """The killed one's process."""


@pytest.fixture(scope="module")
def killed(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """The command alone is killed, after three chips; its stage must end by itself."""
    folder = without(finished_run, "simulate", tmp_path_factory.mktemp("killed") / "run")
    with at_work(folder, "simulate", files=PIECE) as process:
        wait_for(folder, PIECE, process, count=3)
        os.killpg(process.pid, signal.SIGSTOP)  # until the other command has answered
        with contextlib.redirect_stderr(io.StringIO()) as said:
            code = commands.run(["score", "digits", *SMALL, "--out", str(folder)])
        process.kill()
        os.killpg(process.pid, signal.SIGCONT)
        process.communicate(timeout=60)
        assert gone(process.pid, within=30), "the stage lives on"
    assert read_record(folder, "simulate") is None
    return Killed(folder, code, said.getvalue(), process.pid)


def test_a_second_command_is_refused_while_one_works(killed: Killed) -> None:
    said = killed.said
    assert killed.code == 2
    assert f"{killed.folder} is in use by process {killed.command} on " in said
    assert "experiments simulate digits" in said
    assert "choose another place" in said


def test_a_killed_stage_goes_on_and_leaves_the_same_tables(
    finished_run: Path, killed: Killed, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(killed.folder, tmp_path / "run"))
    assert (folder / ".lock").exists()  # of a dead process: in nobody's way
    kept = {path.parent.name.rpartition("-")[0] for path in folder.glob(PIECE)}
    assert 3 <= len(kept) < len(PROFILES)
    (folder / "coverage.csv").touch()  # of an own network that was run here
    _, said = succeed("simulate", "digits", *SMALL, "--out", folder)
    # 180 images a chip: what was kept is counted and was not made again.
    assert f"simulate: 1,440 images ({180 * len(kept):,} from before), " in said
    assert not (folder / "coverage.csv").exists()
    assert tables(folder, ["simulate"]) == tables(finished_run, ["simulate"])
    assert not [path for path in folder.rglob(".*") if path.is_file()]


def test_a_damaged_piece_of_unfinished_work_is_named(
    finished_run: Path, killed: Killed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(killed.folder, tmp_path / "run"))
    piece = next(folder.glob("chips/ideal-*/0.parquet"))
    content = bytearray(piece.read_bytes())
    content[len(content) // 3] ^= 0x10
    piece.write_bytes(content)
    line = ["simulate", "digits", *SMALL, "--out", str(folder)]
    with stages_in_this_process():
        assert commands.run(line) == 1
    said = capfd.readouterr().err
    assert f"{piece} is damaged" in said
    assert "delete or replace it, and run again" in said
    piece.unlink()
    succeed(*line)
    assert tables(folder, ["simulate"]) == tables(finished_run, ["simulate"])


def test_sigterm_reaches_the_stage(finished_run: Path, tmp_path: Path) -> None:
    folder = without(finished_run, "simulate", tmp_path / "run")
    with at_work(folder, "simulate", *MANY, files=PIECE) as process:
        process.terminate()
        _, said = process.communicate(timeout=60)
    require_ended(process, said, "simulate", signal.SIGTERM)
    assert not (folder / ".lock").exists()


def test_an_interrupt_of_a_command_in_the_background_reaches_the_stage(
    finished_run: Path, tmp_path: Path
) -> None:
    folder = without(finished_run, "simulate", tmp_path / "run")
    with at_work(folder, "simulate", *MANY, files=PIECE, background=True) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    require_ended(process, said, "simulate", signal.SIGINT)


def test_a_stage_that_the_system_kills_is_named(finished_run: Path, tmp_path: Path) -> None:
    folder = without(finished_run, "simulate", tmp_path / "run")
    with at_work(folder, "simulate", *MANY, files=PIECE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in map(int, children):
            with contextlib.suppress(FileNotFoundError):
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said
    assert errors[0].startswith("error: simulate was ended by SIGKILL")


SIGNALLED = """
import gc, os, sys, time
from experiments.system import processes
from experiments.system.processes import Terminated, raise_on_sigint, raise_on_sigterm, rest

processes.AGAIN_SECONDS = 0.2
raise_on_sigterm()
raise_on_sigint()
sent = int(sys.argv[1])

def signalled():
    os.kill(os.getpid(), sent)
    for _ in range(1000):  # the exception comes here
        pass

def callback(phase, info):
    if phase == "start":
        signalled()

def in_the_garbage_collector():
    gc.collect()
    gc.disable()
    gc.callbacks.append(callback)
    gc.collect()
    gc.callbacks.remove(callback)

def in_what_catches_everything():
    try:
        signalled()
    except:
        pass

try:
    if sys.argv[2] == "tidied up":
        try:
            signalled()
        finally:
            try:
                open("no such file")
            except OSError:
                time.sleep(0.5)
            time.sleep(0.25)
            print("went on", flush=True)
    else:
        globals()[sys.argv[2]]()
        print("went on", flush=True)
        time.sleep(20)
except (Terminated, KeyboardInterrupt) as error:
    caught = type(error).__name__
rest()
time.sleep(0.5)
sys.exit(caught)
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "where", ["in_the_garbage_collector", "in_what_catches_everything", "tidied up"]
)
def test_a_signal_that_is_lost_comes_again_and_disturbs_no_tidying_up(
    sent: signal.Signals, where: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(int(sent)), where],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stdout == "went on\n"
    assert result.returncode == 1
    expected = "Terminated" if sent == signal.SIGTERM else "KeyboardInterrupt"
    assert result.stderr == f"{expected}\n"


def test_a_benchmark_ends_with_its_processes(tmp_path: Path) -> None:
    end_benchmark(tmp_path, signal.SIGTERM)


def in_small_file_system(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs bash where $SMALL is an empty file system of 16 MB, of its own."""
    with_mount = 'mkdir -p "$SMALL" && mount -t tmpfs -o size=16m tmpfs "$SMALL" || exit 99; '
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
    finished_run: Path, tmp_path: Path, small: Path
) -> None:
    folder = without(finished_run, "simulate", tmp_path / "run")
    result = in_small_file_system(
        # Room for the lock and for what says what is simulated, not for the chips.
        'cp -r "$1" "$SMALL/run"; head -c 100M /dev/zero > "$SMALL/other" 2> /dev/null; '
        'truncate -s -12K "$SMALL/other"; '
        '"$PYTHON" -m experiments simulate digits --out "$SMALL/run" "${@:2}"; code=$?; '
        'rm -r "$1"; cp -r "$SMALL/run" "$1"; exit $code',
        folder,
        *SMALL,
    )
    assert result.returncode == 1, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    assert "No space left on device" in errors[0]
    assert str(small / "run" / "chips") in errors[0]
    assert "Traceback" not in result.stderr
    succeed("simulate", "digits", *SMALL, "--out", folder)
    done = ["train", "score", "flips", "simulate"]
    assert tables(folder, done) == tables(finished_run, done)


def test_a_read_only_place_is_one_error_before_work(tmp_path: Path, small: Path) -> None:
    result = in_small_file_system(
        'mount -o remount,ro "$SMALL" || exit 99; '
        '"$PYTHON" -m experiments run digits --out "$SMALL/run" "$@"',
        *SMALL,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: cannot write to the output folder")
    assert "Read-only file system" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "stage"), [("scores.parquet", "analyse"), ("weights.safetensors", "simulate")]
)
def test_a_file_that_vanished_is_named(
    finished_run: Path, tmp_path: Path, file: str, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = without(finished_run, stage, tmp_path / "run")
    (folder / file).unlink()
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    assert commands.run([stage, "digits", *SMALL, "--out", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"{folder / file} is not as" in said
    assert "again before" in said
    assert before.items() <= {path: path.read_bytes() for path in folder.glob("*.*")}.items()
