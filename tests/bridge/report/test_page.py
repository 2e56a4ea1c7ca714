"""The report page on hand-made tables: what it says, what it leaves out, how a browser takes it."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from bridge.chips.profiles import FULL_COMPENSATED as COMPENSATED
from bridge.chips.profiles import FULL_PROFILE as FULL
from bridge.report.page import page as page_module
from bridge.report.tables.compensation import Beside
from bridge.report.tables.predictors import MODELS, OTHERS
from tests.report_page import (
    ATTACK,
    coverage,
    deciles,
    png,
    predictors,
    sections,
    table_one,
    write,
    write_full,
)
from tools import check_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_full(tmp_path_factory.mktemp("report"))


class Tables(HTMLParser):
    """The cells of every table by its rows, notes apart from values by a bar; ids and links."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.ids, self.links, self.files = [], [], [], {}
        self.parts = 0
        self._open = self._in_table = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "table":
            self._in_table = True
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "small" and self._in_table:
            self.tables[-1][-1][-1] += "|"
        elif tag == "h3":
            self.ids.append(found["id"])
        elif tag == "h2":
            self.parts += 1
        elif tag == "a" and "download" in found:
            self.files[found["download"]] = found["href"]
        elif tag == "a":
            self.links.append(found["href"].removeprefix("#"))
        self._open = self._in_table and tag in ("td", "th", "small", "strong", "button")

    def handle_endtag(self, tag):
        self._open = False
        self._in_table &= tag != "table"

    def handle_data(self, data):
        if self._open:
            self.tables[-1][-1][-1] += data.strip()

    def headed(self, *first):
        (table,) = [one for one in self.tables if one and tuple(one[0][: len(first)]) == first]
        return table


@pytest.fixture(scope="module")
def read(page):
    return Tables(page.read_text())


def test_everything_is_escaped_and_inside(page):
    text = page.read_text()
    assert "alert('x')</script>" not in text
    # Title twice, class name in a setting and in the table of classes, device of two stages, layer,
    # the command of the predictors' tables.
    assert text.count("&lt;script&gt;alert") == 7 + 3
    assert text.count("<script") == 1
    assert "/a/&lt;b&gt;" in text
    assert "echo &#39;&lt;b&gt;&#39;" in text
    assert not re.search("https?://", text)
    assert check_report.source_problems(text) == []
    assert text.count('src="data:image/png;base64,iVBOR') == 7 + 3
    assert "default-src 'none'" in text


def test_contents_link_to_every_section(read):
    assert read.links == ["words", *read.ids]  # the rule of the verdict is there
    assert read.ids == [
        *("classes", "drift", "vulnerable"),
        *("predictors", "deciles", "table-one", "calibration"),
        *("remedies", "routing"),
        *("overlap", "on-chip", "accuracy", "figures", "words"),
        *("reproduce", "settings", "environment"),
    ]
    assert read.parts == 4


def test_sections_stand_in_the_order_of_their_list(read, tmp_path, monkeypatch):
    listed = page_module.sections
    monkeypatch.setattr(
        page_module, "sections", lambda *given: dict(reversed(listed(*given).items()))
    )
    turned = Tables(write_full(tmp_path).read_text())
    assert turned.ids == turned.links[1:] == read.ids[::-1]


def test_every_section_has_a_template_and_every_template_a_section(read):
    folder = Path(page_module.__file__).parent / "templates" / "sections"
    without_chips = ("scores", "highest", "folds")
    assert {path.name for path in folder.iterdir()} == {
        f"{section}.html.jinja" for section in (*read.ids, "gallery", *without_chips)
    }


def test_the_answer_comes_first(page):
    text = page.read_text()
    order = (
        *(
            "<h1>",
            "<strong>At least weakly, but worse than the margin.</strong> AUROC: curvature 0.70, ",
        ),
        *('<dl class="numbers">', "[0.650, 0.750]", "<figure", "<nav", "What fails"),
        *("<h3", "What predicts it</h2>", "What to do</h2>", "Details</h2>", "<details open>"),
    )
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    numbers = text[text.index('<dl class="numbers">') : text.index("</dl>")]
    assert re.findall("<dt>(.*?)</dt><dd>(.*?) ", numbers) == [
        ("curvature", "0.700"),
        ("margin", "0.900"),
    ]
    assert "AUROC with its interval (0.5: chance, 1: perfect) among 40 digitally correct" in text
    assert "<dt>verdict</dt><dd>its first word goes by the interval" in text


def test_headings_are_answers(tmp_path, page):
    alike = sections()["per_class"].assign(samples=100, digital_accuracy=0.9)
    told = write(tmp_path / "r.html", **sections() | {"per_class": alike}).read_text()
    assert '<h3 id="classes">One of 3 classes holds 95 % of the failures</h3>' in told
    chips = sections()["systematic"].assign(profile=FULL)
    told = write(tmp_path / "r.html", **sections() | {"systematic": chips}).read_text()
    heading = "75 % of the failures are of samples that fail on most chips (by chance 10 %)"
    assert f'<h3 id="overlap">{heading}</h3>' in told
    text = page.read_text()
    for heading in (
        "Classes",  # its largest holds what it would by chance
        "97 % at 20 s",
        "Highest AUROC seen of 2 scores without a chip: 0.900 [0.850, 0.950], margin",
        "0.0 % of D1 and 25.0 % of D2 fail, of those that the digital model gets right",
        "The flip probability expects 12.5 % to fail; 12.0 % [5.0, 25.0] do",
        "Tiles compute 90.00 % of the multiply-accumulates",
    ):
        assert re.search(rf"<h3[^>]*>{re.escape(heading)}</h3>", text), heading


def test_the_best_score_without_a_chip_has_seen_no_failure_on_one(tmp_path):
    table = predictors()
    margin = table[table["predictor"] == "margin"]
    fitted = [margin.assign(predictor=name, auroc=0.95) for name in (*OTHERS.values(), *MODELS)]
    given = sections() | {"predictors": pd.concat([table, *fitted], ignore_index=True)}
    text = write(tmp_path / "r.html", **given).read_text()
    assert (
        "Highest AUROC seen of 2 scores without a chip: 0.900 [0.850, 0.950], margin</h3>" in text
    )


def test_a_page_without_failures_calls_no_sample_one_that_fails(tmp_path):
    table = sections()["vulnerable"]
    for shares, heading in (
        ([0.0, 0.0, 0.0], "No sample fails on a chip"),
        ([0.5, 0.0, 0.0], "Most vulnerable samples"),
    ):
        page = write(tmp_path / "r.html", vulnerable=table.assign(failed_share=shares))
        assert re.search(rf'<h3 id="vulnerable">{heading}</h3>', page.read_text())


def test_every_table_is_a_file_and_every_figure_has_its_own(page, read, tmp_path):
    text = page.read_text()
    assert text.count("<table") == text.count('download="') - 1  # that of the one figure
    assert read.files["figure_one.csv"] == "figure_one.csv"  # beside the page, as it is
    kind, _, content = read.files["per_class.csv"].partition(",")
    assert kind == "data:text/csv;base64"
    shown = pd.read_csv(io.BytesIO(base64.b64decode(content)))
    assert shown.astype(str).equals(sections()["per_class"].astype(str))
    figure = tmp_path / "elsewhere" / "figure_one.png"
    figure.parent.mkdir()
    figure.write_bytes(png())
    figure.with_suffix(".csv").write_text("decile\n2\n")
    alone = Tables(write(tmp_path / "r.html", figures=[figure], of_run=False).read_text())
    assert alone.files["figure_one.csv"] == "data:text/csv;base64,ZGVjaWxlCjIK"


def test_drift_that_is_not_compensated_is_said_with_what_to_do(page, tmp_path):
    assert "drift without compensation. <code>compensate it</code> makes chips" in page.read_text()
    given = sections()
    both = {
        name: pd.concat(
            [given[name], given[name].query(f"profile == '{FULL}'").assign(profile=COMPENSATED)]
        )
        for name in ("table_one", "predictors")
    }
    both["deciles"] = pd.concat([deciles(), deciles().assign(profile=COMPENSATED)[2:]])
    text = write(
        tmp_path / "r.html",
        **given | both,
        uncompensated=True,
        beside=Beside(COMPENSATED, compensated=True),
    ).read_text()
    assert "without compensation" not in text
    _, *rows = Tables(text).headed("profile", "fold")
    assert [row[0] for row in rows] == [FULL, FULL, COMPENSATED, COMPENSATED]
    assert text.count(f"Under {COMPENSATED}, 0.0 % of D1 and 25.0 % of D2 fail") == 2
    assert (
        f"Under {COMPENSATED} (drift compensated) the chips are right on 80.0 %, and D1, D2 fail: "
        "0.0, 25.0 % of all samples and 0.0, 25.0 % of digitally correct samples. The answer there:"
        " at least weakly, but worse than the margin. AUROC of curvature 0.70 [0.65, 0.75], margin"
    ) in text
    assert "without compensation" not in write(tmp_path / "r.html", **given).read_text()


def test_nothing_is_wider_than_a_telephone(page):
    text = page.read_text()
    style = text[text.index("<style>") : text.index("</style>")]
    for table in re.finditer("<table", text):
        opened = text.rfind("<div", 0, table.start())
        assert text[opened:].startswith('<div class="wide'), text[opened : opened + 80]
        assert "</div>" not in text[opened : table.start()]
    for image in re.finditer(r"<figure[^>]*>(?!<div class=\"wide\")", text):
        raise AssertionError(text[image.start() : image.start() + 80])
    # What is wide by itself is in a box that scrolls; nothing else has a width of its own.
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style)
    for selector, rule in rules:
        for width in re.findall(r"(?<![\w-])(?:min-)?width: (?:max\()?([\d.]+(?:rem|px))", rule):
            within = selector.strip() in (".grid", ".thumbnail", "figure:not(.narrow) img")
            assert within, (selector, width)
    assert re.search(r"\.wide \{[^}]*overflow: auto", style)


def test_figures_of_two_columns_alone_are_widened_on_a_telephone(tmp_path):
    for pixels, narrow in ((700, True), (1440, False)):
        figure = tmp_path / "predictors.png"
        Image.new("L", (pixels, 8)).save(figure)
        text = write(tmp_path / "r.html", predictors=predictors(), figures=[figure]).read_text()
        assert text.count('<figure class="narrow">') == narrow
        assert text.count("<figure>") == (not narrow)


def test_the_grid_of_deciles_is_as_wide_as_its_profiles_need(tmp_path):
    there = deciles()
    many = [there[there["profile"] == FULL].assign(profile=f"device_{n}") for n in range(14)]
    text = write(tmp_path / "r.html", deciles=pd.concat([there, *many])).read_text()
    assert text.count('<table class="grid" style="--columns: 17">') == 2  # with the deciles


def test_sections_without_a_table_are_left_out(tmp_path):
    text = write(tmp_path / "report.html").read_text()
    last = ["words", "settings", "environment"]
    assert Tables(text).ids == ["drift", "deciles", "remedies", *last]
    assert "experiments drift PRESET" in text
    assert "experiments remedies PRESET" in text
    assert 'class="answer"' not in text
    ideal = write(tmp_path / "report.html", ideal_agreement=1.0).read_text()
    assert "accuracy" in Tables(ideal).ids
    # A figure whose section is not there is shown nevertheless.
    figure = tmp_path / "routing.png"
    figure.write_bytes(png())
    shown = Tables(write(tmp_path / "report.html", figures=[figure]).read_text())
    assert shown.ids == ["drift", "deciles", "remedies", "figures", *last]


def test_words_of_remedies_stand_where_some_were_tried(tmp_path):
    term = "<dt>compensated, recalibrated, fitted logits</dt>"
    assert term not in write(tmp_path / "r.html").read_text()
    tried = write(tmp_path / "r.html", remedies=["Cheapest of 2 ways."]).read_text()
    assert term in tried
    assert "<p>Cheapest of 2 ways.</p>" in tried


def test_what_is_on_the_chip(page, read):
    text = page.read_text()
    assert (
        "Tiles compute 90.00 % of the multiply-accumulates of a forward pass, on 3 tiles." in text
    )
    assert "(grouped: 1 product, 7.00 %; two activations: 1 product, 3.00 %)." in text
    digital, every = [one for one in read.tables if one and one[0][0] == "layer"]
    assert digital == [
        ["layer", "product", "multiply-accumulates", "share (%)", "digital because"],
        ["depth", "convolution", "7", "7.00", "grouped"],
        ["mixer", "matmul", "3", "3.00", "two activations"],
    ]
    assert [row[0] for row in every[1:]] == ["stem", "depth", "mixer", ATTACK]
    assert every[0] == [*digital[0][:4], "tiles", "digital because"]
    assert [row[4:] for row in every[1:]] == [
        ["2", ""],
        ["0", "grouped"],
        ["0", "two activations"],
        ["1", ""],
    ]


def test_all_products_on_tiles(tmp_path):
    analog = coverage().query("place == 'analog'")
    text = write(tmp_path / "report.html", coverage=analog).read_text()
    assert "Tiles compute every matrix product of the network, on 3 tiles." in text
    assert "digital because" not in text


def test_many_digital_products_are_folded(tmp_path):
    digital = coverage().query("place == 'digital'")
    many = pd.concat([coverage(), *[digital] * 6], ignore_index=True)
    text = write(tmp_path / "report.html", coverage=many).read_text()
    assert "<summary>The 14 products that stay digital</summary>" in text
    assert "products that stay digital</summary>" not in write_full(tmp_path).read_text()


@pytest.mark.parametrize(
    ("analog", "told", "energy"),
    [(1, "50.00", "0.55"), (9_999, "99.99", "0.1"), (99_999, "&gt; 99.99", "0.1")],
)
def test_energies_name_the_share_on_tiles(tmp_path, analog, told, energy):
    given = sections() | {"settings": {"analyse": {"energy": {"analog": 0.1, "digital": 1.0}}}}
    assumed = "a digital inference costs 1, an analog one 0.1, as the settings assume"
    products = coverage().iloc[:2].assign(macs=[analog, 1])
    text = write(tmp_path / "report.html", **given | {"coverage": products}).read_text()
    assert f"{assumed} for a network wholly on tiles; of this one tiles compute {told} %" in text
    assert f"with which an analog inference costs {energy}." in text
    for whole in (None, products[:1]):
        text = write(tmp_path / "report.html", **given | {"coverage": whole}).read_text()
        assert f"{assumed}.</p>" in text


def test_answers_and_notes(page):
    text = page.read_text()
    assert "The digital model is right on 90.0 % of the test fold, the chips under" in text
    assert "adc+wnoise+pcm on 80.0 %." in text
    assert "at t = 20 s, 0.0 % of D1 and 25.0 % of D2 fail" in text
    assert "of digitally correct samples); Spearman&#39;s rho = 0.70 [0.65, 0.75]" in text
    assert (
        "Intervals are of 95 %, not adjusted for their number, for other samples on this one chip"
        in text
    )
    assert "99.84 %" in text
    assert "The margin is enough." in text
    assert "0.10 (score), 0.11 (chips)" in text


def test_predictors_by_auroc_with_costs(read):
    header, *rows = next(one for one in read.tables if one[0][0] == "predictor")
    assert header[:3] == ["predictor", "AUROC", "difference to margin"]
    assert header[-3:] == ["cost in forward passes", "ms an image", "undefined because"]
    assert rows[0][:3] == ["margin", "0.900|[0.850, 0.950]", "+0.000|[-0.050, +0.050]"]
    assert rows[1][:3] == ["curvature", "0.700|[0.650, 0.750]", "-0.200|[-0.250, -0.150]"]
    assert rows[2][:3] == ["a constant", "-", "-"]
    assert rows[2][-1] == "the score is constant"
    assert rows[0][-5:] == ["0.00", "25.00", "22", "13", ""]
    grid = read.headed("", f"{FULL}".replace("+", "+\u200b"))
    assert grid[1:] == [["curvature", "0.700"], ["margin", "0.900"], ["a constant", "-"]]


def test_predictors_where_nothing_fails(tmp_path):
    text = write(tmp_path / "r.html", predictors=predictors(), profile="ideal").read_text()
    assert "Among digitally correct samples it is undefined: no sample fails." in text
    assert "rho is undefined: no sample fails" in text
    assert "<strong>Nothing to tell.</strong> No sample fails.</p>" in text
    assert '<dl class="numbers">' not in text


def test_table_one_beside_the_paper(read, tmp_path):
    header, of_all, of_correct = read.headed("fold", "of")
    ends = ["D1", "paper", "difference", "D2", "paper", "difference"]
    assert header == ["fold", "of", *ends, "trend, z", "p"]
    assert of_all[1:4] == ["all samples", "0.00|[0.00, 0.00]", "1.34"]
    assert of_all[4:] == ["-1.34", "25.00|[25.00, 25.00]", "13.75", "+11.25", "3.00", "< 0.001"]
    assert of_correct[-2:] == ["2.00", "0.045"]
    ideal = write(
        tmp_path / "r.html",
        table_one=table_one().query("profile == 'ideal'"),
        predictors=predictors(),
        profile="ideal",
    )
    assert Tables(ideal.read_text()).headed("fold", "of")[0] == [
        *("fold", "of", "D1", "D2", "trend, z", "p")
    ]


def test_fractions_are_shown_in_percent(read):
    _, error = read.headed("profile", "predictor")
    assert error == [FULL, "flip probability", "40", "12.50", "12.00|[5.00, 25.00]", "1.30"]
    _, low, high = read.headed("predictor", "bin")
    assert low[2:] == ["0.00", "50.00", "38", "10.00", "10.00|[0.00, 20.00]"]
    assert high[-1] == "50.00|[10.00, 90.00]"
    _, choice = read.headed("router", "kind")
    assert choice[2:6] == ["inf", "89.00", "89.00", "20.00"]
    assert choice[6:] == ["88.50|88.00 to 89.00", "1.00", "0.300", "70.00"]
    shares = read.headed("", "0", "5")
    # The nearest of 0, 50 and 100 % to 0, 5, 10, 15, 20, 30, 40, 50, 75 and 100 %.
    assert shares[-1] == ["analog margin", *5 * ["80.00"], *3 * ["88.00"], "88.00", "90.00"]
    assert [row[0] for row in shares[1:]] == ["oracle", "random", "analog margin"]


def test_overlap_and_what_is_systematic(read, page):
    header, pcm, ideal = read.headed("first", "second")
    assert header[2:5] == [
        "failing samples in common (Jaccard)",
        "expected by chance",
        "expected from the margin alone",
    ]
    assert pcm[:6] == ["pcm", "adc", "0.346|[0.200, 0.500]", "0.100", "0.200", "-0.500"]
    assert pcm[6:] == ["0.600|[0.500, 0.700]", "0.550", ""]
    assert ideal == ["ideal", "adc", *6 * ["-"], "no failures of ideal"]
    header, row = read.headed("profile", "chips")
    assert header[-4:] == ["samples failing on no chip", "on some", "on most", "on all"]
    assert row[:5] == ["pcm", "3", "20.00", "75.00|[50.00, 87.50]", "10.40"]
    assert row[5:] == [
        "1,200|1,100.2 expected",
        "30|99 expected",
        "15|50 expected",
        "5|0.8 expected",
    ]
    assert "The Jaccard index of two chips is" in page.read_text()


SIMULATE = {
    "adc": {"bits": 7, "range": "calibrated", "percentile": 99.5},
    "wnoise": {"sigma": 0.03, "kind": "constant", "drawn": "per_chip"},
    "pcm": {
        "t_inference": 3600.0,
        "programming_noise": 1.0,
        "drift": 1.0,
        "read_noise": 2.0,
        "compensation": None,
    },
    "adc_calibration": 64,
}


def test_words_hold_the_settings_of_the_run(tmp_path):
    def words(**simulate):
        settings = {"simulate": SIMULATE | simulate}
        text = write(tmp_path / "r.html", settings=settings).read_text()
        return text[text.index("<dl>") : text.rindex("</dl>")]

    text = words()
    assert "7 bits, range calibrated to percentile 99.5 on 64 training images" in text
    assert "on 64 training images, times 1.5." in words(adc=SIMULATE["adc"] | {"headroom": 1.5})
    assert "sigma = 0.03 of a tile&#39;s largest weight, drawn once for each chip" in text
    assert "with read noise x 2; read t_inference = 3,600 s after programming" in text
    assert "drift is not compensated" in text
    text = words(
        adc={"bits": 7, "range": 12.5, "percentile": 100.0},
        wnoise={"sigma": 0.03, "kind": "pcm_read", "drawn": "per_mvm"},
        pcm=SIMULATE["pcm"] | {"compensation": ATTACK},
    )
    assert "7 bits, range 12.5." in text
    assert "read noise, drawn anew at each operation" in text
    assert "drift is compensated (&lt;script&gt;" in text


def test_words_without_settings(page):
    text = page.read_text()
    assert "<dt>adc</dt><dd>each tile&#39;s outputs are quantised by a converter.</dd>" in text
    assert "<dt>decile, D1 to D2</dt>" in text
    assert "compensated" not in text[text.index("<dl>") : text.rindex("</dl>")]


def test_captions_say_what_is_counted(tmp_path, page):
    text = page.read_text()
    assert "5 failures on 1 chip. D1 and D2: failure rate where the score" in text
    assert "Table I cuts by curvature among all samples" in text
    assert "failures, mean over chips" in text
    assert "a digital inference costs 1." in text
    settings = {"analyse": {"energy": {"analog": 0.2, "digital": 1.0}}}
    text = write(
        tmp_path / "r.html",
        **(sections() | {"predictors": predictors().assign(chips=3)}),
        settings=settings,
    ).read_text()
    assert "a digital inference costs 1, an analog one 0.2" in text
    assert "5 failures on 3 chips together." in text


def test_tables_without_rows_say_why(tmp_path):
    given = sections()
    lacking = ("overlap", "systematic", "routing_choices", "vulnerable")
    empty = {name: given[name].head(0) for name in lacking}
    for name in ("calibration", "calibration_errors"):
        empty[name] = given[name].assign(fold="validation")  # nothing of test is digitally correct
    text = write(tmp_path / "r.html", **(given | empty | {"thumbnails": []})).read_text()
    assert "Nothing to compare: no sample fails" in text
    assert "no sample of the fold is digitally correct" in text
    assert "Bin by bin" not in text
    assert "takes several chips of a profile" in text
    assert "No threshold was chosen" in text
    assert "the digital model gets no sample right" in text


def test_guaranteed_thresholds_stand_with_the_range_over_chips(tmp_path, page, read):
    row = dict(zip(*read.headed("router", "level (%)"), strict=True))
    assert row == {
        "router": "analog margin",
        "level (%)": "1.00",
        "threshold": "-0.25|-inf to 0.5",
        "stays and fails (%)": "0.75|0.00 to 2.00",
        "routed (%)": "50.00|12.50 to 100.00",
        "accuracy (%)": "89.00|87.50 to 90.00",
        "energy": "0.600",
        "energy saved (%)": "40.00",
    }
    assert "a level of 1 % would take 99 chips" in page.read_text()
    given = sections()
    for nothing in (None, given["routing_guarantees"].head(0)):  # no validation fold
        text = write(tmp_path / "r.html", **(given | {"routing_guarantees": nothing})).read_text()
        assert "would take 99 chips" not in text


def test_vulnerable_images_have_their_files_where_these_are_known(tmp_path, page):
    assert ">file<" not in page.read_text()
    given = sections()
    given["vulnerable"] = given["vulnerable"].assign(path=["cat/1.png", "dog/<2>.png", "ant/3.png"])
    text = write(tmp_path / "r.html", **given).read_text()
    part = text[text.index('<h3 id="vulnerable">') :]
    part = part[: part.index("<h2>")]
    assert part.count(">file<") == 1
    assert '<td class="left">cat/1.png</td>' in part
    given["vulnerable"]["index"] = [1_994_766_638, 2, 3]
    text = write(tmp_path / "r.html", **given).read_text()
    assert ">1994766638<" in text  # as one types it
    assert "dog/&lt;2&gt;.png" in part


def test_sortable_tables_have_buttons_and_numbers_to_sort_by(page):
    text = page.read_text()
    assert text.count('<table class="cells sortable">') == 5
    part = text[text.index('<h3 id="vulnerable">') :]
    part = part[: part.index("<h2>")]
    assert part.count('aria-sort="none"><button type="button">') == 9  # all but the images'
    assert '<td data-number="12.25">12.2</td>' in part
    assert part.count('class="thumbnail"') == 3
    classes = text[text.index('<h3 id="classes">') :]
    assert '<td data-number="">-</td>' in classes
    assert '<td data-number="1e-07">1e-07</td>' in classes


def test_same_inputs_same_bytes(page, tmp_path):
    first = write(tmp_path / "a.html", **sections()).read_bytes()
    assert write(tmp_path / "b.html", **sections()).read_bytes() == first
    assert first != page.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thumbnails": [b""]}, "1 thumbnails for 3 listed samples"),
        ({"vulnerable": None}, "3 thumbnails for 0 listed samples"),
        (
            {"per_class": pd.DataFrame({"label": [1]})},
            "the report's per_class lacks the columns class_name, samples",
        ),
        (
            {"systematic": pd.DataFrame({"name": ["pcm"]})},
            "the report's systematic lacks the columns profile, chips",
        ),
        ({"fold": "train"}, "no fold 'train' here; there is test"),
        ({"profile": "adc"}, "no profile 'adc' here; there is adc+wnoise+pcm, ideal"),
    ],
)
def test_bad_input_leaves_no_page(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write(tmp_path / "report.html", **(sections() | changes))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_figure_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no figure at .*figure_one.png; draw it"):
        write(tmp_path / "report.html", figures=[tmp_path / "figure_one.png"])
    assert list(tmp_path.iterdir()) == []


# --- the check


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<img src="https://example.org/x.png">', "<img src='https://example.org/x.png'>"),
        ('<link href="//example.org/x.css">', "<link href='//example.org/x.css'>"),
        ('<p style="background: url(http://example.org)">', "url(http://example.org"),
        ("<style>@import 'https://example.org/x';</style>", "@import 'https://example.org/x"),
        ('<img alt="cut" src="data:image/png;base64,iVBORw0KGgo=">', "image damaged: cut"),
    ],
)
def test_what_is_outside_or_damaged_is_found(body, problem):
    (found,) = check_report.source_problems(f"<body>{body}</body>")
    assert problem in found


def test_text_and_links_within_the_page_pass():
    body = '<a href="#x">https://example.org</a><style>a { color: red }</style>'
    assert check_report.source_problems(body) == []


def test_without_a_browser_it_says_what_to_install(page, monkeypatch, capsys):
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setenv("PATH", "")
    assert check_report.main([str(page)]) == 2
    assert "apt-get install chromium" in capsys.readouterr().err
    monkeypatch.setenv("CHROME", "/nowhere/chrome")
    assert check_report.main([str(page)]) == 2
    assert "$CHROME names '/nowhere/chrome'" in capsys.readouterr().err
    assert check_report.main([str(page.with_name("none.html"))]) == 2
    assert "no report at" in capsys.readouterr().err
