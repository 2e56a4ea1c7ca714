"""The files of a figure: the PNG, and what lies beside it under the same name."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

BESIDE = (".svg", ".pdf", ".csv")
"""What `figures.style.write_figure` puts beside a PNG file."""

CAPTION = "Description"
"""The keyword of the PNG standard under which a file carries its caption."""


def caption_of(path: Path) -> str:
    """The caption that a PNG file carries; "" for none."""
    with Image.open(path, formats=("PNG",)) as image:
        return str(image.info.get(CAPTION, ""))
