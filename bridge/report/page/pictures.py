"""The figures of a report: the section and the caption of each, and its bytes in the page.

They are drawn in `bridge.report.figures`.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bridge.report.figure_files import BESIDE, caption_of
from bridge.report.tables.formats import words

_TYPES = {".svg": "image/svg+xml", ".pdf": "application/pdf", ".csv": "text/csv"}

KINDS = {
    "verdict": ("verdict", ""),
    "figure_one": ("deciles", ""),
    "predictors": (
        "predictors",
        "AUROC of each predictor with its interval; at the right its cost in forward passes, as "
        "measured once for all runs. That of the flip probability leaves out what an ADC or noise "
        "at each operation adds, and the moments of the weights, once for all samples.",
    ),
    "calibration": (
        "calibration",
        "Observed failure rate against predicted probability, for each profile under which samples "
        "fail. Points on the diagonal come true; their area grows with the samples in the bin. "
        "ECE, the expected calibration error, in the order of the legend.",
    ),
    "routing": (
        "routing",
        "Accuracy against the share routed to the digital model, and against energy. Dots, where "
        "there are any: the thresholds chosen on validation. The energy of a computed score is "
        "that of its cost in forward passes.",
    ),
    "overlap": ("overlap", "How far the samples that fail are the same ones."),
    "drift": (
        "drift",
        "Accuracy of the same chips against time after programming; the bands are intervals over "
        "chips.",
    ),
    "remedies": (
        "remedies",
        "Accuracy against energy of every remedy on the same chips, and below the frontiers for "
        "other energies of an analog pass. Thresholds and frontiers are chosen on validation "
        "images, the accuracies are of test images.",
    ),
    "gallery": ("gallery", ""),
    "score_histogram": ("scores", ""),
    "training_curve": (
        "",
        "Training of the digital model; the dot is the checkpoint in use.",
    ),
}
"""Section of a figure, and its caption unless the file carries one, by the start of the file's
name. A figure of another name, or of a section that is not there, is shown last."""


@dataclass(frozen=True)
class File:
    """A file that the page links to."""

    text: str
    """What the link says, such as "SVG"."""
    href: str
    """Where it lies beside the page, or the file itself as a data URL."""
    name: str
    """Its name."""


_WIDTH_IN_PNG = slice(16, 20)

_PIXELS_OF_TWO_COLUMNS = 1000
"""A figure of one column has 700 pixels in a row, one of two 1,440."""


@dataclass(frozen=True)
class Picture:
    """A figure in the page."""

    section: str
    """The id of the section that it belongs to, or ""."""
    caption: str
    data: str
    """The PNG file in base64."""
    name: str
    """The name of its file, without the ending."""
    files: tuple[File, ...]
    """The other files of the figure."""
    narrow: bool
    """Whether it has one column of a paper, and can be read on a phone."""


def read_picture(path: Path, folder: Path | None) -> Picture:
    """Reads a figure; the start of its file's name says what it shows, unless the file does.

    Args:
        path: the PNG file.
        folder: the folder of the page, in which the figure's other files stay; None where they do
            not, and are put into the page.

    Raises:
        FileNotFoundError: if it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no figure at {path}; draw it before the report")
    kind = next((kind for kind in KINDS if path.name.startswith(kind)), "")
    section, caption = KINDS.get(kind, ("", ""))
    others = [one for form in BESIDE if (one := path.with_suffix(form)).is_file()]
    content = path.read_bytes()
    return Picture(
        section,
        caption_of(path) or caption or words(path.stem),
        base64_text(content),
        path.stem,
        tuple(_file(one, folder) for one in others),
        int.from_bytes(content[_WIDTH_IN_PNG]) < _PIXELS_OF_TWO_COLUMNS,
    )


def _file(path: Path, folder: Path | None) -> File:
    """A link to a file beside the page, or the file as a data URL."""
    if folder is None:
        href = data_url(path.read_bytes(), _TYPES[path.suffix])
    else:
        href = quote(Path(os.path.relpath(path, folder)).as_posix())
    return File(path.suffix[1:].upper(), href, path.name)


def data_url(content: bytes, kind: str) -> str:
    """Bytes of a media type as a URL that holds them."""
    return f"data:{kind};base64,{base64_text(content)}"


def base64_text(content: bytes) -> str:
    """Bytes in base64, as a page embeds them."""
    return base64.b64encode(content).decode()
