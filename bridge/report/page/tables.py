"""The tables of a report as a template takes them: headers, and rows of cells that are text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from bridge.report.page.columns import PREDICTED, PRODUCTS, TABLE_ONE, Column
from bridge.report.page.pictures import File, data_url
from bridge.report.tables.compensation import Beside
from bridge.report.tables.failure_rates import rates
from bridge.report.tables.formats import decimals, percent, small_percent, words
from bridge.report.tables.on_chip import analog_share
from bridge.report.tables.outcomes import DENOMINATORS, Denominator, select
from bridge.report.tables.sentences import caption

_SHARES = (0, 5, 10, 15, 20, 30, 40, 50, 75, 100)  # percent routed, of the table of curves


def made(
    name: str, table: pd.DataFrame, columns: Mapping[str, Column], **in_headers: object
) -> dict[str, Any]:
    """Headers, rows of cells, and the same as a file.

    A cell has a text, a note (interval or range) and the number to sort by. `x_low` and `x_high`
    stand under `x` as its interval; where there is none, `x_min` and `x_max`, if they differ, or
    `x_expected`. Reasons why something is undefined have a column only where there are any.

    Args:
        name: what an error and the file call the table.
        table: the rows to show.
        columns: how each column is shown, by name.
        in_headers: what the headers are filled in with.

    Raises:
        ValueError: if the table lacks a column that is not optional.
    """
    if missing := [one for one in columns if one not in table and not columns[one].optional]:
        raise ValueError(f"the report's {name} lacks the columns {', '.join(missing)}")
    there = {
        one: column
        for one, column in columns.items()
        if one in table and (one != "reason" or table[one].any())
    }
    numbers = {one: _is_number(table[one]) for one in there}
    rows = [
        [
            {
                "text": _text(row[one], column.show),
                "note": _note(row, one, column.show) if numbers[one] else "",
                "number": _sort_key(row[one]) if numbers[one] else None,
            }
            for one, column in there.items()
        ]
        for row in table.to_dict("records")
    ]
    headers = [
        {"text": column.header.format(**in_headers), "number": numbers[one]}
        for one, column in there.items()
    ]
    return {"headers": headers, "rows": rows, "name": name, "file": csv_file(name, table)}


def csv_file(name: str, table: pd.DataFrame) -> File:
    """A table as a CSV file in the page: its rows as they are shown, its columns as they are."""
    text = table.to_csv(index=False, lineterminator="\n")
    return File("CSV", data_url(text.encode(), "text/csv"), f"{name}.csv")


def _text(value: Any, show: Callable[[Any], str]) -> str:
    return "-" if pd.isna(value) else show(value)


def _sort_key(value: Any) -> str:
    """The value as JavaScript reads it; empty for a missing one."""
    return "" if pd.isna(value) else repr(float(value)).replace("inf", "Infinity")


def _note(row: Mapping[Any, Any], name: str, show: Callable[[Any], str]) -> str:
    if (low := row.get(f"{name}_low")) is not None:
        return "" if pd.isna(low) else f"[{show(low)}, {show(row[f'{name}_high'])}]"
    if (expected := row.get(f"{name}_expected")) is not None:
        return "" if pd.isna(expected) else f"{show(expected)} expected"
    least, most = row.get(f"{name}_min"), row.get(f"{name}_max")
    return "" if least is None or not least < most else f"{show(least)} to {show(most)}"


def _is_number(column: pd.Series) -> bool:
    return is_numeric_dtype(column) and not is_bool_dtype(column)


def table_one(
    table: pd.DataFrame, profile: str, last: int, beside: Beside | None = None
) -> dict[str, Any]:
    """First and last decile of each fold and denominator; `paper`: whether it has such a row.

    Args:
        table: as `failure_rates.table_one` returns it.
        profile: the profile to show.
        last: the last decile.
        beside: another profile, to show below it; None for none.
    """
    rows = []
    names = [profile, beside.profile] if beside else [profile]
    found = pd.concat([select(table, profile=name) for name in names])
    for row in found.to_dict("records"):
        for denominator, name in DENOMINATORS.items():
            trend = "trend" if denominator == "all" else f"{denominator}_trend"
            one = {"profile": row["profile"]} if beside else {}
            one |= {"fold": row["fold"], "of": name}
            for end in ("d1", "d10"):
                for suffix in ("", "_low", "_high"):
                    one[f"{end}{suffix}"] = row[f"{end}_of_{denominator}{suffix}"]
                one[f"paper_{end}"] = row[f"paper_{end}"]
                one[f"{end}_difference"] = one[end] - row[f"paper_{end}"]
            rows.append(one | {"trend_z": row[f"{trend}_z"], "trend_p": row[f"{trend}_p"]})
    shown = pd.DataFrame(rows)
    paper = bool(shown["paper_d1"].notna().any())
    if not paper:
        shown = shown.drop(columns=["paper_d1", "d1_difference", "paper_d10", "d10_difference"])
    return made("table_one", shown, TABLE_ONE, last=last) | {"paper": paper}


def decile_grid(
    deciles: pd.DataFrame, fold: str, denominator: Denominator, drift_seconds: float | None
) -> dict[str, Any]:
    """Failure rates of one fold: a row a decile and a column a profile."""
    shown = select(rates(deciles, denominator), fold=fold)
    profiles = list(shown["profile"].unique())
    grid = shown.pivot(index="decile", columns="profile", values="rate")[profiles]
    failures = shown.groupby("profile")["failures"].sum()
    return {
        "caption": caption(shown, fold, denominator, drift_seconds),
        "denominator": DENOMINATORS[denominator],
        "profiles": profiles,
        "rows": [(f"D{decile}", list(row)) for decile, row in grid.iterrows()],
        "failures": [f"{failures[name]:,}" for name in profiles],
        "highest": max(shown["rate"].max(), 1e-9),  # the length of the longest bar
        "file": csv_file(f"deciles_of_{denominator}", shown),
    }


def predictor_table(
    predictors: pd.DataFrame, fold: str, profile: str, denominator: Denominator, last: int
) -> dict[str, Any]:
    """The predictors, best first; `undefined` says why, where none has an AUROC."""
    rows = select(predictors, fold=fold, profile=profile, denominator=denominator)
    name = DENOMINATORS[denominator]
    first = rows.iloc[0]
    if rows["auroc"].isna().all():
        return {"denominator": name, "undefined": first["reason"]}
    rows = rows.sort_values("auroc", ascending=False, kind="stable", na_position="last")
    table = made("predictors", rows, PREDICTED, reference=first["reference"], last=last)
    count = f"{first['samples']:,}"
    counted = f"all {count} samples" if denominator == "all" else f"{count} {name}"
    chips = "1 chip" if first["chips"] == 1 else f"{first['chips']} chips together"
    return table | {
        "file": csv_file(f"predictors_of_{denominator}", rows),
        "denominator": name,
        "undefined": "",
        "caption": f"{profile}, {fold} fold, among {counted}: "
        f"{first['failures']:,} failures on {chips}. D1 and D{last}: failure rate where the score "
        "is lowest and highest, cut by each score among the samples that take part; Table I cuts "
        "by curvature among all samples.",
    }


def auroc_grid(predictors: pd.DataFrame, fold: str) -> dict[str, Any] | None:
    """AUROC of every predictor and profile; None where it is defined under no profile."""
    rows = select(predictors, fold=fold, denominator="correct")
    defined = rows[rows["auroc"].notna()]
    if defined.empty:
        return None
    profiles = [name for name in rows["profile"].unique() if (defined["profile"] == name).any()]
    grid = rows.pivot(index="predictor", columns="profile", values="auroc")
    grid = grid.loc[rows["predictor"].unique(), profiles]
    best = grid.max()
    return {
        "profiles": profiles,
        "left_out": [name for name in rows["profile"].unique() if name not in profiles],
        "rows": [
            (
                words(str(name)),
                [(_text(row[one], decimals), bool(row[one] == best[one])) for one in profiles],
            )
            for name, row in grid.iterrows()
        ],
        "file": csv_file("auroc", grid.reset_index()),
    }


def on_chip(coverage: pd.DataFrame) -> dict[str, Any]:
    """What tiles compute of the network, in sentences and tables: all products, the digital ones.

    Args:
      coverage: as `bridge.coverage` returns it.
    """
    table = coverage.assign(share=coverage["macs"] / coverage["macs"].sum())
    digital = table[table["place"] == "digital"]
    by_reason = digital.groupby("reason", sort=False)["share"].agg(["size", "sum"])
    return {
        "share": small_percent(analog_share(coverage)),
        "products": len(table),
        "tiles": int(table["tiles"].sum()),
        "reasons": [
            (reason, int(row["size"]), small_percent(row["sum"]))
            for reason, row in by_reason.sort_values("sum", ascending=False).iterrows()
        ],
        "digital": made("coverage", digital.drop(columns="tiles"), _without(PRODUCTS, "tiles")),
        "all": made("coverage", table, PRODUCTS),
    }


def _without(columns: Mapping[str, Column], name: str) -> dict[str, Column]:
    return {one: column for one, column in columns.items() if one != name}


def routing_curves(routing: pd.DataFrame, profile: str) -> dict[str, Any]:
    """Accuracy of each router at a few shares, from the nearest point of its curve."""
    rows = {}
    curves = select(routing, profile=profile).groupby("router", sort=False)
    for number, (router, curve) in enumerate(curves):
        nearest = [(curve["fraction"] - share / 100).abs().idxmin() for share in _SHARES]
        if number == 0:
            for name in ("oracle", "random"):
                rows[name] = curve.loc[nearest, f"{name}_accuracy"].to_list()
        rows[str(router)] = curve.loc[nearest, "accuracy"].to_list()
    return {
        "shares": _SHARES,
        "rows": [(name, [percent(value) for value in values]) for name, values in rows.items()],
        "file": csv_file("routing", select(routing, profile=profile)),
    }
