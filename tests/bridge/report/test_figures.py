"""The figures on hand-made tables."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.text import Text

from bridge.chips.profiles import FULL_PROFILE as FULL
from bridge.report.figure_files import caption_of
from bridge.report.figures import overlap, paper, style, training
from bridge.report.figures.predictors import calibration_figure, predictor_figure, routing_figure
from bridge.report.figures.scores import score_histogram
from bridge.report.figures.verdict import verdict_figure
from bridge.report.figures.widths import DOUBLE, SINGLE, WIDTHS
from bridge.report.tables.compensation import Beside
from bridge.report.tables.outcomes import DENOMINATORS

NAN = float("nan")
FORMS = ("png", "svg", "pdf", "csv")


def predictors(**auroc):
    """Predictors under the full profile; and under ideal, where nothing fails."""
    rows = []
    for profile in (FULL, "ideal"):
        for name, value in auroc.items():
            value = value if profile == FULL else NAN
            rows.append(
                {
                    "fold": "test",
                    "profile": profile,
                    "predictor": name,
                    "denominator": "correct",
                    "chips": 1,
                    "samples": 90,
                    "failures": 30 if profile == FULL else 0,
                    "auroc": value,
                    "auroc_low": value - 0.05,
                    "auroc_high": value + 0.05,
                    "reason": "" if profile == FULL else "no sample fails",
                    "forward_passes": 22.0 if name == "curvature" else NAN,
                }
            )
    return pd.DataFrame(rows)


def calibration(observed):
    """Two bins, of which the second is empty, under one profile."""
    here = {"fold": "test", "profile": FULL, "predictor": "flip_probability"}
    bins = pd.DataFrame(
        {
            "bin": [1, 2],
            "low": [0.0, 0.5],
            "high": [0.5, 1.0],
            "samples": [40, 0],
            "predicted": [0.2, NAN],
            "observed": [observed, NAN],
            "observed_low": [observed / 2, NAN],
            "observed_high": [observed * 2, NAN],
        }
    )
    error = {"samples": 40, "predicted": 0.2, "observed": observed}
    errors = pd.DataFrame([here | error | {"expected_calibration_error": abs(observed - 0.2)}])
    return bins.assign(**here), errors


def routing(kinds=("known", "digital"), passes=22.0):
    """From 80 to 90 % right; the digital kind costs so many passes of every sample."""
    fraction = np.array([0.0, 0.5, 1.0])
    curves = [
        pd.DataFrame(
            {
                "fold": "test",
                "profile": FULL,
                "router": f"by {kind}",
                "kind": kind,
                "fraction": fraction,
                "accuracy": [0.8, 0.88, 0.9],
                "energy": (0.1 + 0.9 * fraction) if kind == "known" else passes + 0.1,
                "random_accuracy": [0.8, 0.85, 0.9],
                "oracle_accuracy": [0.8, 0.9, 0.9],
            }
        )
        for kind in kinds
    ]
    baselines = pd.DataFrame(
        {
            "profile": FULL,
            "name": ["always analog", "always digital"],
            "accuracy": [0.8, 0.9],
            "energy": [0.1, 1.0],
        }
    )
    choice = {"profile": FULL, "router": "by known", "fraction": 0.5, "accuracy": 0.88}
    return pd.concat(curves), baselines, pd.DataFrame([choice | {"energy": 0.55}])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, in order, to read them."""
    written = []
    write = style.write_figure

    def keep(figure, path, table):
        written.append(figure)
        return write(figure, path, table)

    monkeypatch.setattr("bridge.report.figures.predictors.write_figure", keep)
    return written


def texts(figure):
    """Every text of a figure that is not empty."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_same_bytes_each_time(tmp_path):
    def draw(folder):
        predictor_figure(predictors(curvature=0.7, margin=0.8), folder / "predictors.png")
        calibration_figure(*calibration(0.1), folder / "calibration.png")
        curves, baselines, choices = routing()
        routing_figure(curves, baselines, choices, folder / "routing.png")
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    stems = ("predictors", "calibration", "routing")
    assert set(first) == {f"{stem}.{form}" for stem in stems for form in FORMS}
    assert first == second


def test_predictors_stand_by_auroc_with_their_cost(tmp_path, drawn):
    table = predictors(curvature=0.7, gradient_norm=0.9, constant=NAN)
    path = predictor_figure(table, tmp_path / "p.png")
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["gradient norm", "curvature"]
    (costs,) = axis.child_axes
    assert [label.get_text() for label in costs.get_yticklabels()] == ["-", "22"]
    # The best is on top, and the whole interval within the axis.
    assert axis.get_ylim()[0] > axis.get_ylim()[1]
    assert axis.get_xlim()[0] < 0.5
    assert axis.get_xlim()[1] > 0.95
    assert "90 digitally correct samples, 30 failures on 1 chip" in " ".join(texts(drawn[0]))
    order = ["gradient_norm", "curvature", "constant"]
    assert pd.read_csv(path.with_suffix(".csv"))["predictor"].tolist() == order


def test_predictors_say_why_there_is_nothing(tmp_path, drawn):
    table = predictors(curvature=0.7)
    predictor_figure(table, tmp_path / "p.png", profile="ideal")
    assert "AUROC is undefined: no sample fails" in texts(drawn[0])
    with pytest.raises(ValueError, match="no denominator 'all' here; there is correct"):
        predictor_figure(table, tmp_path / "q.png", denominator="all")
    assert not (tmp_path / "q.png").exists()
    few = table.assign(failures=NAN, samples=3)  # fewer than there are bins
    predictor_figure(few, tmp_path / "r.png", profile="ideal")
    assert f"ideal, test fold\n3 {DENOMINATORS['correct']}" in texts(drawn[1])


def test_calibration_draws_only_profiles_that_fail(tmp_path, drawn):
    bins, errors = calibration(0.1)
    calibration_figure(
        pd.concat([bins, bins.assign(profile="adc")]),
        pd.concat([errors, errors.assign(profile="adc", observed=0.0)]),
        tmp_path / "c.png",
    )
    (axis,) = drawn[0].axes
    assert axis.get_title() == f"{FULL}\nECE 0.100"
    (points,) = (one for one in axis.collections if isinstance(one, PathCollection))
    assert points.get_offsets().tolist() == [[0.2, 0.1]]  # the empty bin is not there
    calibration_figure(*calibration(0.0), tmp_path / "none.png")
    both = [pd.concat([one, one.assign(profile="adc")]) for one in (bins, errors)]
    calibration_figure(*both, tmp_path / "order.png", profiles=("adc", "pcm", FULL))
    titles = [axis.get_title().partition("\n")[0] for axis in drawn[2].axes]
    assert titles == ["adc", FULL]
    assert "no sample of the test fold fails under any profile" in texts(drawn[1])


@pytest.mark.parametrize("rows", ["none", "of another fold"])
def test_calibration_where_nothing_is_digitally_correct(tmp_path, drawn, rows):
    bins, errors = (
        table.head(0) if rows == "none" else table.assign(fold="validation")
        for table in calibration(0.1)
    )
    calibration_figure(bins, errors, tmp_path / "c.png")
    assert "no sample of the test fold fails under any profile" in texts(drawn[0])


def test_routing_marks_baselines_choices_and_what_lies_beyond(tmp_path, drawn):
    routing_figure(*routing(), tmp_path / "r.png")
    by_fraction, by_energy = drawn[0].axes
    labels = by_fraction.get_legend_handles_labels()[1]
    baselines = ["always analog", "always digital"]
    assert labels == ["oracle", "random", "by known", "by digital", *baselines]
    dots = {tuple(map(float, one.get_xydata()[0])) for one in by_energy.lines if one.get_marker()}
    assert {(0.55, 88.0), (0.1, 80.0), (1.0, 90.0)} <= dots
    assert by_energy.get_xlabel() == "Energy a sample\n(not shown: by digital, from 22.1 on)"
    assert max(max(line.get_xdata(), default=0) for line in by_energy.lines) <= 1.25
    # One pass more than the digital model is within the axis.
    routing_figure(*routing(passes=1.0), tmp_path / "r.png")
    assert drawn[1].axes[1].get_xlabel() == "Energy a sample"


def test_routing_without_choices(tmp_path, drawn):
    curves, baselines, choices = routing()
    routing_figure(curves, baselines, choices.head(0), tmp_path / "r.png")
    with pytest.raises(
        ValueError, match=f"no profile 'adc' here; there is {FULL}".replace("+", r"\+")
    ):
        routing_figure(curves, baselines, choices, tmp_path / "r.png", profile="adc")


# --- of runs


def test_figures_are_written_with_the_same_bytes_each_time(tmp_path, joined, deciles):
    epochs = np.arange(1, 4)
    history = pd.DataFrame({"epoch": epochs})
    for split in ("train", "validation"):
        history[f"{split}_loss"], history[f"{split}_accuracy"] = 1 / epochs, 1 - 0.5 / epochs
    rows = paper.gallery_rows(joined, "test", count=3)
    images = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4, 1)

    def draw(folder):
        paper.figure_one(deciles, folder / "figure_one.png")
        paper.gallery(rows, images, ["$a$", "<b>", "c"], folder / "gallery.png")
        training.training_curve(history, folder / "training_curve.png")
        score_histogram(joined, folder / "score_histogram.png", fold="pooled")
        verdict_figure(deciles, folder / "verdict.png", fold="test", profile=FULL)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first, second = draw(tmp_path / "a"), draw(tmp_path / "b")
    stems = ("figure_one", "gallery", "training_curve", "score_histogram", "verdict")
    assert set(first) == {f"{stem}.{form}" for stem in stems for form in FORMS}
    assert first == second


def test_gallery_rows_are_the_extremes(joined):
    rows = paper.gallery_rows(joined, "test", count=2)
    assert rows["index"].tolist() == [0, 1, 18, 19]
    assert rows["end"].tolist() == ["lowest", "lowest", "highest", "highest"]
    assert rows["chip"].tolist() == 4 * [11]
    with pytest.raises(ValueError, match="cannot show 11 of each end of the 20 test samples"):
        paper.gallery_rows(joined, "test", count=11)
    with pytest.raises(ValueError, match="need 4 uint8 images"):
        paper.gallery(rows, np.zeros((3, 4, 4, 3), np.uint8), ["a", "b", "c"], "gallery.png")


def test_histogram_counts_zeros_apart(tmp_path, joined):
    path = score_histogram(joined, tmp_path / "h.png", fold="test", bins=5)
    table = pd.read_csv(path.with_suffix(".csv"))
    assert table.iloc[0].tolist() == [0, 0, 1, 0, 0]  # index 0: curvature 0, digitally wrong
    assert table[["digitally_wrong", "survives", "fails"]].to_numpy().sum() == 20
    assert table["fails"].sum() == 10
    negative = joined.assign(curvature=-joined["curvature"])
    with pytest.raises(ValueError, match="non-negative"):
        score_histogram(negative, tmp_path / "h.png")


@pytest.fixture
def figures(monkeypatch):
    """The figures of runs that were written, with their captions."""
    written = []

    def keep(figure, path, table, caption=""):
        written.append((figure, caption))
        return path

    for module in ("paper", "scores", "verdict"):
        monkeypatch.setattr(f"bridge.report.figures.{module}.write_figure", keep)
    return written


def test_fig_1_has_a_panel_a_profile_and_a_line_a_fold(tmp_path, deciles, figures):
    paper.figure_one(deciles, tmp_path / "f.png", folds=("train", "test"))
    ((figure, caption),) = figures
    assert [axis.get_title() for axis in figure.axes] == ["ideal", FULL]
    for axis in figure.axes:
        assert [line.get_label() for line in axis.lines] == ["train", "test"]
        assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == 2
        assert {line.get_marker() for line in axis.lines} == {"None"}
        assert len(axis.collections) == 2  # the bands
    full = deciles.query(f"profile == '{FULL}' and fold == 'test'")
    drawn = figure.axes[1].lines[1].get_ydata()
    np.testing.assert_allclose(drawn, 100 * full["rate_of_all"])
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    assert "train (orange, dashed), test (blue); the bands are intervals." in caption
    assert "grey" not in caption


def test_fig_1_of_chosen_profiles_and_folds(tmp_path, deciles, figures):
    paper.figure_one(deciles, tmp_path / "f.png", profiles=(FULL,), folds=("pooled",))
    figure, caption = figures[0]
    assert [axis.get_title() for axis in figure.axes] == [FULL]
    assert "pooled (grey, dotted); the bands are intervals." in caption
    with pytest.raises(ValueError, match="no profile 'mine' here; there is ideal, adc"):
        paper.figure_one(deciles, tmp_path / "f.png", profiles=("mine",))
    with pytest.raises(ValueError, match="no fold of validation in the decile table"):
        paper.figure_one(deciles, tmp_path / "f.png", folds=("validation",))


@pytest.mark.parametrize("width", WIDTHS.values())
def test_widths_are_in_inches_and_nothing_is_cut(tmp_path, joined, deciles, figures, width):
    many = [deciles[deciles["profile"] == FULL].assign(profile=f"pcm_{n}") for n in range(9)]
    rows = paper.gallery_rows(joined, "test", count=8)
    images = np.zeros((16, 4, 4, 1), np.uint8)
    paper.figure_one(pd.concat(many), tmp_path / "f.png", width=width)
    paper.figure_one(many[0], tmp_path / "f.png", denominator="correct", width=width)
    paper.gallery(rows, images, ["a", "b", "c"], tmp_path / "g.png", width=width)
    score_histogram(joined, tmp_path / "h.png", width=width)
    where = {"fold": "test", "profile": FULL, "beside": Beside("ideal", False)}
    verdict_figure(deciles, tmp_path / "v.png", width=width, **where)
    with matplotlib.rc_context(style.STYLE):
        for figure, _ in figures:
            assert figure.get_size_inches()[0] == width
            figure.canvas.draw()
            box = figure.get_tightbbox()
            assert -0.02 < box.x0 < box.x1 < width + 0.02, figure
            assert -0.02 < box.y0 < box.y1 < figure.get_size_inches()[1] + 0.02, figure
    grid = figures[0][0].axes[0].get_gridspec()
    assert grid.ncols == {SINGLE: 2, DOUBLE: 4}[width]


@pytest.mark.parametrize("width", WIDTHS.values())
def test_long_names_of_profiles_are_wrapped(tmp_path, deciles, figures, width):
    named = "a device that somebody measured in a foundry under a light load, at 3,600 s"
    first = deciles[deciles["profile"] == FULL].assign(profile=named)
    second = first.assign(profile=f"{named}, compensated")
    where = {"fold": "test", "profile": named, "width": width}
    path = tmp_path / "f.png"
    verdict_figure(first, path, **where)
    verdict_figure(
        pd.concat([first, second]), path, beside=Beside(f"{named}, compensated", True), **where
    )
    where |= {"profile": f"{named}, {named}"}
    many = predictors(margin=0.8).assign(profile=where["profile"], samples=51_040, chips=15)
    predictor_figure(many.head(1).assign(failures=242_630), path, **where)
    with matplotlib.rc_context(style.STYLE):
        for figure, _ in figures:
            figure.canvas.draw()
            box = figure.get_tightbbox()
            assert -0.02 < box.x0 < box.x1 < width + 0.02, figure


def test_dollars_in_the_name_of_a_profile_are_no_mathematics(tmp_path, joined, deciles):
    named = r"$5 \load, $6"
    where = {"fold": "test", "profile": named}
    there = deciles[deciles["profile"] == FULL].assign(profile=named)
    drawn = [
        verdict_figure(there, tmp_path / "v.png", **where),
        paper.figure_one(there, tmp_path / "f.png"),
        predictor_figure(
            predictors(margin=0.8).head(1).assign(profile=named), tmp_path / "p.png", **where
        ),
        score_histogram(joined.assign(profile=named), tmp_path / "h.png", **where),
    ]
    for path in drawn:
        assert named in path.with_suffix(".svg").read_text(), path


def test_captions_name_the_colours_that_there_are(tmp_path, joined, figures):
    rows = paper.gallery_rows(joined, "test", count=2)
    images = np.zeros((4, 4, 4, 1), np.uint8)
    paper.gallery(rows, images, ["a", "b", "c"], tmp_path / "g.png")
    assert figures[0][1].endswith("Frames: blue survives, grey digitally wrong, orange fails.")
    right = joined.query("digital_correct and not failure")
    rows = paper.gallery_rows(right, "test", count=2)
    paper.gallery(rows, images, ["a", "b", "c"], tmp_path / "g.png")
    assert figures[1][1].endswith("Frames: blue survives.")
    score_histogram(right, tmp_path / "h.png")
    assert figures[2][1].endswith("as a share of itself: survives blue.")


def test_text_is_text_and_fonts_are_embedded_as_truetype(tmp_path, deciles):
    path = verdict_figure(
        deciles, tmp_path / "v.png", fold="test", profile=FULL, beside=Beside("ideal", False)
    )
    assert (
        ">Curvature decile of the test fold (D1 lowest)</text>"
        in path.with_suffix(".svg").read_text()
    )
    pdf = path.with_suffix(".pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"CreationDate" not in pdf
    caption = caption_of(path)
    assert f"{FULL} (blue), ideal (orange, dashed); the bands are intervals." in caption


def test_figures_refuse_other_names_and_leave_nothing(tmp_path, deciles):
    with pytest.raises(ValueError, match=r"figure_one.pdf must end in .png"):
        paper.figure_one(deciles, tmp_path / "figure_one.pdf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("profiles", [1, 2, 4])
def test_the_titles_of_an_overlap_have_room(profiles, tmp_path, monkeypatch):
    drawn = []

    def keep(figure, path, table):
        drawn.append(figure)
        return path

    monkeypatch.setattr(overlap, "write_figure", keep)
    names = ["adc+wnoise+pcm", "pcm", "adc", "wnoise"][:profiles]
    pairs = pd.DataFrame([(a, b) for i, a in enumerate(names) for b in names[i:]])
    pairs.columns = ["first", "second"]
    table = pairs.assign(jaccard=0.5, jaccard_margin=0.2, spearman=0.9)
    with matplotlib.rc_context(style.STYLE):
        overlap.draw(table, tmp_path / "overlap.png", "Profiles of this run, test fold")
        drawn[0].canvas.draw()
        boxes = [axis.title.get_window_extent() for axis in drawn[0].axes[:3]]
        labels = [axis.yaxis.label.get_window_extent() for axis in drawn[0].axes[3:]]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
    assert all(box.y0 > 0 and box.y1 < drawn[0].bbox.y1 for box in labels)


@pytest.mark.parametrize("width", WIDTHS.values())
@pytest.mark.parametrize("profiles", [2, 8])
def test_an_overlap_fits_the_columns_of_a_paper(width, profiles, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(overlap, "write_figure", lambda figure, *_: drawn.append(figure))
    names = [f"adc+wnoise+pcm_{number}" for number in range(profiles)]
    pairs = pd.DataFrame([(a, b) for i, a in enumerate(names) for b in names[i:]])
    pairs.columns = ["first", "second"]
    table = pairs.assign(jaccard=0.5, jaccard_margin=0.2, spearman=0.9)
    overlap.draw(table, tmp_path / "overlap.png", "Profiles", width=width)
    with matplotlib.rc_context(style.STYLE):
        drawn[0].canvas.draw()
        box = drawn[0].get_tightbbox()
        assert -0.02 < box.x0 < box.x1 < width + 0.02
        bars = [axis.get_window_extent() for axis in drawn[0].axes[3:]]
        for axis in drawn[0].axes[:3]:
            titles = (axis.title, axis._right_title)
            boxes = [one.get_window_extent() for one in titles if one.get_text()]
            assert not any(one.overlaps(bar) for one in boxes for bar in bars)
