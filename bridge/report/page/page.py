"""One self-contained HTML page of a run: the answer, the tables, the figures and what made them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bridge.report.page import tables
from bridge.report.page.columns import LAYOUTS
from bridge.report.page.contents import ReportContents
from bridge.report.page.glossary import energy, glossary
from bridge.report.page.pictures import File, base64_text, read_picture
from bridge.report.page.sections import Section, sections
from bridge.report.tables import formats
from bridge.report.tables.on_chip import analog_share
from bridge.report.tables.sentences import accuracy, answers, beside
from bridge.report.tables.verdict import decide
from jaxcurv.nested import flatten
from jaxcurv.storage.files import write_bytes

_TEMPLATES = Path(__file__).parent / "templates"
"""The page, its style and script, and in `sections` what stands under the heading of each one."""


def write_report(path: Path, contents: ReportContents) -> Path:
    """Writes the report of one run. The same contents give the same bytes; every text is escaped.

    Args:
        path: the HTML file.
        contents: what the page shows.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: for a missing figure.
        ValueError: if a table lacks the fold, the profile or a column.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=formats.number, rate=formats.rate, words=formats.words)
    of_tables = _tables(contents)
    folder = Path(path).parent if contents.of_run else None
    pictures = [read_picture(Path(figure), folder) for figure in contents.figures]
    shown = sections(contents, pictures)
    parts: dict[str, dict[str, Section]] = {}
    for name, section in shown.items():
        parts.setdefault(section.part, {})[name] = section
    settings = [(name, str(value)) for name, value in flatten(contents.settings)]
    versions = _versions(contents.stages)
    script = (_TEMPLATES / "page.js").read_text()
    # The only script that browsers run in the page: none that a name might bring in.
    script_hash = f"sha256-{base64_text(hashlib.sha256(script.encode()).digest())}"
    page = environment.get_template("page.html.jinja").render(
        **of_tables,
        run=contents,
        parts=parts,
        pictures=[
            picture
            if picture.section in (*shown, "verdict")
            else replace(picture, section="figures")
            for picture in pictures
        ],
        thumbnails=[base64_text(thumbnail) for thumbnail in contents.thumbnails],
        energy=energy(contents.settings, analog_share(contents.tables.coverage)),
        settings=settings,
        settings_file=_file("settings", settings, "setting", "value"),
        stages_file=_file(
            "stages",
            [(stage["name"], stage["seconds"], stage["device"]) for stage in contents.stages],
            *("stage", "seconds", "device"),
        ),
        versions=versions,
        versions_file=_file("versions", versions, "package", "version"),
        script=Markup(script),
        script_hash=Markup(script_hash),
    )
    write_bytes(Path(path), page.encode())
    return Path(path)


def _tables(contents: ReportContents) -> dict[str, Any]:
    """The tables of the run as the template takes them; None for those that are not there."""
    given, fold, profile = contents.tables, contents.fold, contents.profile
    seconds = contents.drift_seconds
    deciles = given.score_deciles if given.deciles is None else given.deciles
    assert deciles is not None
    last = int(deciles["decile"].max())
    one, predictors, routing = given.table_one, given.predictors, given.routing
    shown: dict[str, Any] = {
        "chips": 0,
        "last_decile": last,
        "words": glossary(
            contents.settings,
            last,
            chips=given.deciles is not None,
            remedies=bool(contents.remedies),
        ),
        "verdict": None,
        "accuracy_line": "",
        "beside": "",
        "trend": [],
        "predictor_tables": [],
        "auroc_grid": None,
        "decile_grids": [],
    }
    for name, layout in LAYOUTS.items():
        table = getattr(given, name)
        if table is not None:
            # No row may be left, where something is undefined: the page says so.
            for column in layout.one:
                table = table[table[column] == getattr(contents, column)]
            table = tables.made(name, table, layout.columns)
        shown[name] = table
    if given.deciles is not None:
        shown["chips"] = int(given.deciles["chips"].max())
        shown["decile_grids"] = [
            tables.decile_grid(given.deciles, fold, "all", seconds),
            tables.decile_grid(given.deciles, fold, "correct", seconds),
        ]
    if predictors is not None and given.deciles is not None:
        shown |= {
            "accuracy_line": "" if one is None else accuracy(one, fold, profile),
            "verdict": decide(predictors, given.per_class, fold=fold, profile=profile),
            "trend": answers(
                given.deciles, predictors, profile=profile, fold=fold, drift_seconds=seconds
            ),
            "predictor_tables": [
                tables.predictor_table(predictors, fold, profile, "correct", last),
                tables.predictor_table(predictors, fold, profile, "all", last),
            ],
            "auroc_grid": tables.auroc_grid(predictors, fold),
        }
    other = contents.beside
    if predictors is not None and given.deciles is not None and one is not None and other:
        shown["beside"] = beside(one, predictors, other=other, fold=fold, last=last)
        shown["trend"] += answers(
            given.deciles, predictors, profile=other.profile, fold=fold, drift_seconds=seconds
        )
    shown |= {
        "on_chip": None if given.coverage is None else tables.on_chip(given.coverage),
        "table_one": None if one is None else tables.table_one(one, profile, last, other),
        "accuracies": [] if one is None else one.to_dict("records"),
        "accuracies_file": None if one is None else tables.csv_file("accuracy_of_folds", one),
        "routing": None if routing is None else tables.routing_curves(routing, profile),
    }
    return shown


def _file(name: str, rows: Sequence[tuple[Any, ...]], *columns: str) -> File:
    return tables.csv_file(name, pd.DataFrame(list(rows), columns=[*columns]))


def _versions(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Package and version; where stages differ, each version with the stages that ran on it."""
    used: dict[str, dict[str, list[str]]] = {}
    for stage in stages:
        for package, version in stage["versions"].items():
            used.setdefault(package, {}).setdefault(str(version), []).append(stage["name"])
    return [
        (
            package,
            next(iter(by_version))
            if len(by_version) == 1
            else ", ".join(f"{version} ({', '.join(at)})" for version, at in by_version.items()),
        )
        for package, by_version in sorted(used.items())
    ]
