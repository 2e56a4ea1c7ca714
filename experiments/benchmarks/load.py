"""Time and memory of scoring and simulation against the number of samples, up to a million.

Each count of samples is worked on in a process of its own, so that the peak memory is that count's.
The images are random and exist only while they are used, the networks so small that what is read,
checked and written counts as much as what is computed; the classes are as many as ImageNet's, so
that logits would be seen if they were kept.
"""

from __future__ import annotations

import math
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from experiments.benchmarks.common import (
    apart,
    fit_batch_norm,
    load_average,
    new_table,
    random_network,
    require_folder,
    require_json_path,
    resident,
    warn_of_load,
)
from experiments.settings.flags import require_device_name
from experiments.system.devices import cores, processor, require_device
from experiments.system.environment import package_versions
from experiments.system.errors import at_work
from jaxcurv.data import Normalisation, Normalised, Sample
from jaxcurv.storage.checksums import write_json

if TYPE_CHECKING:
    import pandas as pd

PROFILE = "adc+wnoise+pcm"

_DEPTHS = (1, 0, 0, 0)  # one residual block
_CALIBRATION_IMAGES = 128
_WARM_UP_BATCHES = 2
_FEWEST = 3  # counts: a line through two points is always straight
_LINES = ("seconds", "peak_bytes", "file_bytes")


@dataclass(frozen=True)
class LoadBenchmark:
    """Measures time and memory of scoring (Eq. 1) and of one simulated chip against the number of
    samples, with a tiny network on synthetic images."""

    samples: tuple[int, ...] = (62_500, 125_000, 250_000, 500_000, 1_000_000)
    """Numbers of samples to measure, at least three different ones."""
    width: int = 8
    """Channels of the only block of the network."""
    classes: int = 1000
    """Number of classes."""
    image_size: int = 8
    """Side of the images in pixels."""
    probes: int = 10
    """Number n of random vectors per sample."""
    batch_size: int = 256
    """Images per batch."""
    device: str = "cpu"
    """Device for the chip: cpu, cuda or cuda:N. JAX uses the device it was installed for."""
    json: Path | None = None
    """File to write the measured figures to, NAME.json; `none` only prints them."""
    figures: Path | None = None
    """Folder for drawings of the figures; `none` draws nothing."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        if len(set(self.samples)) < _FEWEST or min(self.samples) < 1:
            raise ValueError(
                f"--samples needs at least {_FEWEST} different counts, each at least 1, to tell a "
                f"line; got {' '.join(map(str, self.samples))}"
            )
        wrong = {n: v for n, v in self.workload().items() if v < 1 + (n == "classes")}
        if wrong:
            raise ValueError(
                "width, image_size, probes and batch_size must be at least 1 and classes at least "
                f"2; got {wrong}"
            )
        require_device_name(self.device)

    def workload(self) -> dict[str, int]:
        """The settings that decide what is computed of a sample."""
        names = ("width", "classes", "image_size", "probes", "batch_size")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Synthetic:
    """A `jaxcurv.data.IndexedSource` of random images, each a function of its index alone.

    Attributes:
      count: samples; their indices are 0 .. count - 1.
      image_size: pixels a side; images are uint8 `[image_size, image_size, 3]`.
      classes: labels are the indices modulo this.
    """

    count: int
    image_size: int
    classes: int

    @property
    def indices(self) -> np.ndarray:
        """int64 `[count]`, 0 .. count - 1."""
        return np.arange(self.count, dtype=np.int64)

    @property
    def labels(self) -> np.ndarray:
        """int32 `[count]`, the indices modulo the classes."""
        return (self.indices % self.classes).astype(np.int32)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int, /) -> Sample:
        if not 0 <= position < self.count:
            raise IndexError(f"no sample {position} among {self.count}")
        shape = (self.image_size, self.image_size, 3)
        size = math.prod(shape)
        # A counter-based generator: its key is all that it is made of.
        bits = np.random.Philox(key=position).random_raw(-(-size // 8))
        image = bits.astype("<u8").view(np.uint8)[:size].reshape(shape)
        return Sample(image=image, label=position % self.classes, index=position)


Run = Callable[[int, Path], "pd.DataFrame"]
"""Works on so many samples and leaves the table at a path."""


def run(settings: LoadBenchmark) -> None:
    """Measures, prints and writes what is asked for.

    Raises:
      ValueError, OSError, ModuleNotFoundError: it cannot start.
      WorkFailed: the measurement failed.
    """
    versions = _prepare(settings)
    with at_work():
        console = Console(highlight=False)
        report = {**measure_all(settings, console), "versions": versions}
        show(report, console)
        if settings.json is not None:
            write_json(settings.json, report)
        if settings.figures is not None:
            console.print(f"figure: {draw(report, settings.figures / 'load.png')}")


def _prepare(settings: LoadBenchmark) -> dict[str, str]:
    """Checks what can be checked at once; the versions of what is measured."""
    versions = package_versions(("jax", "flax", "torch", "aihwkit"))
    if settings.json is not None:
        require_json_path(settings.json)
    if settings.figures is not None:
        require_folder(settings.figures, "--figures")
    require_device(settings.device, "--device")
    return versions


def measure_all(settings: LoadBenchmark, console: Console) -> dict[str, Any]:
    """The report, as JSON has it: for each work its points and their lines; circumstances.

    Memory is null where the system does not tell it.
    """
    load = load_average()
    works: dict[str, Any] = {}
    for work in WORKS:
        points = []
        for samples in sorted(set(settings.samples)):
            points.append(apart(measure, work, samples, settings))
            console.print(f"{work}, {samples:,} samples: {points[-1]['seconds']:,.1f} s")
        works[work] = {"points": points, **lines(points)}
    return {
        "works": works,
        "settings": {**settings.workload(), "samples": settings.samples, "profile": PROFILE},
        "cores": cores(),
        "load_before": load,
        "platform": platform.platform(),
    }


def measure(work: str, samples: int, settings: LoadBenchmark) -> dict[str, Any]:
    """A point: time, memory and size of one work on so many samples.

    Returns:
      seconds: time of the work once all is compiled; preparation_seconds: time until then.
      cpu_seconds: CPU time of all threads during the work; less touched by what else goes on.
      samples_per_second: by the seconds.
      prepared_bytes, prepared_peak_bytes: resident memory of the process before the work: imports,
        network and compiled programs, after some batches.
      resident_bytes, peak_bytes: after the work, its table still there, and at the highest.
      table_bytes, file_bytes: size of the table in memory and on disk.
      device: on what.
    """
    began = perf_counter()
    device, once = WORKS[work](settings)
    with tempfile.TemporaryDirectory() as folder:
        once(_WARM_UP_BATCHES * settings.batch_size, Path(folder) / "warm_up.parquet")
        prepared, prepared_peak = resident()
        out = Path(folder) / "out.parquet"
        started, started_cpu = perf_counter(), process_time()
        table = once(samples, out)
        taken, taken_cpu = perf_counter() - started, process_time() - started_cpu
        after, peak = resident()
        return {
            "samples": len(table),
            "seconds": taken,
            "cpu_seconds": taken_cpu,
            "samples_per_second": samples / taken,
            "preparation_seconds": started - began,
            "prepared_bytes": _known(prepared),
            "prepared_peak_bytes": _known(prepared_peak),
            "resident_bytes": _known(after),
            "peak_bytes": _known(peak),
            "table_bytes": int(table.memory_usage(index=False).sum()),
            "file_bytes": out.stat().st_size,
            "device": device,
        }


def _score(settings: LoadBenchmark) -> tuple[str, Run]:
    from experiments.system.devices import device, use_every_core

    use_every_core(settings.batch_size)
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jaxcurv import FiniteDifference, score_dataset
    from jaxcurv.engine.model import functional
    from jaxcurv.models.resnet import BasicBlock, ResNet

    model = ResNet(
        BasicBlock,
        _DEPTHS,
        num_classes=settings.classes,
        stem="cifar",
        width=settings.width,
        in_channels=3,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    model.eval()
    network, params = functional(model, None)

    def once(samples: int, out: Path) -> pd.DataFrame:
        return score_dataset(
            network,
            _source(samples, settings),
            params=params,
            key=jax.random.key(0),
            estimators={"curvature": FiniteDifference(probes=settings.probes)},
            out=out,
            batch_size=settings.batch_size,
            description=f"score {samples:,}",
        )

    return device(), once


def _simulate(settings: LoadBenchmark) -> tuple[str, Run]:
    import torch

    import bridge
    from bridge.weights.resnet import BasicBlock, ResNet

    torch.set_num_threads(cores())
    network = random_network(
        lambda: ResNet(BasicBlock, _DEPTHS, settings.classes, "cifar", settings.width, 3)
    )
    few = _source(_CALIBRATION_IMAGES, settings)
    calibration = np.stack([few[n]["image"] for n in range(len(few))])
    fit_batch_norm(network, torch.from_numpy(calibration).permute(0, 3, 1, 2))
    chip = bridge.program(network, bridge.PROFILES[PROFILE], seed=0, calibration=calibration)

    def once(samples: int, out: Path) -> pd.DataFrame:
        return bridge.predict(
            chip,
            _source(samples, settings),
            batch_size=settings.batch_size,
            device=settings.device,
            description=f"simulate {samples:,}",
            out=out,
            keep=bridge.analysis.logit_scores,
        )

    on_cpu = settings.device == "cpu"
    return processor() if on_cpu else torch.cuda.get_device_name(settings.device), once


WORKS: dict[str, Callable[[LoadBenchmark], tuple[str, Run]]] = {
    "score": _score,
    "simulate": _simulate,
}
"""What is measured: each prepares itself and says on which device it runs."""


def _source(count: int, settings: LoadBenchmark) -> Normalised:
    images = Synthetic(count, settings.image_size, settings.classes)
    return Normalised(images, Normalisation((0.5,) * 3, (0.25,) * 3))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- lines


def lines(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The line of seconds, of peak memory and of the file's bytes against samples."""
    return {name: line(points, name) for name in _LINES}


def line(points: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None] | None:
    """The least-squares line of a value of the points against their samples.

    Returns:
      slope (a sample), intercept, r_squared (null where the values are all one), and the largest
      distance of a point from the line, as a share of the line there. None where a value is not
      known.
    """
    from scipy.stats import linregress

    values = [point[name] for point in points]
    if None in values:
        return None
    x, y = (np.asarray(v, np.float64) for v in ([p["samples"] for p in points], values))
    fit = linregress(x, y)
    expected = fit.intercept + fit.slope * x
    return {
        "slope": float(fit.slope),
        "intercept": float(fit.intercept),
        "r_squared": _known(float(fit.rvalue) ** 2) if np.ptp(y) > 0 else None,
        "largest_deviation": float(np.max(np.abs(y - expected) / np.abs(expected))),
    }


# --- printing


def show(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report."""
    settings = report["settings"]
    size = settings["image_size"]
    console.print(
        f"ResNet of one block of width {settings['width']}, {settings['classes']} classes, "
        f"synthetic images of {size}x{size}, batches of {settings['batch_size']}; Eq. 1 with "
        f"n = {settings['probes']}, a chip of {settings['profile']}"
    )
    warn_of_load(report["load_before"], console)
    versions = ", ".join(f"{n} {report['versions'][n]}" for n in ("python", "jax", "torch"))
    console.print(f"{report['cores']} cores; {versions}")
    for work, found in report["works"].items():
        table = new_table((work, "seconds", "samples/s", "peak MB", "grown MB", "file MB"))
        for point in found["points"]:
            peak, prepared = point["peak_bytes"], point["prepared_bytes"]
            table.add_row(
                f"{point['samples']:,}",
                f"{point['seconds']:,.1f}",
                f"{point['samples_per_second']:,.0f}",
                "" if peak is None else f"{peak / 1e6:,.0f}",
                "" if peak is None else f"{(peak - prepared) / 1e6:,.0f}",
                f"{point['file_bytes'] / 1e6:,.1f}",
            )
        console.print(table)
        console.print(f"{work}, on {found['points'][-1]['device']}: {_summary(found)}")
    console.print("grown: peak over what the process held before the work, all compiled")


def _summary(found: Mapping[str, Any]) -> str:
    seconds, memory = found["seconds"], found["peak_bytes"]
    straight = (
        f"{1000 * seconds['slope']:.3f} ms a sample and {seconds['intercept']:.1f} s; "
        f"R² {seconds['r_squared']:.5f}, at most {seconds['largest_deviation']:.1%} off the line"
    )
    if memory is None:
        return f"{straight}; memory not told by this system"
    return (
        f"{straight}; peak {memory['intercept'] / 1e6:,.0f} MB and {memory['slope']:,.0f} bytes "
        "a sample"
    )


def draw(report: Mapping[str, Any], path: Path) -> Path:
    """Draws time and peak memory against samples with their lines; the points as CSV beside it.

    Args:
      report: as `measure_all` returns it.
      path: the PNG file.
    """
    import matplotlib
    import pandas as pd

    from bridge.report.figures.style import BLUE, STYLE, VERMILLION, new_figure, write_figure

    panels = {"seconds": ("Time (s)", 1.0), "peak_bytes": ("Peak memory of the process (MB)", 1e-6)}
    looks = {"score": (BLUE, "o"), "simulate": (VERMILLION, "^")}
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width=7.2, height=3.2)
        for axis, (name, (label, scale)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for work, found in report["works"].items():
                fit = found[name]
                if fit is None:
                    continue
                colour, marker = looks[work]
                x = np.array([point["samples"] for point in found["points"]])
                y = np.array([point[name] for point in found["points"]])
                axis.plot(x, scale * y, marker, color=colour, label=work)
                ends = np.array([0, x.max()])
                axis.plot(ends, scale * (fit["intercept"] + fit["slope"] * ends), color=colour)
            axis.set_xlim(left=0)
            axis.set_ylim(0, 1.1 * axis.dataLim.y1 if axis.lines else None)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axis.tick_params("x", rotation=30)
            axis.set_xlabel("Samples")
            axis.set_ylabel(label)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        rows = [
            {"work": work, **point}
            for work, found in report["works"].items()
            for point in found["points"]
        ]
        return write_figure(figure, path, pd.DataFrame(rows))
