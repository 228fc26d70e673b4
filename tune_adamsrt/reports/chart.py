"""A figure with its words, in colours that a page can swap for a dark theme; as SVG and PNG.

Figures are drawn in the colours of the light theme. Inside a page each of them becomes a CSS variable, so that the same
drawing serves both themes.
"""

import io
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tune_adamsrt.records import TrialState

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells the terminal that it builds its font cache

ACCURACY = "validation accuracy (%)"

PAGE, TEXT, MUTED, GRID = "#ffffff", "#1f2430", "#5d6675", "#dde1e8"

# Okabe and Ito's blue, orange and purple, darkened until they hold 3:1 against white.
STATE_COLORS: Mapping[TrialState, str] = {
    TrialState.COMPLETE: "#0072b2",
    TrialState.STOPPED: "#b87300",
    TrialState.FAILED: "#b5297f",
    TrialState.RUNNING: "#77808e",
    TrialState.PAUSED: "#77808e",
}
STATE_ORDER = (TrialState.RUNNING, TrialState.PAUSED, TrialState.FAILED, TrialState.STOPPED, TrialState.COMPLETE)
"""What is drawn first, and so lies lowest."""
STATE_DASHES: Mapping[TrialState, Any] = {TrialState.FAILED: (0, (1.2, 1.2)), TrialState.STOPPED: (0, (4, 1.5))}

SERIES_COLORS = ("#0072b2", "#d45500", "#008a63", "#a03c8c", "#8a6d00", "#4a5bc4", "#6b4a3a")
SERIES_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    "-",
    (0, (5, 1.5)),
    "--",
)

# viridis, from its greens (low) to its darkest (high); on a dark page the other way round.
LOW_TO_HIGH = (
    "#8bd646",
    "#56c667",
    "#2fb47c",
    "#1fa188",
    "#238a8d",
    "#2d708e",
    "#39568c",
    "#453781",
    "#482173",
    "#440154",
)
_LOW_TO_HIGH_DARK = (
    *("#3e4a89", "#375b8d", "#2f6c8e", "#297a8e", "#228b8d", "#1f9c89", "#3bbb75", "#75d054", "#b5de2b", "#fde725"),
)

DARK: Mapping[str, str] = {
    PAGE: "#14171c",
    TEXT: "#e7eaf0",
    MUTED: "#a2abba",
    GRID: "#2c323c",
    "#0072b2": "#56b4e9",
    "#b87300": "#f0b440",
    "#b5297f": "#f08cc8",
    "#77808e": "#99a2b0",
    **dict(
        zip(SERIES_COLORS, ("#56b4e9", "#ff8c4a", "#2fcf9f", "#e39ad2", "#d9bd3a", "#9aa8ff", "#c79f8a"), strict=True)
    ),
    **dict(zip(LOW_TO_HIGH, _LOW_TO_HIGH_DARK, strict=True)),
}
"""Every colour that a figure may use -> the one that stands for it on a dark page."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: texts take the same room everywhere
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "text.color": TEXT,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.8,
    "figure.facecolor": PAGE,
    "savefig.facecolor": PAGE,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "tune_adamsrt",  # the same figure gives the same file
    "path.simplify": True,
}

WIDTH, HEIGHT = 4.9, 3.3  # inches: text stays legible where a phone shows the figure at its full width
PNG_DPI = 200


@dataclass(frozen=True)
class Chart:
    """A figure and its words.

    Attributes:
        name: short and plain; part of file names.
        caption: what it shows, how to read it and what it does not show.
        figure: None where the trials at hand cannot fill it; `caption` then says why.
    """

    name: str
    title: str
    caption: str
    figure: Figure | None


def new_figure(*, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Give an empty figure and its axes. To be called, and drawn on, within `matplotlib.rc_context(STYLE)`."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def render_png(figure: Figure) -> bytes:
    """Render a figure as PNG on white, 200 dots per inch."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def render_svg(figure: Figure) -> str:
    """Render a figure as SVG on white, with its text as text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def render_inline_svg(chart: Chart, key: str) -> str:
    """Render a chart's figure as an `<svg>` element for an HTML page: ids of its own, colours as CSS variables.

    Args:
        key: starts every id; must differ from that of any other figure on the page.
    """
    assert chart.figure is not None
    svg = render_svg(chart.figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows them
    svg = re.sub(r"<svg[^>]*>", lambda found: _root(found[0], key), svg, count=1)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r"<!--.*?-->\s*|<style[^>]*>.*?</style>\s*|<defs>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: f"var({variable(found[0])})" if found[0] in DARK else found[0], svg)
    svg = re.sub(r"(font: [^;\"]*?px )[^;\"]*", r"\1var(--font)", svg)
    return re.sub(r"\n\s*", "\n", svg)


def _root(tag: str, key: str) -> str:
    box = re.search(r'viewBox="[^"]*"', tag)
    assert box is not None
    return f'<svg {box[0]} role="img" aria-labelledby="{key}-title">'


def variable(color: str) -> str:
    """Name the CSS variable of one of the figures' colours."""
    return f"--c{list(DARK).index(color)}"


def theme_variables(*, dark: bool) -> str:
    """Give the CSS declarations of all colours for one theme."""
    return " ".join(f"{variable(color)}: {DARK[color] if dark else color};" for color in DARK)
