"""The wheel and the source distribution: what they hold, and the wheel without a checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.long

BUILD = """
import sys
from setuptools import build_meta

print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""

USE = """
import sys
from importlib.metadata import version
from pathlib import Path

import bridge, experiments, jax, jaxcurv, numpy as np, pandas as pd
from flax import linen

for package in (bridge, experiments, jaxcurv):
    assert Path(package.__file__).is_relative_to(sys.argv[1]), package.__file__
images = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32)
model = linen.Sequential([lambda x: x.reshape(len(x), -1), linen.Dense(3)])
params = model.init(jax.random.key(0), images)
labels = np.asarray(model.apply(params, images)).argmax(1)
scores = jaxcurv.score_dataset(model.apply, (images, labels), params=params)
answers = pd.DataFrame({"index": range(8), "prediction": np.where(range(8), labels, labels - 1)})
bridge.study(scores, answers, bins=2).report("report.html")
assert "torch" not in sys.modules
print(version("jaxcurv"))
"""


def left_out(folder: str, names: list[str]) -> set[str]:
    """What a fresh checkout does not have."""
    made = {"runs", "build", "jaxcurv.egg-info"} if Path(folder) == ROOT else set()
    return {name for name in names if name in made or name.startswith((".", "__pycache__"))}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of a copy of the checkout, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT, folder / "checkout", ignore=left_out)
    assert (folder / "checkout/experiments/results/digits").is_dir()
    archive = build("build_sdist", folder / "checkout", folder)
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel of the source distribution, unpacked."""
    with zipfile.ZipFile(build("build_wheel", source, source.parent)) as opened:
        opened.extractall(source.parent / "wheel")
    return source.parent / "wheel"


def build(what: str, checkout: Path, folder: Path) -> Path:
    """The file that the build backend makes."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, what, folder],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return folder / result.stdout.split()[-1]


def run(wheel: Path, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What Python says in a folder elsewhere, with the wheel in front of everything installed."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def installed() -> set[str]:
    """What the packages hold: modules, stubs, marks of types, templates and scripts."""
    packages = [ROOT / name for name in ("jaxcurv", "bridge", "experiments")]
    return {
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in package.rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and not path.is_relative_to(ROOT / "experiments/results")
    }


def test_the_source_distribution_holds_no_results_and_no_tests(source: Path) -> None:
    held = files(source)
    assert {name.split("/")[0] for name in held} == {
        *("bridge", "experiments", "jaxcurv", "jaxcurv.egg-info"),
        *("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"),
        *("pyproject.toml", "setup.cfg"),
    }
    assert not any(name.startswith("experiments/results") for name in held)
    assert sum(path.stat().st_size for path in source.rglob("*")) < 10e6


def test_the_wheel_holds_every_module_and_what_they_read(wheel: Path) -> None:
    held = {name for name in files(wheel) if ".dist-info/" not in name}
    assert held == installed()
    assert {"jaxcurv/py.typed", "bridge/py.typed", "jaxcurv/__init__.pyi"} <= held
    templates = "bridge/report/page/templates"
    assert {
        f"{templates}/{name}"
        for name in ("page.html.jinja", "page.css", "page.js", "sections/deciles.html.jinja")
    } <= held


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    (metadata,) = wheel.glob("jaxcurv-*.dist-info/METADATA")
    head, _, description = metadata.read_text().partition("\n\n")
    assert description.strip() == (ROOT / "README.md").read_text().strip()
    for version in ("3.11", "3.12", "3.13"):
        assert f"Classifier: Programming Language :: Python :: {version}" in head
    assert "License-Expression: Apache-2.0" in head


def test_the_wheel_scores_and_reports_elsewhere(wheel: Path, tmp_path: Path) -> None:
    result = run(wheel, tmp_path, "-c", USE, wheel)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] in (ROOT / "pyproject.toml").read_text()
    assert "Which score predicts failure" in (tmp_path / "report.html").read_text()


def test_what_reads_archived_results_says_in_a_line_that_there_are_none(
    wheel: Path, tmp_path: Path
) -> None:
    result = run(wheel, tmp_path, "-m", "experiments", "table-one")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("error: no finished run under runs/")
    assert "Traceback" not in result.stderr
