"""The paper's Table I and figures: every row for which there is data, and the page of results."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import fit_paper, page, pipeline
from experiments.archive import archive, copy
from experiments.archive import regenerate as regenerate_run
from experiments.errors import at_work
from experiments.paper import TABLE_ONE
from experiments.presets import PRESETS
from experiments.settings import require_device_name
from experiments.termination import Terminated
from jaxcurv.lock import hold

_CIFAR = ("cifar10", "cifar100")

ROWS: dict[str, tuple[str, ...]] = {
    "small": tuple(f"{data}_{model}_small" for model, data in TABLE_ONE if data in _CIFAR),
    "full": tuple(f"{data}_{model}" for model, data in TABLE_ONE),
}
"""The presets of Table I's rows: narrow networks for two CPU cores, or the paper's for a GPU."""


@dataclass(frozen=True)
class Reproduce:
    """Runs the rows of Table I whose data are there, and writes the page of results."""

    rows: Literal["small", "full"] = "small"
    """Narrow networks for a CPU, or the paper's for a GPU."""
    data_dir: Path | None = None
    """Folder of the data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets. CIFAR is
    downloaded where it is not there."""
    device: str = "cpu"
    """Where torch runs: cpu, cuda or cuda:N. JAX runs on what it was installed for."""
    runs: Path = Path("runs")
    """Folder of the runs' folders; what is finished there is not run again."""
    results: Path = Path("experiments/results")
    """Folder to archive results in."""
    readme: Path = Path("README.md")
    """The file of which the marked part is replaced."""
    debug: bool = False
    """Show tracebacks."""

    def __post_init__(self) -> None:
        require_device_name(self.device)


@dataclass(frozen=True)
class Regenerate:
    """Tables, figures and the page once more, from the archived per-sample tables alone."""

    results: Path = Path("experiments/results")
    """Folder of the archived results."""
    readme: Path = Path("README.md")
    """The file of which the marked part is replaced."""
    debug: bool = False
    """Show tracebacks."""


def reproduce(options: Reproduce, say: Callable[[str], None] = print) -> None:
    """Runs the commands that make each row, archives what they leave and writes the page.

    A row that fails does not stop the others.

    Raises:
      FileNotFoundError: no row has data.
      ValueError, OSError: the device, a folder or the page is not as it should be.
      StageFailed: a command failed and said why; the page is of the rest.
      FolderInUse: another process makes the page.
      WorkFailed: the page could not be written.
    """
    page.require_place(options.readme)
    pipeline.require_device(options.device, "--device")
    pipeline.require_writable(options.results, "--results")
    pipeline.require_writable(options.runs, "--runs")
    present = _with_data(options, say)
    data_dir = [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    debug = ["--debug"] if options.debug else []

    def succeeds(*words: str) -> bool:
        line = ["-m", "experiments", *words, *data_dir, *debug]
        say(f"$ python {shlex.join(line)}")
        return call([sys.executable, *line]) == 0

    def archived(work: Callable[[Path, Path], None], name: str) -> bool:
        try:
            with hold(options.results):
                work(options.runs / name, options.results / name)
        except (OSError, ValueError) as error:
            pipeline.show_error(error, options.debug)
            return False
        return True

    done = []
    for name in present:
        out = ["--out", str(options.runs / name)]
        if (
            succeeds("run", name, *out, "--simulate.device", options.device)
            and (not _is_fitted_on(name) or succeeds("rescore", name, *out))
            and archived(archive, name)
        ):
            done.append(name)
    failed = [name for name in present if name not in done]
    if any(map(_is_fitted_on, failed)):  # a fit on fewer rows is another one
        failed.append("fit-paper")
    elif fitted := [name for name in done if _is_fitted_on(name)]:
        fit = f"fit_paper_{options.rows}"
        predicted = [name for name in done if name not in fitted]
        places = ["--runs", str(options.runs), "--out", str(options.runs / fit)]
        rows = ["--fit", *fitted, "--predict", *predicted]
        if not (
            succeeds("fit-paper", *rows, "--device", options.device, *places)
            and archived(archive_fit, fit)
        ):
            failed.append("fit-paper")
    try:
        if done:
            regenerate(Regenerate(options.results, options.readme), say)
    finally:
        if failed:
            say(f"failed, as said above: {', '.join(failed)}; the same command goes on from there")
    if failed:
        raise pipeline.StageFailed(1)


def call(line: Sequence[str]) -> int:
    """Runs a command and returns its exit code.

    Ctrl-C reaches the command too, SIGTERM is handed on; it then ends by itself and is waited for.
    """
    process = subprocess.Popen(line)
    try:
        return process.wait()
    except (KeyboardInterrupt, Terminated) as interruption:
        if isinstance(interruption, Terminated):
            process.terminate()
        process.wait()
        raise


def archive_fit(out: Path, place: Path) -> None:
    """Keeps what `fit_paper.tabulate` needs."""
    shutil.rmtree(place, ignore_errors=True)
    for folder in ("search", "fitted"):
        for path in sorted((out / folder).iterdir()):
            copy(path, place / folder / path.name)
    copy(out / "fit.json", place / "fit.json")


def regenerate(options: Regenerate, say: Callable[[str], None] = print) -> None:
    """Makes every table, figure and the page from what is archived.

    A fit to the paper whose runs are archived no more, as they were, is left out of the page.

    Raises:
      FileNotFoundError: nothing is archived.
      ValueError: README has no place for the results.
      FolderInUse: another process writes there.
      WorkFailed: a file is missing, a fit was left out, or what failed else.
    """
    page.require_place(options.readme)
    runs = [path.parent for path in sorted(options.results.glob("*/predictions.parquet"))]
    if not runs:
        raise FileNotFoundError(f"no archived run in {options.results}: run reproduce first")
    with hold(options.results), at_work():
        for run in runs:
            say(f"{run.name}: tables and figures")
            regenerate_run(run)
        fits, errors = [], []
        for path in sorted(options.results.glob("fit_paper_*/fit.json")):
            try:
                fit_paper.tabulate(path.parent, options.results)
            except (OSError, ValueError) as error:
                errors.append(error)
            else:
                fits.append(path.parent)
        written = page.write(options.results, options.readme, fits)
        say(f"{written} and the marked part of {options.readme}")
        if errors:
            raise errors[0]


def _is_fitted_on(name: str) -> bool:
    architecture, data = fit_paper.model_of(name)
    return architecture == "resnet18" and data in _CIFAR


def _with_data(options: Reproduce, say: Callable[[str], None]) -> list[str]:
    """The presets whose data set is there, or could be prepared."""
    from jaxcurv import data

    rows = ROWS[options.rows]
    present = []
    for name in dict.fromkeys(fit_paper.model_of(row)[1] for row in rows):
        of_data = [row for row in rows if fit_paper.model_of(row)[1] == name]
        settings = PRESETS[of_data[0]].experiment.data
        try:
            data.load(settings.name, options.data_dir, settings.preprocessing)
        except OSError as error:
            say(f"left out: {', '.join(of_data)}: {error}")
        else:
            present += of_data
    if not present:
        raise FileNotFoundError(
            f"none of the data sets of --rows {options.rows} is there: put one into --data-dir"
        )
    return [row for row in rows if row in present]
