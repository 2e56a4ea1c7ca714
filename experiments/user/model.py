"""`python -m experiments score --model package.module:factory --data FOLDER`: a user's own model
and images, without a preset.

The settings are importable without JAX. Nothing touches a device before the processes of a cluster
have found each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from experiments.runs.files import require_writable
from experiments.settings.flags import require_seed
from experiments.system.devices import use_every_core, warn_of_idle_accelerator
from experiments.system.errors import at_work
from experiments.system.factories import as_function, call_factory
from jaxcurv.data import Normalised
from jaxcurv.data.image_folder import image_folder
from jaxcurv.data.preprocessing import Interpolation, choose_preprocessing
from jaxcurv.data.reading import read_batch
from jaxcurv.estimators import (
    SCORE_COLUMNS,
    Adaptive,
    Distribution,
    Estimator,
    EstimatorName,
    Probed,
    named_estimators,
)

if TYPE_CHECKING:
    import pandas as pd

    EstimatorFlag = str
else:
    EstimatorFlag = Literal[tuple(name.replace("_", "-") for name in get_args(EstimatorName))]

_EXAMPLES = 4  # images on which a torch module is exported and compared


@dataclass(frozen=True)
class OwnModel:
    """Computes the curvature of every image in a folder under a model of your own. (For the stage
    of a run: score PRESET --help.)"""

    model: str
    """Where the model comes from: PACKAGE.MODULE:FACTORY, Python code that is run; modules in the
    current folder are found. FACTORY() takes no argument and returns a torch module or a Flax NNX
    module in evaluation mode, a function from images to logits, or a pair of a function (of
    parameters and images, to logits) and its parameters. Images are float32 arrays [batch, height,
    width, channel], and [batch, channel, height, width] for a torch module."""
    data: Path
    """Folder of the images: one folder per class (CLASS/*.png, *.jpg, ...), the same within train
    and test or val folders, or a TFDS data set in array_record form. Classes are numbered in the
    sorted order of their folders' names, and the model's logits must have that order."""
    out: Path = Path("scores.parquet")
    """Table of the scores to write, NAME.parquet. Unfinished work is kept in OUT.parts, and the
    same command goes on from it. With more images, or a higher --limit, only the new ones are
    scored."""
    split: Literal["train", "test"] | None = None
    """Split to score, where the data have several; `none` takes test."""
    channels: Literal[1, 3, 4] | None = None
    """Channels of the model's input: 1 (grey), 3 (RGB) or 4; `none` takes those of a TFDS data set,
    and 3 for folders of images."""
    image_size: int | None = None
    """Side in pixels to which images are resized and centre-cropped, for images of unequal size;
    `none` leaves them as they are."""
    resize_size: int | None = None
    """Length in pixels to which the short side is resized before the crop; `none` takes the image
    size."""
    interpolation: Interpolation = "bicubic"
    """Filter for resizing. The published torchvision weights expect bilinear."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, with pixels on the scale 0..1; `none` is 0. The model is given
    (image - mean) / std."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, on the same scale; `none` is 1. It is the unit of the
    inputs to which scores refer."""
    estimator: tuple[EstimatorFlag, ...] = ("finite-difference",)
    """Curvature estimators to compute, each a column of the table. finite-difference, Eq. 1 of
    Sharma et al., makes the column curvature."""
    step: float | None = None
    """Step of the finite difference, in units of the normalised input; `none` is 0.001. If it is
    given, hessian-trace uses finite differences too; otherwise it is exact."""
    probes: int | None = None
    """Number of random vectors per sample; `none` is 10, and 8 for low-rank-gauss-newton."""
    distribution: Distribution | None = None
    """Distribution of the random vectors: independent signs (rademacher), standard normals
    (gaussian), or uniform on the sphere of radius sqrt(d), d the values of an image (sphere);
    `none` is rademacher."""
    tolerance: float | None = None
    """Relative standard error to reach: each sample gets 20 random vectors, then more, --probes (5
    or more) at a time, until its standard error is at most this fraction of its score; `none` gives
    all samples the same number."""
    max_probes: int | None = None
    """Largest number of random vectors per sample with --tolerance, at least 20; `none` is 100."""
    rank: int | None = None
    """Dimensions of the subspace of low-rank-gauss-newton; `none` is 8."""
    seed: int = 0
    """Seed for the random vectors and for choosing images under --limit."""
    batch_size: int | Literal["auto"] = "auto"
    """Images per batch on each device; `auto` takes 64 on a CPU and 256 on an accelerator, or
    fewer where memory is short. Changes speed and memory; scores change by rounding only."""
    limit: int | None = None
    """Largest number of images to score; `none` takes all."""
    shard: str | None = None
    """Part of the images to score, as I/N: the I-th of N shards, counted from 1, for N machines
    that work at once. Then `python -m experiments merge OUT` joins them. With `none`, all are
    scored."""
    distributed: bool = False
    """Divide the work among the processes of a cluster job, which JAX finds by itself under SLURM,
    Open MPI or on a TPU pod."""
    coordinator: str | None = None
    """Address of process 0, HOST:PORT, for --distributed without a cluster manager; `none` lets JAX
    find it."""
    processes: int | None = None
    """Number of processes, with --coordinator; otherwise `none`."""
    process: int | None = None
    """Number of this process, counted from 0, with --coordinator; otherwise `none`."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        estimators(self)
        choose_preprocessing(self.image_size, self.resize_size, self.interpolation)
        if self.shard is not None:
            parse_shard(self.shard)
            if self.distributed:
                raise ValueError("--distributed divides the work already: leave --shard out")
        require_seed("seed", self.seed)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1; got {self.limit}")
        if self.batch_size != "auto" and self.batch_size < 1:
            raise ValueError(f"batch_size must be auto or at least 1; got {self.batch_size}")
        missing = [value is None for value in (self.coordinator, self.processes, self.process)]
        if not all(missing) and (any(missing) or not self.distributed):
            raise ValueError("--distributed --coordinator --processes --process go together")
        if self.coordinator is not None:
            require_address(self.coordinator)
        if self.process is not None and not 0 <= self.process < (self.processes or 0):
            raise ValueError(
                f"process must lie in [0, processes); got {self.process} of {self.processes}"
            )


def estimators(settings: OwnModel) -> dict[str, Estimator]:
    """The estimators by column name.

    Raises:
      ValueError: one is named twice, or a flag is given that none of them uses.
    """
    if not settings.estimator or len(set(settings.estimator)) < len(settings.estimator):
        raise ValueError(f"estimators must differ; got {', '.join(settings.estimator) or 'none'}")
    given = {
        name: value
        for name in ("step", "probes", "distribution", "rank", "tolerance", "max_probes")
        if (value := getattr(settings, name)) is not None
    }
    if "max_probes" in given and "tolerance" not in given:
        raise ValueError("--max-probes needs --tolerance: without it all samples get PROBES")
    made: dict[str, Estimator] = {}
    used: set[str] = set()
    for name in settings.estimator:
        estimator = name.replace("-", "_")
        kind = type(named_estimators()[estimator])
        column = SCORE_COLUMNS[estimator]
        own = _taken(kind, given)
        made[column] = kind(**own)
        used |= own.keys()
        if "tolerance" in given and issubclass(kind, Probed):
            adaptive = _taken(Adaptive, given)
            made[column] = Adaptive(kind(**own), **adaptive)
            used |= adaptive.keys()
    if unused := given.keys() - used:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
        raise ValueError(f"{', '.join(settings.estimator)} makes no use of {flags}: leave it out")
    return made


def _taken(kind: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in given.items() if name in names}


def parse_shard(text: str) -> tuple[int, int]:
    """`I/N`, I from 1, as (I - 1, N).

    Raises:
      ValueError: it is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"shard must be I/N with 1 <= I <= N, such as 1/8; got {text!r}")
    return int(match[1]) - 1, int(match[2])


def require_address(text: str) -> None:
    """Raises ValueError unless the text is HOST:PORT: JAX would end the process for a bad one."""
    match = re.fullmatch(r".+:(\d+)", text)
    if not match or not 0 < int(match[1]) < 2**16:
        raise ValueError(f"coordinator must be HOST:PORT, PORT below 65536; got {text!r}")


def run(settings: OwnModel) -> None:
    """Scores and prints a summary.

    Raises:
      ValueError, OSError, ImportError: it cannot start.
      WorkFailed: the model or an image is refused, or the scoring failed.
    """
    require_out(settings.out)
    source = open_source(settings)
    if settings.distributed:
        _join_cluster(settings)
    use_every_core()
    made = call_factory(settings.model)
    logits_fn, params = as_function(
        made,
        settings.model,
        lambda: read_batch(source, range(min(_EXAMPLES, len(source)))).images,
    )

    import jax

    from jaxcurv import score_dataset

    warn_of_idle_accelerator()
    each = settings.batch_size
    with at_work():
        table = score_dataset(
            logits_fn,
            source,
            key=jax.random.key(settings.seed),
            params=params,
            estimators=estimators(settings),
            out=settings.out,
            batch_size=each if each == "auto" else each * jax.local_device_count(),
            shard=None if settings.shard is None else parse_shard(settings.shard),
        )
    if settings.shard is not None:
        print(
            f"{len(table)} samples of shard {settings.shard} scored; once all are, "
            f"python -m experiments merge {settings.out}"
        )
    elif jax.process_index() == 0:
        print_summary(settings.out, table)


def require_out(out: Path) -> None:
    """Refuses an output file that could not be written.

    Raises:
      ValueError: its name does not end in .parquet.
      OSError: it is a folder, or its folder cannot be written.
    """
    if out.is_dir():
        raise IsADirectoryError(
            f"{out} is a folder: give the file, such as --out {out}/scores.parquet"
        )
    if out.suffix != ".parquet":
        raise ValueError(
            f"{out} would hold Parquet: give --out NAME.parquet, and for another format convert "
            "the finished table, such as pandas.read_parquet(...).to_csv(...)"
        )
    require_writable(out.parent)


def open_source(settings: OwnModel) -> Normalised:
    """The images, normalised as the model expects; decoded as they are asked for.

    Raises:
      FileNotFoundError: the folder, or images in it, are missing.
      ValueError: they are not as they should be, or there is not one mean and std for each channel.
    """
    return image_folder(
        settings.data,
        settings.split,
        mean=0.0 if settings.mean is None else settings.mean,
        std=1.0 if settings.std is None else settings.std,
        channels=settings.channels,
        image_size=settings.image_size,
        resize_size=settings.resize_size,
        interpolation=settings.interpolation,
        limit=settings.limit,
        seed=settings.seed,
    )


def _join_cluster(settings: OwnModel) -> None:
    import jax

    # Its service takes SIGTERM for itself: the process would work on.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(settings.coordinator, settings.processes, settings.process)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--distributed could not join the other processes ({error}): start it with srun or "
            "mpirun, or give --coordinator HOST:PORT --processes N --process I"
        ) from error


def merge(out: Path) -> pd.DataFrame:
    """Makes the table from what `--shard` left, and prints its summary.

    Raises:
      FileNotFoundError: nothing has been scored.
      ValueError: shards are missing.
      FolderInUse: another process merges them.
    """
    from jaxcurv.shards import merge_scores

    table = merge_scores(out)
    print_summary(out, table)
    return table


def print_summary(out: Path, table: pd.DataFrame) -> None:
    """Prints how many samples were scored and where the middle and the highest tenth lie."""
    print(f"{out}: {len(table)} samples, {table['correct'].mean():.1%} predicted right")
    for column in table.attrs["estimators"]:
        median, tenth = np.quantile(table[column], [0.5, 0.9])
        print(f"  {column}: median {median:.4g}, highest tenth (D10) above {tenth:.4g}")
