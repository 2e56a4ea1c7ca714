"""What the benchmarks share: how they take turns, what they report, and how reports are compared.

Seconds differ from machine to machine and from hour to hour. So each benchmark gives ratios of
times that were measured side by side, in one process on one batch: what slows the machine slows
both sides of a ratio. Its contestants take turns, in each repeat once and each time in another
order.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.runs.files import require_writable
from experiments.system.processes import Terminated, end_with_parent, raise_on_sigterm, rest
from jaxcurv.storage.checksums import read_json

if TYPE_CHECKING:
    import torch


T = TypeVar("T")


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes; it must return only when its result is there."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def apart(work: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a process that has done nothing else, and ends with this one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin) as process:
        try:
            return process.submit(_work, work, *arguments).result()
        except (KeyboardInterrupt, Terminated):
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes from the other one, as SIGTERM
    raise_on_sigterm()  # which lets temporary folders be removed
    end_with_parent()


def _work(work: Callable[..., T], *arguments: Any) -> T:
    try:
        return work(*arguments)
    except Terminated:
        rest()  # the pool's own loop catches it, and ends
        raise


def turns(names: Iterable[str], repeats: int) -> Iterator[list[str]]:
    """The order of each repeat, each time begun by the next contestant."""
    names = list(names)
    for repeat in range(repeats):
        first = repeat % len(names)
        yield names[first:] + names[:first]


def summary(values: Iterable[float]) -> dict[str, float]:
    """Median and range, as JSON has them."""
    values = sorted(values)
    return {"median": statistics.median(values), "lowest": values[0], "highest": values[-1]}


def random_resnet18(classes: int, width: int) -> torch.nn.Module:
    """ResNet-18 for small images, with the same random weights at every call; in eval mode."""
    import bridge

    return random_network(lambda: bridge.weights.resnet18(classes, stem="cifar", width=width))


def random_network(make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """What `make` makes, with the same random weights at every call; in eval mode."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make().eval()
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return network


def fit_batch_norm(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Gives BatchNorm the statistics of some images, in place.

    With those that it begins with, a random network puts every image into one class, and no two
    engines could differ in their predictions.
    """
    import torch

    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    network.eval()


def load_average() -> float | None:
    """Processes that ran or wanted to, on average over the last minute; None if not told."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def resident() -> tuple[float, float]:
    """Resident memory of this process in bytes, now and at its peak; NaN where not told.

    Not getrusage's: on Linux a new process begins with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan, math.nan
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    now, peak = (1024 * float(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
    return now, peak


def require_json_path(path: Path) -> None:
    """Refuses a --json that cannot be written."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give --json a file's name")
    require_folder(path.parent, "--json")


def require_folder(folder: Path, flag: str) -> None:
    """Makes the folder that a flag names, or refuses it."""
    try:
        require_writable(folder)
    except OSError as error:
        raise OSError(f"cannot write to {folder}: choose another {flag}") from error


def read_baseline(
    path: Path, command: str, keys: Collection[str], settings: Mapping[str, Any], device: str
) -> dict[str, Any]:
    """An earlier report that one with these settings may be compared with.

    Args:
      path: what `command --json` wrote.
      command: such as "benchmark curvature".
      keys: what the comparison needs of it, besides settings and device.
      settings: the settings that must be the same.
      device: name of the device, which must be the same.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: something else there, or a report with other settings or of another device.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no baseline at {path}: write one with --json {path}")
    baseline = read_json(path)
    if not {*keys, "settings", "device"} <= baseline.keys():
        raise ValueError(f"{path} is not what {command} --json writes: write it anew")
    other = {name: baseline["settings"].get(name) for name in settings}
    if different := [name for name, value in settings.items() if value != other[name]]:
        flags = " ".join(f"--{name.replace('_', '-')} {other[name]}" for name in different)
        raise ValueError(f"{path} was measured with other settings: give {flags}")
    if baseline["device"] != device:
        raise ValueError(
            f"{path} was measured on {baseline['device']}, this is {device}: "
            "compare runs on one kind of device"
        )
    return baseline


def new_table(headers: Sequence[str]) -> Table:
    """A table of a name and numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, header in enumerate(headers):
        table.add_column(header, justify="right" if position else "left", no_wrap=True)
    return table


def span(found: Mapping[str, float], decimals: int) -> str:
    """The range of a summary."""
    return f"{found['lowest']:,.{decimals}f} .. {found['highest']:,.{decimals}f}"


def warn_of_load(load: float | None, console: Console) -> None:
    """Says so where other work went on before the run."""
    if load is not None and load > 0.5:
        console.print(
            f"load average before this run: {load:.1f}; rely on no ratio if other work goes on"
        )


def conclude(slower: Sequence[str], otherwise: str, console: Console) -> int:
    """Prints how a run compares with its baseline and returns the process's exit code.

    Args:
      slower: a line for each ratio that got worse.
      otherwise: what to say where there is none.
      console: where to print.
    """
    for line in slower:
        console.print(f"slower: {line}")
    if not slower:
        console.print(otherwise)
    return 1 if slower else 0
