"""What a command does before JAX starts: it keeps compiled programs, a device for each core."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.system import compiled_programs
from experiments.system.compiled_programs import (
    cache_folder,
    keep_compiled_programs,
    remove_oldest,
)
from experiments.system.devices import cores
from experiments.system.environment import environment
from tests.conftest import ROOT

MODULE = """
import atexit, collections, json, jax, numpy as np

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.rsplit("/")[-1]]))

@atexit.register
def tell():
    with open("events.json", "w") as file:
        json.dump({"devices": len(jax.devices()), **events}, file)

weights = np.random.default_rng(1).normal(size=(192, 3)).astype(np.float32)

def factory():
    return lambda images: jax.numpy.tanh(images.reshape(len(images), -1) @ weights)
"""

OURS = ("JAX_", "XLA_", "XDG_", "PYTHONWARNINGS")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a model and images."""
    (tmp_path / "mine.py").write_text(MODULE)
    for number in range(6):
        file = tmp_path / "images" / str(number % 3) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return tmp_path


def score(folder: Path, *flags: str, **changed: str) -> dict[str, int]:
    """Scores in a process of its own; what JAX reported, and how many devices it had."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    (folder / "scores.parquet").unlink(missing_ok=True)
    line = [sys.executable, "-m", "experiments", "score", "--model", "mine:factory", *flags]
    result = subprocess.run(
        [*line, "--data", "images", "--probes", "1"],
        cwd=folder,
        env=given | {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)} | changed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "arning" not in result.stderr
    return json.loads((folder / "events.json").read_text())


def test_a_second_command_compiles_nothing_and_uses_every_core(own: Path) -> None:
    first, second = score(own), score(own)
    assert first["cache_misses"] > 0
    assert second["cache_hits"] > 0
    assert second.get("cache_misses", 0) == 0
    assert first["devices"] == second["devices"] == min(cores(), 16)


def test_without_the_cache_and_with_the_user_s_number_of_devices(own: Path) -> None:
    plain = score(own, compiled_programs.FLAG, JAX_NUM_CPU_DEVICES="3")
    assert plain["devices"] == 3
    assert "compile_requests_use_cache" not in plain
    assert not [path for path in (own / "cache").rglob("*") if path.is_file()]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An environment without settings of JAX and Python, and its cache folder."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = dict(os.environ)
    with warnings.catch_warnings():
        yield tmp_path
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


def test_children_inherit_the_cache(bare: Path) -> None:
    keep_compiled_programs()
    folder = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert folder == cache_folder()
    assert folder.is_relative_to(bare / "jaxcurv" / "xla")
    assert folder.stat().st_mode & 0o077 == 0  # what is read from it is run
    assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"
    assert not [name for name in environment() if "CACHE" in name]  # none changes a result


@pytest.mark.parametrize(
    "name", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"], ids=str
)
def test_the_user_s_own_setting_stays(
    bare: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "mine")
    before = dict(os.environ)
    keep_compiled_programs()
    assert dict(os.environ) == before


def test_a_folder_that_cannot_be_made_means_no_cache(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(bare / "file"))
    before = dict(os.environ)
    keep_compiled_programs()
    assert dict(os.environ) == before


@pytest.mark.parametrize("theirs", ["theirs to write", "theirs", "ours alone"])
def test_programs_that_others_could_have_written_are_not_run(
    bare: Path, monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    folder = cache_folder()
    folder.mkdir(parents=True)
    folder.chmod(0o770 if theirs == "theirs to write" else 0o755)
    if theirs == "theirs":
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
    before = dict(os.environ)
    keep_compiled_programs()
    assert (dict(os.environ) == before) == (theirs != "ours alone")


def test_the_oldest_programs_make_room(tmp_path: Path) -> None:
    for age in range(4):
        path = tmp_path / f"{age}-cache"
        path.write_bytes(bytes(10))
        os.utime(path, (1e9 - age, 1e9 - age))
    remove_oldest(tmp_path, 40)
    assert len(list(tmp_path.iterdir())) == 4
    remove_oldest(tmp_path, 39)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-cache"]
