"""`.ci/constraints` holds, for each Python that has a file, one release of everything installed."""

import csv
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FILES = {
    path.stem.removeprefix("python"): path
    for path in sorted((ROOT / ".ci" / "constraints").glob("*.txt"))
}


def releases(python: str) -> dict[str, Version]:
    """The file for `python`; fails at anything but `name==release`, or at a name given twice."""
    found: dict[str, Version] = {}
    for line in FILES[python].read_text().splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)", line)
        assert match, f"{FILES[python]} holds {line!r}, which another machine may not have"
        assert match[1] not in found, f"{FILES[python]} names {match[1]} twice"
        found[match[1]] = Version(match[2])
    return found


def requirements(extra: str, environment: dict[str, str]) -> Iterator[Requirement]:
    """What `pip install ".[extra]"` asks for where `environment` holds; extras of extras too."""
    project = PYPROJECT["project"]
    for text in project["dependencies"] + project["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if requirement.name == project["name"]:
            for other in requirement.extras:
                yield from requirements(other, environment)
        else:
            yield requirement


def installed(name: str, extras: frozenset[str], seen: set[tuple[str, str]]) -> set[str]:
    """Every package that `name[extras]` draws in here, as the installed metadata say."""
    names = set()
    for text in metadata.requires(name) or []:
        requirement = Requirement(text)
        for extra in extras | {""}:
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            if (text, extra) in seen:
                continue
            seen.add((text, extra))
            names.add(canonicalize_name(requirement.name))
            names |= installed(requirement.name, frozenset(requirement.extras), seen)
    return names


def test_both_pythons_that_the_tests_are_run_on_have_a_file():
    assert {"3.11", "3.12"} <= FILES.keys()


@pytest.mark.parametrize("extra", ["dev", "docs"])
@pytest.mark.parametrize("python", FILES)
def test_every_requirement_has_a_release_that_satisfies_it(python: str, extra: str):
    held = releases(python)
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "extra": "",
    }
    asked = list(requirements(extra, environment))
    own = {"dev": "pytest", "docs": "mkdocs-material"}[extra]
    assert {"jax", "torch", "aihwkit", own} <= {requirement.name for requirement in asked}
    for requirement in asked:
        assert requirement.name in held, f"{requirement.name} is missing: run `make constraints`"
        assert requirement.specifier.contains(held[requirement.name]), (
            f"{requirement} does not allow {held[requirement.name]}: run `make constraints`"
        )


def test_everything_that_is_drawn_in_here_has_a_release():
    python = "{}.{}".format(*sys.version_info)
    if python not in FILES:
        pytest.skip(f"Python {python} has no constraints")
    drawn_in = installed("jaxcurv", frozenset({"dev"}), set()) - {"jaxcurv"}
    assert {"numpy", "jaxlib", "torchvision", "pluggy"} <= drawn_in
    assert drawn_in <= releases(python).keys()


def test_every_release_has_a_licence_in_the_table():
    table = (ROOT / ".ci" / "licences.csv").read_text().splitlines()
    listed = {canonicalize_name(row["Name"]) for row in csv.DictReader(table)}
    exempt = set(PYPROJECT["tool"]["pip-licenses"]["ignore-packages"]) - {"jaxcurv"}
    for python in FILES:
        missing = releases(python).keys() - listed - exempt
        assert not missing, f"{missing}: run `make licences` where torch is the CUDA build"
