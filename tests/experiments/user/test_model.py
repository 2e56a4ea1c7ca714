"""Scoring a user's own model and images over the command line, whole and in shards."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.cli import commands, parsing
from experiments.user.model import OwnModel, estimators, open_source, parse_shard
from jaxcurv import (
    Adaptive,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    input_curvature,
)
from jaxcurv.data import Preprocessing
from jaxcurv.data.folder import path_indices
from jaxcurv.data.images import decode
from jaxcurv.storage import checksums
from tests.conftest import ROOT
from tests.one_process import succeed

MODULE = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx

weights = np.random.default_rng(1).normal(size=(192, 3)).astype(np.float32)

def logits(weights, images):
    return jnp.tanh(images.reshape(len(images), -1) @ weights / 8)

def pair():
    return logits, jnp.asarray(weights)

def closure():
    return lambda images: logits(weights, images)

class Network(nnx.Module):
    def __init__(self):
        self.weights = nnx.Param(jnp.asarray(weights))
    def __call__(self, images):
        return logits(self.weights[...], images)

def network():
    return Network()

def in_torch():
    import torch

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.Parameter(torch.from_numpy(weights))
        def forward(self, images):
            return torch.tanh(images.permute(0, 2, 3, 1).flatten(1) @ self.weights / 8)

    return Network().eval()

def mixing():
    return lambda images: logits(weights, images - images.mean(axis=0))

def failing():
    raise RuntimeError("no weights here")

def interrupted():
    raise KeyboardInterrupt

def number():
    return 7
"""

NORMALISED = ("--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.25", "0.3")
SCORE = ("score", "--probes", "3", "--batch-size", "4", *NORMALISED)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `mine` and the images `images/<class>/*.png`."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "mine.py").write_text(MODULE)
    (folder / "foreign.parquet").write_text("mine")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cow"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is in `place`."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return place


def start(place: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=place,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(place: Path, *arguments: str) -> str:
    """What a command prints, run by this process in `place`; it must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "path", sys.path.copy())
        return succeed(*arguments)[0]


@pytest.fixture(scope="module")
def whole(place: Path) -> pa.Table:
    """The table of one process."""
    output = command(
        place, *SCORE, "--model", "mine:pair", "--data", "images", "--out", "whole.parquet"
    )
    table = pq.read_table(place / "whole.parquet")
    median, tenth = np.quantile(table["curvature"].to_numpy(), [0.5, 0.9])
    assert f"curvature: median {median:.4g}, highest tenth (D10) above {tenth:.4g}" in output
    assert f"12 samples, {table['correct'].to_numpy().mean():.1%} predicted right" in output
    assert not (place / "whole.parquet.parts").exists()
    return table


def test_table_is_what_the_library_gives(place: Path, whole: pa.Table) -> None:
    files = sorted((place / "images").glob("*/*.png"))
    images = np.stack([np.asarray(Image.open(file)) for file in files]) / np.float32(255)
    images = (images - np.float32([0.5, 0.4, 0.3])) / np.float32([0.2, 0.25, 0.3])
    namespace: dict = {}
    exec(MODULE, namespace)
    logits_fn, params = namespace["pair"]()
    result = input_curvature(
        logits_fn,
        images,
        np.repeat([0, 1, 2], 4),
        indices=path_indices([f"{file.parent.name}/{file.name}" for file in files]),
        key=jax.random.key(0),
        params=params,
        estimator=FiniteDifference(probes=3),
    )
    assert whole.column_names[:2] == ["index", "path"]
    assert whole["path"].to_pylist() == [f"{file.parent.name}/{file.name}" for file in files]
    assert whole["index"].to_pylist() == path_indices(whole["path"].to_pylist()).tolist()
    assert whole["label"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    np.testing.assert_allclose(whole["curvature"].to_numpy(), result.score, rtol=1e-3)
    np.testing.assert_allclose(whole["loss"].to_numpy(), result.loss, rtol=1e-5)


def test_images_are_resized_and_cropped_as_the_flags_say(place: Path) -> None:
    settings = OwnModel(
        "mine:pair", place / "images", image_size=4, resize_size=6, interpolation="bilinear"
    )
    file = place / "images/ant/0.png"
    expected = decode(file, preprocessing=Preprocessing(4, 6, "bilinear")) / np.float32(255)
    np.testing.assert_array_equal(open_source(settings)[0]["image"], expected)


def test_module_and_function_score_alike_and_each_estimator_has_its_column(
    place: Path, whole: pa.Table
) -> None:
    command(
        place, *SCORE, "--model", "mine:network", "--data", "images", "--out", "network.parquet",
        *("--estimator", "finite-difference", "gauss-newton"),
    )  # fmt: skip
    table = pq.read_table(place / "network.parquet")
    np.testing.assert_allclose(
        table["curvature"].to_numpy(), whole["curvature"].to_numpy(), rtol=1e-3
    )
    assert (table["gauss_newton"].to_numpy() > 0).all()


def test_a_torch_module_scores_as_the_function_does(inside: Path, whole: pa.Table) -> None:
    place = inside
    flags = ("--model", "mine:in_torch", "--data", "images", "--out", "in_torch.parquet")
    command(place, *SCORE, *flags)
    table = pq.read_table(place / "in_torch.parquet")
    for name, rtol in {"loss": 1e-5, "gradient_norm": 1e-5, "curvature": 1e-3}.items():
        np.testing.assert_allclose(table[name].to_numpy(), whole[name].to_numpy(), rtol=rtol)
    assert table["path"].equals(whole["path"])


def test_shards_are_merged_into_the_table_of_one_process(
    inside: Path, whole: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    place = inside
    flags = (*SCORE, "--model", "mine:pair", "--data", "images", "--out", "shards.parquet")
    first = command(place, *flags, "--shard", "1/2")
    assert "merge shards.parquet" in first
    assert commands.run(["merge", "shards.parquet"]) == 2
    assert "missing" in one_error(capsys.readouterr().err)

    parts = {path: path.stat().st_mtime_ns for path in place.glob("shards.parquet.parts/0*")}
    assert 0 < len(parts) < 12
    command(place, *flags, "--shard", "2/2")
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert "12 samples" in command(place, "merge", "shards.parquet")
    assert_same(pq.read_table(place / "shards.parquet"), whole)


def test_killed_work_goes_on(place: Path, whole: pa.Table) -> None:
    """All but one of the shards are there: the next call computes that one and ends."""
    flags = (*SCORE, "--model", "mine:pair", "--data", "images", "--out", "killed.parquet")
    command(place, *flags, "--shard", "1/1")
    shards = sorted(place.glob("killed.parquet.parts/0*.parquet"))
    # Recognisable, to be found again in the table.
    table = checksums.read_table(shards[0])
    first = len(table)
    checksums.write_table(shards[0], with_norms(table, -1.0))
    shards[-1].unlink()
    command(place, *flags)
    table = pq.read_table(place / "killed.parquet")
    assert table["gradient_norm"].to_pylist()[:first] == [-1.0] * first
    assert table["gradient_norm"].to_pylist()[first:] == whole["gradient_norm"].to_pylist()[first:]
    assert table.drop_columns("gradient_norm").equals(whole.drop_columns("gradient_norm"))


def test_more_images_are_added_to_a_table(place: Path, whole: pa.Table) -> None:
    """What was scored keeps its rows, recognisable ones; which images --limit adds is by chance."""
    flags = (*SCORE, "--model", "mine:pair", "--data", "images", "--out", "grown.parquet")
    command(place, *flags, "--limit", "7")
    before = checksums.read_table(place / "grown.parquet")
    checksums.write_table(place / "grown.parquet", with_norms(before, -1.0))
    assert "12 samples" in command(place, *flags)
    table = pq.read_table(place / "grown.parquet")
    known = np.isin(table["index"], before["index"])
    assert known.sum() == 7
    np.testing.assert_array_equal(
        table["gradient_norm"], np.where(known, -1, whole["gradient_norm"])
    )
    assert table.drop_columns("gradient_norm").equals(whole.drop_columns("gradient_norm"))


@pytest.mark.parametrize("name", ["scores.csv", "scores"])
def test_another_format_is_refused_before_the_model_is_called(
    inside: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    score = ["score", "--model", "mine:failing", "--data", "images", "--out", name]
    for arguments in (score, ["merge", name]):
        assert commands.run(arguments) == 2
        assert "NAME.parquet" in one_error(capsys.readouterr().err)
    assert not (inside / name).exists()


def with_norms(table: pa.Table, norm: float) -> pa.Table:
    column = table.column_names.index("gradient_norm")
    field = table.schema.field("gradient_norm")
    return table.set_column(column, field, pa.array([norm] * len(table), field.type))


def test_two_processes_make_the_table_of_one(place: Path, whole: pa.Table) -> None:
    """One finds the other as in a SLURM job, by JAX's own detection; the other is told. For some
    images there is a table before."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = (
        *(*SCORE, "--model", "mine:pair", "--data", "images", "--out", "two.parquet"),
        "--distributed",
    )
    command(place, *flags[:-1], "--limit", "5")
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": port,
        "JAX_PLATFORMS": "cpu",
    }
    told = ("--coordinator", f"localhost:{port}", "--processes", "2", "--process", "1")
    processes = [
        start(place, *flags, **slurm),
        start(place, *flags, *told, JAX_PLATFORMS="cpu"),
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "12 samples" in outputs[0][0]
    assert "12 samples" not in outputs[1][0]
    assert_same(pq.read_table(place / "two.parquet"), whole)


def test_sigterm_ends_a_process_of_several() -> None:
    """JAX's own service would take the signal, and let the process work on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = f"""
import os, signal, time
from pathlib import Path
from experiments.user import model
from experiments.system import processes
processes.raise_on_sigterm()
settings = model.OwnModel(
    "a:b", Path("images"), Path("out"), distributed=True,
    coordinator="localhost:{port}", processes=1, process=0,
)
model._join_cluster(settings)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
except processes.Terminated:
    processes.rest()
    print("terminated")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout == "terminated\n", done.stderr


def assert_same(table: pa.Table, whole: pa.Table) -> None:
    assert table.equals(whole)
    assert _says(table) == _says(whole)


def _says(table: pa.Table) -> dict[bytes, Any]:
    """A table's metadata but for the batches, which have a part for each device of the process."""
    said = json.loads(table.schema.metadata[b"jaxcurv"])
    del said["batch_sizes"], said["shard_length"]
    return table.schema.metadata | {b"jaxcurv": said}


# --- what is refused, in this process


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def one_error(errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--model", "mine"], 2, "package.module:factory"),
        (["--model", "nowhere:pair"], 2, "cannot import nowhere"),
        (["--model", "mine:nothing"], 2, "has no function nothing"),
        (["--model", "mine:failing"], 2, "mine:failing failed: RuntimeError: no weights here"),
        (["--model", "mine:logits"], 2, "missing 2 required positional arguments"),
        (["--model", "mine:number"], 2, "must return a torch module, an NNX module"),
        (["--data", "nowhere"], 2, "there is no folder nowhere"),
        (["--data", "images/ant"], 2, "has no class folders"),
        (["--split", "train"], 2, "has no folders train and test"),
        (
            ["--mean", "0.5"],
            2,
            "mean has 1 value, and the images have 3 channels: give one a channel",
        ),
        (["--channels", "1"], 2, "has 3 values, and the images have 1 channels"),
        (["--out", "images"], 2, "images is a folder"),
        (["--out", "/proc/nowhere/scores.parquet"], 2, "cannot write to the output folder"),
        (["--model", "mine:mixing"], 1, "the model mixes the samples of a batch"),
        (["--out", "whole.parquet", "--seed", "1"], 1, "belongs to other settings"),
        (["--out", "mine.py"], 2, "give --out NAME.parquet"),
        (["--out", "foreign.parquet"], 1, "is no whole table of scores"),
    ],
)
def test_error_is_one_line(
    inside: Path,
    whole: pa.Table,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    words: str,
) -> None:
    before = files(inside)
    given = {"--model": "mine:closure", "--data": "images", "--out": "new.parquet"}
    given |= dict(zip(flags[::2], flags[1::2], strict=True))
    arguments = [part for flag, value in given.items() for part in (flag, value)]
    # The last of a repeated flag counts.
    assert commands.run([*SCORE, *arguments]) == code
    assert words in one_error(capsys.readouterr().err)
    assert files(inside) == before


def test_interruption(inside: Path) -> None:
    flags = ("--model", "mine:interrupted", "--data", "images", "--out", "new.parquet")
    assert commands.run([*SCORE, *flags]) == 130


def test_debug_shows_where(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["score", "--model", "mine:failing", "--data", "images", "--debug"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert 'raise RuntimeError("no weights here")' in errors


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shard", "9/8"], "1 <= I <= N"),
        (["--shard", "0/8"], "1 <= I <= N"),
        (["--shard", "1of8"], "I/N"),
        (["--shard", "1/8", "--distributed"], "leave --shard out"),
        (["--rank", "3"], "makes no use of --rank"),
        (["--estimator", "gauss-newton", "--step", "0.1", "--probes", "2"], "--probes, --step"),
        (["--estimator", "gauss-newton", "--tolerance", "0.1"], "makes no use of --tolerance"),
        (["--estimator", "hessian-trace", "hessian-trace"], "estimators must differ"),
        (["--estimator", "curvature"], "'curvature': give one of finite-difference,"),
        (["--max-probes", "50"], "--max-probes needs --tolerance"),
        (["--probes", "0"], "probes must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--coordinator", "localhost:1"], "go together"),
        (["--distributed", "--coordinator", "localhost", "--processes", "2", "--process", "0"],
         "HOST:PORT"),
    ],
)  # fmt: skip
def test_bad_flag_is_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    arguments = ["score", "--model", "mine:pair", "--data", "images", *flags]
    assert commands.run(arguments) == 2
    errors = capsys.readouterr().err
    assert words in one_error(errors)


def test_score_without_arguments_names_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["score"]) == 2
    error = one_error(capsys.readouterr().err)
    assert "digits" in error
    assert "--model package.module:factory" in error


def test_merge_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["merge", str(tmp_path / "none.parquet")]) == 2
    assert "score first" in one_error(capsys.readouterr().err)


def test_benchmark_needs_its_subject(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["benchmark"]) == 2
    assert "benchmark needs what to measure: curvature" in one_error(capsys.readouterr().err)


def test_rank_correlation_needs_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["rank-correlation"]) == 2
    assert "rank-correlation needs a preset: digits" in one_error(capsys.readouterr().err)


# --- parsing


def settings(**given: object) -> OwnModel:
    return OwnModel("mine:pair", Path("images"), **given)  # type: ignore[arg-type]


def test_estimators_take_the_flags_that_they_have() -> None:
    assert estimators(settings()) == {"curvature": FiniteDifference()}
    names = (
        *("finite-difference", "hessian-vector", "hessian-trace"),
        *("gauss-newton", "low-rank-gauss-newton"),
    )
    assert estimators(
        settings(estimator=names, step=0.1, probes=4, rank=2, distribution="sphere")
    ) == {
        "curvature": FiniteDifference(0.1, 4, "sphere"),
        "hessian_vector": HessianVector(4, "sphere"),
        "hessian_trace": HessianTrace(4, 0.1, "sphere"),
        "gauss_newton": GaussNewton(),
        "low_rank_gauss_newton": LowRankGaussNewton(rank=2, probes=4),
    }
    adaptive = settings(
        estimator=("hessian-vector", "gauss-newton"), tolerance=0.2, max_probes=30, probes=5
    )
    assert estimators(adaptive) == {
        "hessian_vector": Adaptive(HessianVector(5), 0.2, 30),
        "gauss_newton": GaussNewton(),
    }


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="need an image size"):
        settings(resize_size=9)
    with pytest.raises(ValueError, match="choose a resize size of at least 8"):
        settings(image_size=8, resize_size=7)


def test_shards_count_from_one() -> None:
    assert [parse_shard(text) for text in ("1/8", "8/8", "1/1")] == [(0, 8), (7, 8), (0, 1)]


@pytest.mark.parametrize("way", ["job", "array"])
def test_slurm_example_gives_flags_that_there_are(tmp_path: Path, way: str) -> None:
    """With an `sbatch` that writes down what it would submit."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/bash\nprintf "%s\\n" "${@: -1}" >> submitted\necho 17\n')
    sbatch.chmod(0o755)
    script = ROOT / "examples" / "slurm_scores.sh"
    subprocess.run(
        ["bash", script, way],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "MODEL": "mine:pair",
            "DATA": "my images",
            "OUT": "scores.parquet",
        },
        check=True,
    )
    # Run by a shell, as the job would, with a `python` and an `srun` that show their arguments.
    (tmp_path / "python").write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
    )
    (tmp_path / "srun").write_text('#!/bin/bash\n[[ $1 == --* ]] && shift\nexec "$@"\n')
    for name in ("python", "srun"):
        (tmp_path / name).chmod(0o755)
    lines = (tmp_path / "submitted").read_text().splitlines()
    shown = [
        json.loads(
            subprocess.run(
                ["bash", "-c", line],
                env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3"},
                capture_output=True,
                check=True,
            ).stdout
        )
        for line in lines
    ]
    common = {"model": "mine:pair", "data": Path("my images"), "out": Path("scores.parquet")}
    parsed = parsing.parse(OwnModel, "score", shown[0][3:])
    if way == "job":
        assert parsed == OwnModel(**common, distributed=True)
        assert len(shown) == 1
    else:
        assert parsed == OwnModel(**common, shard="3/8")
        assert shown[1] == ["-m", "experiments", "merge", "scores.parquet"]
