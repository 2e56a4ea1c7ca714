"""What each install holds: only packages that it asks for are importable, and all else is said."""

import functools
import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from bridge.analysis.predictors import cross_validated_logistic
from jaxcurv import data
from jaxcurv.extras import not_installed
from tests.jaxcurv.data.test_data import write_prepared
from tests.test_constraints import PYPROJECT, installed

ROOT = Path(__file__).parents[2]


def drawn_in(*extras: str) -> set[str]:
    """Every package that `pip install ".[extras]"` draws in here."""
    project = PYPROJECT["project"]
    texts = project["dependencies"]
    for extra in extras:
        texts = texts + project["optional-dependencies"][extra]
    names = set()
    for requirement in map(Requirement, texts):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        if requirement.name == project["name"]:
            names |= drawn_in(*requirement.extras)
        else:
            names.add(canonicalize_name(requirement.name))
            names |= installed(requirement.name, frozenset(requirement.extras), set())
    return names


@functools.cache
def packages_of_modules() -> dict[str, set[str]]:
    """The packages that bring each top-level module."""
    return {
        module: {canonicalize_name(name) for name in names}
        for module, names in metadata.packages_distributions().items()
    }


def run_with(extras: tuple[str, ...], script: str, folder: Path) -> list[str]:
    """The lines that `script` prints where only jaxcurv[extras] is installed."""
    there = drawn_in(*extras) | {"jaxcurv"}
    absent = {name for name, owners in packages_of_modules().items() if not owners & there}
    hide = f"""
import sys
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *arguments):
        hidden = name.partition(".")[0] in {absent}
        return None if hidden else self.finder.find_spec(name, *arguments)
sys.meta_path[:] = map(Hiding, sys.meta_path)
sys.path.insert(0, {str(ROOT)!r})
"""
    result = subprocess.run(
        [sys.executable, "-c", hide + script],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


SCRIPTS = {
    (): """
import numpy as np, jax, jaxcurv, bridge
from jaxcurv import fit, restore_best  # flax draws in what the extra `train` names
from jaxcurv.models import ResNet18
images = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)
source = [{"image": image, "label": 1, "index": i} for i, image in enumerate(images)]
jaxcurv.score_dataset(
    lambda params, images: images.reshape(len(images), -1) @ params,
    source, params=np.eye(64, 10, dtype=np.float32), key=jax.random.key(0), out="scores.parquet",
)
right = np.full(4, True)
print(len(bridge.failure_table(np.arange(4.0), right, ~right, bins=2)))
for name in ("program", "to_torch"):
    try:
        getattr(bridge, name)
    except ModuleNotFoundError as error:
        print(error)
""",
    ("data",): """
from jaxcurv import data
for name in ("digits", "tree", "prepared"):
    found = data.load(name, "sets")
    print(found.test[0]["image"].shape, len(found.train))
""",
    ("bridge",): """
import numpy as np, bridge, torch
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)
chip = bridge.program(network, bridge.PROFILES["pcm"], seed=0, calibration=images)
source = [{"image": image, "label": 1, "index": i} for i, image in enumerate(images)]
print(len(bridge.predict(chip, source)))
""",
}
"""What an install must do, by its extras; each prints what it has done."""

DONE = {
    (): [
        "2",
        'bridge.program needs torch, which is not installed: pip install "jaxcurv[bridge]"',
        'bridge.to_torch needs torch, which is not installed: pip install "jaxcurv[bridge]"',
    ],
    ("data",): ["(8, 8, 1) 1201", "(4, 6, 3) 4", "(6, 8, 3) 6"],
    ("bridge",): ["16"],
}


@pytest.mark.parametrize("extras", SCRIPTS, ids=lambda extras: "+".join(extras) or "base")
def test_an_install_does_its_work_with_what_it_asks_for(
    extras: tuple[str, ...], tmp_path: Path
) -> None:
    if extras == ("data",):
        write_tree(tmp_path / "sets/tree")
        write_prepared(tmp_path / "sets/prepared/1.0.0")
    assert run_with(extras, SCRIPTS[extras], tmp_path) == DONE[extras]


def test_folders_of_images_need_pillow_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorflow_datasets", "array_record", "importlib_resources", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    write_tree(tmp_path / "tree")
    assert data.load("tree", tmp_path).test[0]["image"].shape == (4, 6, 3)


def test_a_data_set_names_what_it_lacks_and_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path / "tree")
    write_prepared(tmp_path / "pets/1.0.0")
    for name in ("tensorflow_datasets", "array_record", "PIL", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    several = "needs tensorflow_datasets, array_record, PIL, which are not installed"
    install = re.escape(': pip install "jaxcurv[data]"')
    for name, message in {
        "digits": "digits needs sklearn, which is not installed",
        "tree": "reading .*0.png needs PIL, which is not installed",
        "pets": f"pets/1.0.0 {several}",
        "cifar10": f"cifar10/3.0.2 {several}",  # before it looks for an archive
    }.items():
        with pytest.raises(ModuleNotFoundError, match=message + install + "$"):
            data.load(name, tmp_path)


def test_training_names_what_it_lacks_and_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "jaxcurv.training.checkpoints"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for absent in ("orbax", "orbax.checkpoint"):
        monkeypatch.setitem(sys.modules, absent, None)
    install = re.escape('which is not installed: pip install "jaxcurv[train]"')
    with pytest.raises(ModuleNotFoundError, match=rf"jaxcurv\.training needs orbax.*, {install}$"):
        importlib.import_module(name)


def test_combined_scores_name_what_they_lack_and_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    right = np.full(4, True)
    install = re.escape('sklearn, which is not installed: pip install "jaxcurv[bridge]"')
    with pytest.raises(ModuleNotFoundError, match=f"cross_validated_logistic needs {install}$"):
        cross_validated_logistic({"score": np.arange(4.0)}, right, ~right)


def test_a_checkout_that_is_not_installed_is_not_looked_for_on_the_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("jaxcurv.extras.version", version)
    wanted = re.escape('torch, which is not installed: pip install ".[bridge]" in its checkout')
    with pytest.raises(ModuleNotFoundError, match=f"this needs {wanted}$"):
        raise not_installed("this", "bridge", ["torch"])


def write_tree(root: Path) -> None:
    """A tree of two classes, of two images each a split."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (6, 4)).save(root / split / name / f"{number}.png")


def test_chips_in_jax_draw_in_all_that_a_run_needs_but_pytorch() -> None:
    there = drawn_in("experiments-in-jax")
    assert not {"torch", "aihwkit"} & there
    assert {
        "safetensors",
        "scikit-learn",
        "matplotlib",
        "jinja2",
        "rich",
        "scipy",
        "optax",
    } <= there
    assert {"torch", "aihwkit"} | there <= drawn_in("experiments")
