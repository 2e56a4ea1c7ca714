"""The paper's Table I: every row for which there is data, run and shown."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bridge.report.tables.paper_values import TABLE_ONE
from experiments.paper.fit import model_of
from experiments.paper.table_and_figures import TableOne, table_one
from experiments.runs.files import require_writable
from experiments.settings.flags import require_device_name
from experiments.settings.presets import PRESETS
from experiments.system.devices import require_device
from experiments.system.errors import StageFailed
from experiments.system.processes import Terminated

_CIFAR = ("cifar10", "cifar100")

ROWS: dict[str, tuple[str, ...]] = {
    "small": tuple(f"{data}_{model}_small" for model, data in TABLE_ONE if data in _CIFAR),
    "full": tuple(f"{data}_{model}" for model, data in TABLE_ONE),
}
"""The presets of Table I's rows: narrow networks for two CPU cores, or the paper's for a GPU."""


@dataclass(frozen=True)
class Reproduce:
    """Runs every row of the paper's Table I whose data set is there, and shows the table."""

    rows: Literal["small", "full"] = "small"
    """Size of the networks: `small`, narrow ones for a CPU; `full`, the paper's, for a GPU."""
    data_dir: Path | None = None
    """Folder of the data sets; `none` is $TFDS_DATA_DIR if that is set, else ~/tensorflow_datasets.
    CIFAR is downloaded if it is missing."""
    device: str = "cpu"
    """Device for PyTorch: cpu, cuda or cuda:N. JAX uses the device it was installed for."""
    runs: Path = Path("runs")
    """Folder for the runs, one folder each. What is finished there is not run again."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        require_device_name(self.device)


def reproduce(options: Reproduce, say: Callable[[str], None] = print) -> None:
    """Runs the commands that make each row, and prints and draws Table I of those that succeed.

    A row that fails does not stop the others.

    Raises:
      FileNotFoundError: no row has data.
      ValueError, OSError: the device or a folder is not as it should be.
      StageFailed: a command failed and said why; the table is of the rest.
      FolderInUse, WorkFailed: the table's folder is in use, or its figure could not be written.
    """
    require_device(options.device, "--device")
    require_writable(options.runs, "--runs")
    present = _with_data(options, say)
    data_dir = [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    debug = ["--debug"] if options.debug else []

    def succeeds(*words: str) -> bool:
        line = ["-m", "experiments", *words, *data_dir, *debug]
        say(f"$ python {shlex.join(line)}")
        return call([sys.executable, *line]) == 0

    done = []
    for name in present:
        out = ["--out", str(options.runs / name)]
        # Rows are compared as independent; their networks' layers have the same names.
        chips = ["--simulate.device", options.device, "--simulate.stream", name]
        if succeeds("run", name, *out, *chips) and (
            not is_fitted_on(name) or succeeds("rescore", name, *out)
        ):
            done.append(name)
    failed = [name for name in present if name not in done]
    if any(map(is_fitted_on, failed)):  # a fit on fewer rows is another one
        failed.append("fit-paper")
    elif fitted := [name for name in done if is_fitted_on(name)]:
        predicted = [name for name in done if name not in fitted]
        fit_folder = options.runs / f"fit_paper_{options.rows}"
        places = ["--runs", str(options.runs), "--out", str(fit_folder)]
        rows = ["--fit", *fitted, "--predict", *predicted]
        if not succeeds("fit-paper", *rows, "--device", options.device, *places):
            failed.append("fit-paper")
    try:
        if done:
            finished = tuple(options.runs / name for name in done)
            table_one(TableOne(runs=finished, out=options.runs / "table_one"))
    finally:
        if failed:
            say(f"failed, as said above: {', '.join(failed)}; the same command goes on from there")
    if failed:
        raise StageFailed(1)


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


def is_fitted_on(name: str) -> bool:
    """Whether `fit-paper` fits its chip on this preset; on the others the chip is only tried."""
    architecture, data = model_of(name)
    return architecture == "resnet18" and data in _CIFAR


def _with_data(options: Reproduce, say: Callable[[str], None]) -> list[str]:
    """The presets whose data set is there, or could be prepared."""
    from jaxcurv import data

    rows = ROWS[options.rows]
    present = []
    for name in dict.fromkeys(model_of(row)[1] for row in rows):
        of_data = [row for row in rows if model_of(row)[1] == name]
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
