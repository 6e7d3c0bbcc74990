"""Pictures, drawn by matplotlib where it is installed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loragraft.errors import LoragraftError
from loragraft.system.output import OutputFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")


def check_picture(path: Path) -> None:
    """Raises LoragraftError if no picture can be drawn at `path`: worth asking before long measurements."""
    if path.suffix.lower() not in FORMATS:
        raise LoragraftError(path, "no such picture format", expected="a name that ends in .png or .svg")
    if not path.absolute().parent.is_dir():
        raise LoragraftError(path, "its folder does not exist")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise LoragraftError(path, "drawing needs matplotlib", hint="pip install 'loragraft[plot]'") from None


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Axes]:
    """Axes to draw on, `width` by `height` inches, saved at `path` (PNG or SVG) in the end. Raises LoragraftError as
    `check_picture`."""
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure.subplots()
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower(), dpi=150)
    with OutputFile(path, drawn.tell()) as file:
        file.write_at(0, drawn.getbuffer())
