"""What the whole suite shares: a thread a worker, compiled programs, one finished run."""

import contextlib
import gc
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "xla"

# Before anything imports torch or JAX; child processes inherit it.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Compiled in a sixth of the time, but not optimised: `make test-long` has programs as users do.
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
    " --xla_cpu_use_fusion_emitters=false",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    # Half an entry, of a killed process or one that another still writes, is compiled anew.
    "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache,"
    "ignore:Error writing persistent compilation cache",
}.items():
    os.environ.setdefault(name, value)


def pytest_sessionstart() -> None:
    """Empties the cache of compiled programs that is above 1 GiB or has one of over a week.

    It would grow with each change of a program, and a half-written entry is never written again.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    with contextlib.suppress(OSError):  # another session empties it
        entries = [path.stat() for path in CACHE.glob("*-cache")]
        last_week = time.time() - 7 * 24 * 3600
        if sum(entry.st_size for entry in entries) > 2**30 or any(
            entry.st_mtime < last_week for entry in entries
        ):
            shutil.rmtree(CACHE)


def pytest_collection_finish() -> None:
    """Leaves what was imported out of later looks for garbage: they were a sixth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_draws() -> None:
    """A test draws the same from torch's own generator whichever tests its worker ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(0)


Command = Callable[..., subprocess.CompletedProcess[str]]

SMALL = (
    *("--model.width", "4", "--train.epochs", "3", "--train.warmup-epochs", "1"),
    *("--train.batch-size", "16", "--train.keep-every", "1", "--limit", "60"),
    *("--score.estimator.probes", "3", "--score.compare", "--analyse.resamples", "100"),
    *("--simulate.chips", "1", "--simulate.adc-calibration", "32"),
)
"""Flags of the finished run: seconds a stage, yet training learns and chips fail."""


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs `python -m experiments` as a user does: in a process and a folder of its own."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "experiments", *map(str, arguments)],
            cwd=elsewhere,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all its workers see."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def finished_run(command: Command, common: Path) -> Iterator[Path]:
    """The folder of a run of digits with the flags SMALL, one for all workers: not to be changed.

    What the command printed is in `said.txt` beside it, and in `told.txt` to standard error.
    """
    from experiments.runs.files import sha256

    folder, said = common / "finished" / "digits", common / "finished" / "said.txt"
    with FileLock(common / "finished.lock"):
        if not said.exists():
            shutil.rmtree(folder, ignore_errors=True)
            result = command("run", "digits", *SMALL, "--out", folder)
            assert result.returncode == 0, result.stderr
            (said.parent / "told.txt").write_text(result.stderr)
            said.write_text(result.stdout)
    before = sha256(folder)
    yield folder
    assert sha256(folder) == before, "a test has changed the finished run: it needs a copy"


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for a test that changes it."""
    return Path(shutil.copytree(finished_run, tmp_path / "digits"))


@pytest.fixture
def as_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished run as a preset of which the paper has a row."""
    from bridge.report.tables.paper_values import TABLE_ONE
    from experiments.cli import parsing
    from experiments.settings.presets import PRESETS

    digits = PRESETS["digits"]
    small = parsing.parse_preset(parsing.Options, "run", ["digits", *SMALL]).experiment
    monkeypatch.setitem(PRESETS, "digits", replace(digits, experiment=small))
    monkeypatch.setitem(TABLE_ONE, ("resnet18", "digits"), (2.0, 30.0))
