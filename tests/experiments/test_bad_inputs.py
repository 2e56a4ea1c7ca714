"""Bad input: each is refused in one line that names the cause and the cure.

A table of cases for the command line, its files and the library, then properties of the entry
points that take arrays.
"""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch
from flax import linen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch import nn

import bridge
import jaxcurv
from bridge.analysis.failures import trend_test
from bridge.routing.curves import choose_threshold, routed_at
from experiments.cli import commands
from experiments.user import model as user_model
from jaxcurv.data.datasets import open_folder
from jaxcurv.estimators import (
    Adaptive,
    FiniteDifference,
    GaussNewton,
    HessianVector,
    LowRankGaussNewton,
    Published,
)
from jaxcurv.gaussian_flips import gaussian_flip_probability
from tests.conftest import Command

CHEAP = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# --- the command line


@dataclass(frozen=True)
class Refused:
    """A command line, the words that its error must hold, and the exit code."""

    line: str
    words: tuple[str, ...]
    code: int = 2


def setting(flag: str, *words: str) -> Refused:
    return Refused(f"report digits --out none {flag}", words)


def own_model(flags: str, *words: str, code: int = 2) -> Refused:
    given = "score --data images --model odd:pair --probes 2 --out new.parquet"
    return Refused(f"{given} {flags}", words, code)


def own_tables(flags: str, *words: str) -> Refused:
    given = "analyse --scores scores.csv --digital digital.csv --analog analog.csv --resamples 5"
    return Refused(f"{given} --out analysed {flags}", words)


COMMANDS = [
    Refused("trian digits", ("unknown command 'trian'", "use run, train")),
    Refused("run", ("run needs a preset", "digits", "run PRESET --help")),
    Refused("run cifar1000", ("unknown preset 'cifar1000'", "cifar100_resnet18")),
    Refused("analyse", ("analyse needs a preset", "--scores FILE")),
    Refused("presets digits", ("presets takes no argument; got digits",)),
    Refused("benchmark speed", ("curvature, analog, load or costs",)),
    Refused("merge", ("OUT must be given", "merge --help")),
    Refused("merge none.parquet", ("neither none.parquet nor none.parquet.parts", "score first")),
    Refused("merge a b", ("unexpected 'b'", "merge --help")),
    Refused("score digits --out nothing", ("score needs the results of train", "run train first")),
    Refused("report digits --out nothing", ("report needs the results of", "run train first")),
    Refused("run digits --out file", ("cannot write to the output folder", "another with --out")),
    Refused("run digits --out /proc/none", ("cannot write to the output folder", "--out")),
    Refused(
        "rank-correlation digits --out nothing", ("no trained model in nothing", "run train first")
    ),
    Refused("rescore digits --out nothing", ("no model.json in nothing", "run train first")),
    Refused("layers digits --out nothing", ("no weights.safetensors", "run export first")),
    Refused("drift digits --out nothing", ("no weights.safetensors", "run export first")),
    Refused("compare-noise digits --out nothing", ("no weights.safetensors", "run export first")),
    Refused("table-one nothing", ("no table_one.parquet in nothing", "such as runs/digits")),
    Refused("figure-one nothing", ("no deciles.parquet in nothing", "such as runs/digits")),
    Refused("gallery nothing", ("no predictions.parquet in nothing", "such as runs/digits")),
    Refused("gallery nothing --count 0", ("count must be at least 1; got 0",)),
    Refused("regenerate", ("in a checkout, python -m tools regenerate",)),
    Refused("fit-paper --share nan", ("--share must be in (0, 1]; got nan",)),
    Refused("fit-paper --runs none --out fit", ("no scores.parquet in none", "experiments run")),
    Refused("benchmark curvature --width 0", ("width", "must be at least 1", "'width': 0")),
    Refused("benchmark curvature --json .", (". is a folder", "give --json a file's name")),
    Refused("benchmark analog --engines", ("needs at least one of fast, aihwkit and jax",)),
    Refused("layers digits --layers.chips 0", ("chips must be at least 1; got 1000, 256, 0",)),
    Refused("drift digits --drift.times -1", ("a time must be finite and >= 0, got -1.0",)),
    Refused("compare-noise digits --compare.chips 1", ("chips must be 2 to 1000", "got 1")),
    Refused("atlas digits --out nothing", ("no model.json in nothing", "run train first")),
    Refused(
        "atlas digits --out some --atlas.out ./some", ("--atlas.out", "is the run's own folder")
    ),
    Refused("atlas digits --atlas.chips 1", ("chips must be at least 2", "got 1")),
    Refused("atlas digits --atlas.profiles adc", ("adc, which draws no noise",)),
    Refused("atlas digits --atlas.profiles pcm@1h", ("after @ give seconds, such as pcm@3600",)),
    Refused("finetune digits --out nothing", ("no model.json in nothing", "run train first")),
    Refused("finetune digits --finetune.emphasis 0", ("emphasis must be above 0", "got 0.0")),
    Refused("finetune digits --finetune.variants plain", ("must include plain and noise_aware",)),
    Refused("finetune digits --finetune.variants plain loss", ("cannot be 'loss'", "curvature")),
    Refused("finetune digits --finetune.profile adc", ("adc, which draws no noise",)),
    Refused("finetune digits --finetune.profile ideal", ("ideal, which draws no noise",)),
    Refused("rank-correlation digits --rank-correlation.limit 2", ("limit must be at least 3",)),
]

SETTINGS = [
    setting("--bogus 1", "there is no flag --bogus", "report digits --help"),
    setting("--chips 3", "there is no flag --chips; did you mean --simulate.chips?"),
    setting("--limt 30", "there is no flag --limt; did you mean --limit?"),
    setting("--limit ten", "--limit cannot be 'ten': give a whole number such as 10, or none"),
    setting("--data.mean 0.5 x", "--data.mean cannot be 'x': give a number such as 0.5"),
    setting("--simulate.adc.range x", "give calibrated, or a number such as 0.5"),
    setting("--seed", "--seed needs a value"),
    setting("--limit 0", "limit of 0 samples cannot fill 10 bins", "--limit 10"),
    setting("--limit-train 9", "limit of 9 samples cannot fill 10 bins", "--limit-train 10"),
    setting(
        "--simulate.profiles ideal adc",
        "profiles must include adc+wnoise+pcm_gdc, which the report is about",
        "(--analyse.profile); got ideal, adc",
    ),
    setting(
        "--simulate.profiles adc adc",
        "--simulate.profiles must include ideal, and each once; got adc, adc",
    ),
    setting("--seed 4294967296", "seed must not be negative and be below 2**32; got 4294967296"),
    setting("--data.split-seed -1", "--data.split-seed must not be negative", "got -1"),
    setting("--folds train", "--folds must include test, each fold once; got train"),
    setting(
        "--data.validation-fraction 2",
        "--data.validation-fraction must lie between 0 and 1",
        "got 2.0",
    ),
    setting("--data.mean 128 --data.std 64", "on the scale 0..1", "by 255"),
    setting(
        "--model.architecture resnet34", "cannot be 'resnet34': give one of resnet18, resnet50"
    ),
    setting("--model.width 0", "width must be at least 1; got 0"),
    setting("--train.batch-size 1", "a batch of at least 2 images", "batch_size=1"),
    setting("--train.learning-rate nan", "--train.learning-rate must be positive; got nan"),
    setting("--score.estimator.step nan", "step must be a positive number; got nan"),
    setting("--score.compare gauss_newton gauss_newton", "compare must name each once"),
    setting("--simulate.chips 0", "chips", "must be at least 1; got 0"),
    setting("--simulate.adc.bits 24", "ADC bits must be an integer from 2 to 23, got 24"),
    setting("--simulate.adc.percentile 101", "ADC percentile must be at most 100, got 101.0"),
    setting("--simulate.wnoise.sigma -1", "sigma must be finite and >= 0, got -1.0"),
    setting("--simulate.pcm.t-inference inf", "t_inference must be finite and >= 0, got inf"),
    setting("--simulate.clipping.sigma 0", "clipping sigma must be finite and > 0, got 0.0"),
    setting("--analyse.bins 1", "bins must be at least 2; got 1"),
    setting("--analyse.resamples 0", "resamples be at least 1; got 0.95, 0"),
    setting("--analyse.energy.digital 0", "digital inference must be finite and > 0, got 0.0"),
    setting("--analyse.profile ideal", "profile must have a non-ideality"),
    setting("--simulate.coarse-bits 1", "ADC bits must be an integer from 2 to 23, got 1"),
    setting("--analyse.tolerance nan", "tolerance must be in [0, 1); got nan"),
]

OWN_MODELS = [
    own_model("--model broken:pair", "cannot import broken", "SyntaxError"),
    own_model("--model quits:pair", "cannot import quits", "SystemExit: 0"),
    own_model("--model odd:leaves", "odd:leaves failed: SystemExit: 0"),
    own_model("--model odd:triple", "a pair (function of params and images, params); got tuple"),
    own_model("--model odd:flat", "logits must be [batch, classes]", "got (2,)", code=1),
    own_model("--model odd:not_a_number", "logits are not finite", "its weights", code=1),
    own_model("--model odd:crashes", "ZeroDivisionError", "must be JAX code", code=1),
    own_model("--data file", "there is no folder file"),
    own_model("--data one_class", "has the folder a only", "one for each class"),
    own_model("--data without_images", "has no image (.png", "add its images, or remove it"),
    own_model("--data text_first", "0.png is not a readable image, replace it"),
    own_model("--data text_last", "1.png is not a readable image, replace it", code=1),
    own_model("--data truncated", "1.jpg is not a readable image, replace it", code=1),
    own_model("--data sizes", "images differ in size", "--image-size", code=1),
    own_model("--mean nan 0 0", "on the scale 0..1", "by 255"),
    own_model("--step 1e-30", "step 1e-30 is too small", "take at least", code=1),
    own_model("--probes 5 --tolerance nan", "tolerance must be a positive number; got nan"),
    own_model("--seed 99999999999999999999", "seed must not be negative and be below 2**32"),
    own_model("--out file/new.parquet", "cannot write to the output folder file", "--out"),
    own_model(
        "--distributed --coordinator here:1 --processes 2 --process 2",
        "process must lie in [0, processes); got 2 of 2",
    ),
    own_model(
        "--distributed --coordinator here:99999 --processes 2 --process 0",
        "coordinator must be HOST:PORT, PORT below 65536; got 'here:99999'",
    ),
]

OWN_TABLES = [
    own_tables("--scores zero_bytes.csv", "zero_bytes.csv is not a readable CSV or Parquet file"),
    own_tables("--scores csv.parquet", "csv.parquet is not a readable CSV or Parquet file"),
    own_tables("--scores parquet.csv", "parquet.csv is not a readable CSV or Parquet file"),
    own_tables("--scores header.csv", "header.csv has no rows", "one for each sample"),
    own_tables("--scores half.csv", "index in half.csv must hold whole numbers", "such as 0.5"),
    own_tables("--digital text.csv", "correct must be true or false, or 1 or 0", "got yes"),
    own_tables("--analog chips.csv", "chip is missing in 20 rows of chips.csv", "fill them in"),
    own_tables("--bins 0", "bins must be at least 1; got 0"),
    own_tables("--confidence nan", "confidence must lie between 0 and 1; got nan"),
    own_tables("--out file", "cannot write to the output folder file", "--out"),
]

MODULE = """
import jax.numpy as jnp, numpy as np
weights = np.random.default_rng(1).normal(size=(192, 3)).astype(np.float32)
def logits(weights, images): return images.reshape(len(images), -1) @ weights
def pair(): return logits, weights
def leaves(): raise SystemExit(0)
def triple(): return logits, weights, weights
def flat(): return lambda images: logits(weights, images)[:, 0]
def not_a_number(): return lambda images: logits(weights, images) * jnp.nan
def crashes(): return lambda images: 1 / 0
"""


def write_images(root: Path, *classes: str, size: int = 8) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(root / name / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with modules, image folders and tables, good ones and bad ones."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "odd.py").write_text(MODULE)
    (folder / "broken.py").write_text("def pair(:\n")
    (folder / "quits.py").write_text("import sys\nsys.exit(0)\n")
    (folder / "file").write_text("no folder")
    for name in ("images", "without_images", "text_first", "text_last", "truncated", "sizes"):
        write_images(folder / name, "a", "b")
    write_images(folder / "one_class", "a")
    write_images(folder / "sizes", "b", size=9)
    for number in range(2):
        (folder / "without_images" / "b" / f"{number}.png").unlink()
    (folder / "text_first" / "a" / "0.png").write_text("text")
    (folder / "text_last" / "b" / "1.png").write_text("text")
    (folder / "truncated" / "b" / "1.png").unlink()
    encoded = io.BytesIO()
    Image.effect_noise((8, 8), 90).convert("RGB").save(encoded, "jpeg")
    (folder / "truncated" / "b" / "1.jpg").write_bytes(encoded.getvalue()[:-40])

    index = np.arange(20)
    scores = pd.DataFrame({"index": index, "curvature": index / 20})
    outcomes = pd.DataFrame({"index": index, "correct": True})
    failing = outcomes.assign(correct=index % 2 == 0)
    for name, table in {
        "scores": scores,
        "digital": outcomes,
        "analog": failing,
        "header": scores.head(0),
        "half": scores.assign(index=index + 0.5),
        "text": outcomes.assign(correct="yes"),
        "chips": failing.assign(chip=np.nan),
    }.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    scores.to_parquet(folder / "parquet.csv")
    scores.to_csv(folder / "csv.parquet", index=False)
    (folder / "zero_bytes.csv").touch()
    return folder


def names(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(
    "case", [*COMMANDS, *SETTINGS, *OWN_MODELS, *OWN_TABLES], ids=lambda case: case.line
)
def test_command_line_is_refused(
    case: Refused,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    assert commands.run(case.line.split()) == case.code
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error:")]
    for word in case.words:
        assert word in line
    assert not (place / "new.parquet").exists()
    assert not (place / "none").exists()


def test_table_has_no_case_twice() -> None:
    lines = [case.line for case in (*COMMANDS, *SETTINGS, *OWN_MODELS, *OWN_TABLES)]
    assert len(lines) == len(set(lines))


# --- exit codes and pipes, as a user's shell has them


def test_exit_code_of_a_process(command: Command) -> None:
    refused = command("score", "digits", "--out", "nothing")
    assert refused.returncode == 2
    assert re.fullmatch("error: .*run train first.*\n", refused.stderr)


def test_a_reader_that_goes_is_no_error(place: Path) -> None:
    line = [sys.executable, "-m", "experiments", "run", "digits", "--help"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=place, text=True, **pipes) as process:
        process.stdout.close()  # before anything is written, as `| head -0` does
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_an_error_that_nobody_expected_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_: object) -> None:
        raise KeyError("column")

    monkeypatch.setattr(user_model, "merge", breaks)
    assert commands.run(["merge", "out"]) == 1
    error = "error: unexpected KeyError: 'column' (--debug shows where)\n"
    assert capsys.readouterr().err == error
    assert commands.run(["merge", "out", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


# --- the library


@dataclass(frozen=True)
class Bad:
    """A call of the library and the words of its ValueError."""

    name: str
    call: Callable[[], Any]
    words: str


RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 4, 4, 1)).astype(np.float32)
LABELS, INDICES = np.array([0, 1, 2, 0]), np.arange(4)
WEIGHTS = RNG.normal(size=(16, 3)).astype(np.float32)


def logits(weights: Any, images: Any) -> Any:
    return images.reshape(len(images), -1) @ weights


def curvature(
    model: Any = logits,
    images: Any = IMAGES,
    labels: Any = LABELS,
    indices: Any = INDICES,
    key: Any = None,
    params: Any = WEIGHTS,
    **others: Any,
) -> Any:
    key = jax.random.key(0) if key is None else key
    return jaxcurv.input_curvature(
        model, images, labels, indices=indices, key=key, params=params, **others
    )


SAMPLES = [
    {"image": image, "label": int(label), "index": index}
    for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True))
]


def scored(source: Any = SAMPLES, params: Any = WEIGHTS, **others: Any) -> Any:
    return jaxcurv.score_dataset(logits, source, params=params, key=jax.random.key(0), **others)


def first(**changed: Any) -> list[dict[str, Any]]:
    return [SAMPLES[0] | changed, *SAMPLES[1:]]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval()


def programmed(profile: Any = "adc", calibration: Any = IMAGES, **others: Any) -> Any:
    if isinstance(profile, str):
        profile = bridge.PROFILES[profile]
    if not (profile and getattr(profile, "adc", None)):
        calibration = None
    given = {"seed": 0, "calibration": calibration} | others
    return bridge.program(network(), profile, **given)


def router(**changed: Any) -> bridge.Router:
    given = {"threshold": 0.5, "score": dict.fromkeys(range(4), 0.1)} | changed
    return bridge.Router(network(), programmed("ideal"), **given)


SCORE = np.linspace(0, 1, 6)
DIGITAL = np.array([True, True, True, True, True, False])
ANALOG = np.array([True, False, True, False, True, False])
ONES = np.ones(3)


def table(score: Any = SCORE, digital: Any = DIGITAL, analog: Any = ANALOG, **others: Any) -> Any:
    return bridge.failure_table(score, digital, analog, **({"bins": 2} | others))


def compared(scores: Any, **others: Any) -> Any:
    return bridge.compare_predictors(scores, DIGITAL, ANALOG, **({"bins": 2} | others))


def curve(score: Any = SCORE, digital: Any = DIGITAL, **others: Any) -> Any:
    return bridge.routing.routing_curve(score, digital, ANALOG, **others)


CURVATURES = [
    Bad("uint8", lambda: curvature(images=IMAGES.astype(np.uint8)), "float32 or float64, normali"),
    Bad("no images", lambda: curvature(images=IMAGES[:0]), "batch >= 1"),
    Bad("NaN", lambda: curvature(images=IMAGES * np.nan), "4 of 4 images hold NaN.*check the data"),
    Bad("huge", lambda: curvature(images=IMAGES * 1e30), "step 0.001 is too small.*take at least"),
    Bad("fewer labels", lambda: curvature(labels=LABELS[:3]), "one label and one index each"),
    Bad("float labels", lambda: curvature(labels=LABELS / 1), "labels must be integers"),
    Bad("label above", lambda: curvature(labels=LABELS + 1), r"labels must lie in \[0, 3\).*1..3"),
    Bad("index twice", lambda: curvature(indices=0 * INDICES), "two samples share index 0"),
    Bad("index below", lambda: curvature(indices=INDICES - 1), r"indices must lie in \[0, 2\*\*32"),
    Bad("index above", lambda: curvature(indices=INDICES + 2**32), r"indices must lie in \[0"),
    Bad("weights of another", lambda: curvature(params=WEIGHTS[:9]), "the model fails on float32"),
    Bad("NaN weights", lambda: curvature(params=WEIGHTS * np.nan), "not finite; check its weights"),
    Bad("torch", lambda: curvature(model=network(), params=None), "torch module.*from_torch"),
    Bad("no variables", lambda: curvature(model=linen.Dense(3).apply, params=None), "as params"),
    Bad("sum", lambda: curvature(lambda w, x: logits(w, x).sum()), r"\[batch, classes\].*got \(\)"),
    Bad("one class", lambda: curvature(lambda w, x: logits(w, x)[:, :1]), "at least two classes"),
    Bad("a pair", lambda: curvature(lambda w, x: (logits(w, x), x)), "logits alone; got a tuple"),
    Bad("whole logits", lambda: curvature(lambda w, x: logits(w, x).astype(int)), "in float32"),
    Bad("mean loss", lambda: curvature(loss=lambda z, y: z.mean()), "not reduced"),
    Bad("NaN loss", lambda: curvature(loss=lambda z, y: z[:, 0] * jnp.nan), "loss.*not finite"),
    Bad("rank 0", lambda: LowRankGaussNewton(rank=0), "rank must be at least 1; got 0"),
    Bad("published 0", lambda: Published(0), "batch_size must be at least 1; got 0"),
    Bad("one a round", lambda: Adaptive(FiniteDifference(probes=1)), "rounds of at least 5 probes"),
]

DATA_SETS = [
    Bad("no samples", lambda: scored([]), "nothing to score: the source has no samples"),
    Bad("triples", lambda: scored([(IMAGES[0], 0, 0)]), "must be pairs .*tuple of length 3"),
    Bad(
        "no label",
        lambda: scored([{"image": IMAGES[0], "index": 0}]),
        "no 'label', but 'image', 'i",
    ),
    Bad("shapes", lambda: scored(first(image=IMAGES[0, :3])), "images must have one shape"),
    Bad("label 3", lambda: scored(first(label=3)), r"labels must lie in \[0, 3\).*0..3"),
    Bad("batch 0", lambda: scored(batch_size=0), "batch_size must be auto or at least 1; got 0"),
    Bad("shard 1 of 1", lambda: scored(shard=(1, 1)), r"shard must be \(i, n\) with 0 <= i < n"),
    Bad("shard, no file", lambda: scored(shard=(0, 2)), "one file that all.*give out"),
    Bad("taken", lambda: scored(estimators={"loss": GaussNewton()}), "cannot be named loss"),
    Bad("no name", lambda: scored(estimators={"": GaussNewton()}), "a text; got ''"),
    Bad("no weights", lambda: scored(params=None, checkpoints=[]), "must be at least one"),
    Bad(
        "weights of two",
        lambda: scored(params=None, checkpoints=[WEIGHTS, WEIGHTS[:9]]),
        "checkpoints must hold arrays of the same names and shapes",
    ),
    Bad("folder", lambda: scored(out="/"), "/ is a folder: give the name of a file"),
]

WRONG_TYPES = [
    Bad("integer key", lambda: curvature(key=0), r"key must be one jax.random.key\(seed"),
    Bad("old key", lambda: curvature(key=jax.random.PRNGKey(0)), "key must be one jax.random.key"),
    Bad(
        "no model",
        lambda: curvature(model=None),
        "got a NoneType, which is no function: give a function",
    ),
    Bad("no estimator", lambda: curvature(estimator=None), r"such as FiniteDifference\(\)"),
    Bad("no loss", lambda: curvature(loss=None), "the loss fails on logits.*must be JAX code"),
    Bad("step text", lambda: FiniteDifference("1"), "step must be a positive number; got '1'"),
    Bad("half a probe", lambda: FiniteDifference(probes=2.5), "whole number; got 2.5"),
    Bad("distribution", lambda: FiniteDifference(distribution="uniform"), "one of rademacher, gau"),
    Bad("precision", lambda: HessianVector(precision="float16"), "one of highest, tensorfloat32"),
    Bad("no probes", lambda: Adaptive(GaussNewton()), "Published adapt; got Gauss"),
    Bad("batch text", lambda: scored(batch_size="big"), "batch_size must be auto or at least 1"),
    Bad("shard of one", lambda: scored(shard=(0,)), r"shard must be \(i, n\).*got \(0,\)"),
    Bad("a list", lambda: scored(estimators=[FiniteDifference()]), "give estimators by name"),
]
CHIPS = [
    Bad("profile", lambda: bridge.Profile(adc=9), "a profile's adc must be a ADC, got 9"),
    Bad("memory", lambda: bridge.Profile(memory="pcm"), "memory must be a PCM or Hermes"),
    Bad("bits", lambda: bridge.chips.ADC(bits=8.0), "an integer from 2 to 23, got 8.0"),
    Bad("kind", lambda: bridge.chips.WeightNoise(kind="white"), "constant or pcm_read"),
    Bad("mapping", lambda: bridge.chips.PCM(mapping="pair"), "SinglePair, Pairs or MappedPairs"),
    Bad("no profile", lambda: programmed(None), "give a profile or an RPUConfig"),
    Bad("a name", lambda: bridge.program(network(), "pcm", seed=0), r'PROFILES\["adc\+pcm"\]'),
    Bad("train", lambda: bridge.program(network().train(), None, seed=0), r"call eval\(\)"),
    Bad("function", lambda: bridge.program(logits, None, seed=0), "of a torch module; got func"),
    Bad("seed", lambda: programmed(seed=1.5), "the seed must be an integer >= 0, got 1.5"),
    Bad("engine", lambda: programmed("ideal", engine="gpu"), "fast or aihwkit, got 'gpu'"),
    Bad("layers", lambda: programmed("ideal", digital_layers="0"), r"give \['0'\]"),
    Bad("uncalibrated", lambda: programmed(calibration=None), "pass calibration="),
    Bad("none to calibrate", lambda: programmed(calibration=IMAGES[:0]), "must be float32 images"),
    Bad("NaN calibration", lambda: programmed(calibration=IMAGES * np.nan), "finite and active"),
    Bad("black", lambda: programmed(calibration=0 * IMAGES), "every layer is finite and active"),
    Bad("list", lambda: programmed(calibration=[1.0]), "must be float32 images.*got list"),
    Bad(
        "layout",
        lambda: programmed(calibration=IMAGES.transpose(0, 3, 1, 2)),
        r"fails on images of 4 channels, 1 by 4 pixels.*\[batch, height, width, channel\]",
    ),
    Bad("age", lambda: programmed("pcm").at(t_inference=np.nan), "finite and >= 0, got nan"),
    Bad("nothing", lambda: bridge.predict(network(), []), "the source has no samples"),
    Bad("no module", lambda: bridge.predict(None, SAMPLES), "a chip or a torch module; got None"),
    Bad("no device", lambda: bridge.predict(network(), SAMPLES, device="tpu0x"), "device='cpu'"),
    Bad("batch", lambda: bridge.predict(network(), SAMPLES, batch_size=1.5), "whole number; got 1"),
    Bad(
        "half", lambda: bridge.predict(network(), first(label=0.5)), "label must be a whole number"
    ),
    Bad(
        "scale", lambda: bridge.predict(programmed(), first(image=IMAGES[0] * 255)), "normalise bot"
    ),
    Bad("threshold", lambda: router(threshold=np.nan), "inf to route nothing; got nan"),
    Bad("score", lambda: router(score="loss"), "score is one of margin, entropy"),
    Bad("wide", lambda: router()(IMAGES.astype(float), range(4)), "float32 .*got an array float64"),
    Bad("unstored", lambda: router()(torch.ones(1, 1, 4, 4), [9]), "first at index 9: store one"),
    Bad("sizes", lambda: router()(torch.ones(1, 1, 9, 9), [0]), "1 channels, 9 by 9 pixels"),
    Bad(
        "one chip",
        lambda: bridge.weight_moments(network(), bridge.PROFILES["pcm"], chips=1),
        ">= 2",
    ),
]

ANALYSES = [
    Bad("NaN score", lambda: table(SCORE * np.nan), "score has 6 NaN of 6; score these samples"),
    Bad("shorter", lambda: table(SCORE[:5]), "lengths differ: score 5, correct 6"),
    Bad("whole outcomes", lambda: table(digital=DIGITAL * 1), "must be a vector of bools"),
    Bad("no chip", lambda: table(analog=ANALOG[None][:0]), r"bools \[samples\], or \[chips"),
    Bad("no samples", lambda: table([], DIGITAL[:0], ANALOG[:0]), "such as prediction == label"),
    Bad("too many bins", lambda: table(bins=7), "6 samples cannot fill 7 bins; score more"),
    Bad("confidence", lambda: table(confidence=95), "confidence must lie between 0 and 1; got 95"),
    Bad("indices", lambda: table(indices=np.zeros(6, int)), "indices must be unique"),
    Bad("no scores", lambda: compared({}), r"give at least one, by name"),
    Bad("text", lambda: compared({"a": list("abcdef")}), "must be a vector of real numbers"),
    Bad(
        "reference",
        lambda: compared({"a": SCORE}, reference="b"),
        "no reference 'b' here; there is",
    ),
    Bad("among", lambda: compared({"a": SCORE}, among="few"), "among is one of correct, all"),
    Bad("two labels", lambda: compared({"a": SCORE}, labels=[0, 1]), "lengths differ: labels 2"),
    Bad("NaN to route", lambda: curve(SCORE * np.nan), "6 NaN of 6; score these samples again"),
    Bad("one point", lambda: curve(points=1), "points must be at least 2; got 1"),
    Bad(
        "cost kind",
        lambda: curve(kind="free"),
        "kind is analog, known, digital or student, got 'free'",
    ),
    Bad("passes", lambda: curve(kind="digital", passes=0.5), "passes must be at least 1"),
    Bad(
        "costs", lambda: bridge.routing.Costs(digital=0), "digital inference must be finite and > 0"
    ),
    Bad("NaN threshold", lambda: routed_at(np.nan, SCORE, DIGITAL, ANALOG), "inf to route nothing"),
    Bad("target", lambda: choose_threshold(SCORE, DIGITAL, ANALOG, 2), "lower the target"),
    Bad("trend", lambda: trend_test(SCORE, DIGITAL), "decile must be a vector of integers"),
    Bad(
        "margin",
        lambda: gaussian_flip_probability(-ONES, ONES, ONES),
        "margin must not be negative",
    ),
    Bad("shift", lambda: gaussian_flip_probability(ONES, ONES * np.inf, ONES), "3 infinite values"),
    Bad(
        "variance", lambda: gaussian_flip_probability(ONES, ONES, -ONES), "variance must not be neg"
    ),
    Bad("one logit", lambda: bridge.analysis.logit_scores(np.ones((3, 1))), "at least two classes"),
    Bad(
        "NaN logits",
        lambda: bridge.analysis.logit_scores(np.full((3, 2), np.nan)),
        "logits are not finite",
    ),
]


@pytest.mark.parametrize(
    "case", [*CURVATURES, *DATA_SETS, *WRONG_TYPES, *CHIPS, *ANALYSES], ids=lambda case: case.name
)
def test_library_refuses(case: Bad) -> None:
    with pytest.raises(ValueError, match=re.compile(case.words, re.DOTALL)):
        case.call()


# --- properties: whatever the arrays, a finite result or a ValueError that says something


DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, "U1"])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))
SPECIAL = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e308, -1e308, 5e-324, np.nan, np.inf, -np.inf])
VECTORS = st.one_of(
    hnp.arrays(np.float64, st.integers(0, 12), elements=SPECIAL),
    hnp.arrays(np.float64, 8, elements=st.floats(-1e6, 1e6)),
    ARRAYS,
)
OUTCOMES = st.one_of(hnp.arrays(np.bool_, 8), hnp.arrays(np.bool_, (2, 8)), ARRAYS)


def outcome(call: Callable[[], Any]) -> Any:
    """The call's result; None where it is refused as documented."""
    try:
        return call()
    except ValueError as error:
        said = str(error)
    assert len(said) > 15
    return None


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
@CHEAP
@given(images=ARRAYS, labels=ARRAYS, indices=ARRAYS)
def test_arrays_of_any_kind_are_scored_or_refused(
    images: np.ndarray, labels: np.ndarray, indices: np.ndarray
) -> None:
    """No two of the three fit by chance: they are refused before anything compiles."""
    result = outcome(lambda: curvature(images=images, labels=labels, indices=indices))
    assert result is None or np.isfinite(result.score).all()


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
@CHEAP
@given(
    images=hnp.arrays(np.float32, IMAGES.shape, elements=st.floats(width=32)),
    labels=hnp.arrays(np.int64, 4, elements=st.integers(-1, 4)),
    indices=hnp.arrays(np.int64, 4, elements=st.integers(-1, 2**32)),
)
def test_values_of_any_size_are_scored_or_refused(
    images: np.ndarray, labels: np.ndarray, indices: np.ndarray
) -> None:
    """One shape and one step, so that all examples share one program."""
    result = outcome(lambda: curvature(images=images, labels=labels, indices=indices))
    if result is not None:
        assert np.isfinite(result.score).all()
        assert np.isfinite(result.loss).all()


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
@CHEAP
@given(
    samples=st.lists(
        st.fixed_dictionaries(
            {"image": ARRAYS, "label": st.one_of(st.integers(-1, 9), st.none(), st.text())},
            optional={"index": st.one_of(st.integers(-1, 2**33), st.floats(), st.none())},
        ),
        max_size=3,
    )
)
def test_sources_of_any_kind_are_scored_or_refused(samples: list[dict[str, Any]]) -> None:
    scores = outcome(lambda: scored(samples))
    assert scores is None or np.isfinite(scores["curvature"].to_numpy()).all()


@CHEAP
@given(score=VECTORS, digital=OUTCOMES, analog=OUTCOMES, bins=st.integers(-1, 9))
def test_failure_tables_are_fractions(
    score: np.ndarray, digital: np.ndarray, analog: np.ndarray, bins: int
) -> None:
    """NaN only where a bin has no digitally correct sample, as documented."""
    rates = outcome(lambda: table(score, digital, analog, bins=bins))
    if rates is None:
        return
    assert rates["samples"].sum() == len(score)
    assert rates["rate_of_all"].between(0, 1).all()
    assert (rates["rate_of_correct"].isna() == (rates["digitally_correct"] == 0)).all()
    assert (rates["rate_of_all_low"] <= rates["rate_of_all_high"]).all()


@CHEAP
@given(score=VECTORS, digital=OUTCOMES, analog=OUTCOMES, points=st.integers(0, 5))
def test_routing_curves_are_fractions(
    score: np.ndarray, digital: np.ndarray, analog: np.ndarray, points: int
) -> None:
    """The threshold alone may be NaN: where chips have scores of their own."""
    made = outcome(lambda: bridge.routing.routing_curve(score, digital, analog, points=points))
    if made is None:
        return
    shares = made.drop(columns=["threshold", "energy"])
    assert ((shares >= 0) & (shares <= 1)).all(axis=None)
    assert np.isfinite(made["energy"]).all()
    assert made["threshold"].notna().all() or score.ndim == 2


@CHEAP
@given(margin=VECTORS, shift=VECTORS, variance=VECTORS)
def test_flip_probabilities_are_probabilities(
    margin: np.ndarray, shift: np.ndarray, variance: np.ndarray
) -> None:
    found = outcome(lambda: gaussian_flip_probability(margin, shift, variance))
    assert found is None or ((found >= 0) & (found <= 1)).all()


@CHEAP
@given(
    margin=hnp.arrays(np.float64, 5, elements=st.floats(0, allow_infinity=False)),
    shift=hnp.arrays(np.float64, 5, elements=st.floats(allow_nan=False, allow_infinity=False)),
    variance=hnp.arrays(np.float64, 5, elements=st.floats(0, allow_infinity=False)),
)
def test_flip_probabilities_of_any_size_are_probabilities(
    margin: np.ndarray, shift: np.ndarray, variance: np.ndarray
) -> None:
    found = gaussian_flip_probability(margin, shift, variance)
    assert ((found >= 0) & (found <= 1)).all()


def test_flip_probability_does_not_overflow() -> None:
    huge = np.array([1e308, 5e-324])
    np.testing.assert_array_equal(gaussian_flip_probability(huge, huge, huge)[0], 0)
    np.testing.assert_array_equal(gaussian_flip_probability(huge, -huge, huge), [0.5, 0.5])


@CHEAP
@given(
    values=st.one_of(
        ARRAYS, hnp.arrays(np.float64, (3, 4), elements=SPECIAL), hnp.arrays(np.int8, (2, 3))
    )
)
def test_logit_scores_are_finite(values: np.ndarray) -> None:
    found = outcome(lambda: bridge.analysis.logit_scores(values))
    if found is None:
        return
    for name in ("entropy", "least_confidence"):
        assert np.isfinite(found[name]).all()
    assert (found["margin"] >= 0).all()  # inf where it is above float32's largest


@CHEAP
@given(
    classes=st.dictionaries(
        st.text("abc.é ", min_size=1, max_size=4).filter(lambda name: name.strip(". ")),
        st.integers(0, 2),
        max_size=3,
    )
)
def test_folder_labels_are_the_places_of_sorted_names(
    classes: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("folder")
    for name, images in classes.items():
        (root / name).mkdir()
        for number in range(images):
            Image.new("RGB", (2, 2)).save(root / name / f"{number}.png")
    shown = sorted(name for name in classes if name[0] != ".")
    try:
        source = open_folder(root)
    except (FileNotFoundError, ValueError) as error:
        source, said = None, str(error)
    if source is None:
        assert str(root) in said
        assert len(shown) < 2 or not all(classes[name] for name in shown)
        return
    assert source.class_names == tuple(shown)
    labels = [source[position]["label"] for position in range(len(source))]
    assert labels == [place for place, name in enumerate(shown) for _ in range(classes[name])]
