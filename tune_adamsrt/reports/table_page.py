"""A comparison as files: an HTML page with its figures, and the table in every format."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pyarrow.parquet as pq
from markupsafe import Markup

import adamsrt
from tune_adamsrt.reports.chart import (
    GRID,
    MUTED,
    PAGE,
    TEXT,
    Chart,
    render_inline_svg,
    render_png,
    render_svg,
    theme_variables,
    variable,
)
from tune_adamsrt.reports.comparison_table import Comparison
from tune_adamsrt.reports.table_figures import comparison_charts
from tune_adamsrt.reports.table_formats import (
    build_arrow_table,
    render_csv,
    render_html_remarks,
    render_html_table,
    render_latex,
    render_markdown,
)
from tune_adamsrt.results import replaced
from tune_adamsrt.studies import StoredSearch

TEXT_FORMATS = {"md": render_markdown, "tex": render_latex, "csv": render_csv}
SUFFIXES = (*TEXT_FORMATS, "parquet")

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tune_adamsrt.reports", ""),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


def render_table_page(
    comparison: Comparison,
    charts: Mapping[str, Sequence[Chart]],
    *,
    created: datetime.datetime,
    has_files: bool = True,
) -> str:
    """Render the page.

    Args:
        charts: per setting.
        created: when, with its time zone.
        has_files: the figures are beside the page as well.
    """
    sections = [
        {
            "setting": setting,
            "figures": [
                {
                    "key": f"s{place}f{index}",
                    "chart": chart,
                    "svg": Markup(render_inline_svg(chart, f"s{place}f{index}")),  # escaped when it was rendered
                    "path": _figure_path(setting, chart),
                }
                for index, chart in enumerate(of_setting)
                if chart.figure is not None
            ],
            "undrawn": [chart for chart in of_setting if chart.figure is None],
        }
        for place, (setting, of_setting) in enumerate(charts.items())
    ]
    page: str = _TEMPLATES.get_template("table_page.html").render(
        created=created.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=adamsrt.__version__,
        has_files=has_files,
        light=theme_variables(dark=False),
        dark=theme_variables(dark=True),
        page_color=variable(PAGE),
        text_color=variable(TEXT),
        muted_color=variable(MUTED),
        line_color=variable(GRID),
        table=Markup(render_html_table(comparison)),
        remarks=Markup(render_html_remarks(comparison)),
        sections=sections,
        suffixes=SUFFIXES,
    )
    return page + "\n"


def write_comparison(
    folder: Path, comparison: Comparison, searches: Sequence[StoredSearch], *, with_figures: bool = True
) -> Path:
    """Write table.html, its figures, and the table as .md, .tex, .csv and .parquet; each is replaced as a whole.

    Args:
        searches: those that the cells come from.
        with_figures: write these as files as well.
    Returns:
        The page's path. Raises OSError.
    """
    charts = {
        column.setting: comparison_charts([search for search in searches if search.info.setting == column.setting])
        for column in comparison.columns
    }
    for setting, of_setting in charts.items():
        for chart in of_setting:
            if chart.figure is not None and with_figures:
                for suffix, content in (
                    (".png", render_png(chart.figure)),
                    (".svg", render_svg(chart.figure).encode()),
                ):
                    with replaced(folder / f"{_figure_path(setting, chart)}{suffix}") as temporary:
                        temporary.write_bytes(content)
    for suffix, render in TEXT_FORMATS.items():
        _write_text(folder / f"table.{suffix}", render(comparison))
    with replaced(folder / "table.parquet") as temporary:
        pq.write_table(build_arrow_table(comparison), temporary, compression="zstd")
    page = folder / "table.html"
    created = datetime.datetime.now(datetime.UTC)
    _write_text(page, render_table_page(comparison, charts, created=created, has_files=with_figures))
    return page


def _figure_path(setting: str, chart: Chart) -> str:
    return f"figures/{setting}-{chart.name}"


def _write_text(path: Path, text: str) -> None:
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
