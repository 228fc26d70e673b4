"""The report: `python -m tune_adamsrt.report --setting resnet20-digits --out report`.

    study storage -> StoredSearch -> charts -> index.html, figures/*.png and *.svg, trials.parquet, epochs.parquet

A search may be reported on at any time, also while it runs.
"""

import argparse
import dataclasses
import datetime
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from optuna.storages import BaseStorage

from adamsrt.registry import unknown_name_message
from tune_adamsrt.arguments import DEFAULT_OUTPUT, Parser
from tune_adamsrt.campaign import studies_of
from tune_adamsrt.candidates import is_confirmation
from tune_adamsrt.command_line import leave
from tune_adamsrt.paths import short_path
from tune_adamsrt.plan import local_folder
from tune_adamsrt.reports.chart import Chart, render_png, render_svg
from tune_adamsrt.reports.comparison import load_cells
from tune_adamsrt.reports.comparison_table import build_comparison, load_published
from tune_adamsrt.reports.figures import best_so_far, search_charts
from tune_adamsrt.reports.page import DrawnSearch, figure_path, render_page
from tune_adamsrt.reports.significance import Test
from tune_adamsrt.reports.table_formats import render_text
from tune_adamsrt.reports.table_page import write_comparison
from tune_adamsrt.results import replaced, write_tables
from tune_adamsrt.storage import StudyError, open_storage
from tune_adamsrt.studies import StoredSearch, confirmations_of, load_search

DONE, USER_ERROR, INTERRUPTED = 0, 2, 130

DESCRIPTION = """\
Write what searches came to as one HTML page, with the same figures as PNG and SVG and the same data as Parquet files.

Without --study and --setting: the newest study of every search in the storage. A search may still be running.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, 2 (a user's mistake), 130 (interrupted)."""
    arguments = parse_arguments(argv)
    try:
        location = str(arguments.study_storage or local_folder(arguments.output) / "optuna.journal")
        storage = open_storage(location, must_exist=True)
        if arguments.table:
            write_table(
                arguments.out,
                storage,
                choose_studies(storage, arguments),
                test=Test(arguments.test),
                with_figures=not arguments.no_figures,
            )
            return DONE
        searches = [load_search(storage, name) for name in choose_studies(storage, arguments)]
        confirmations = {name: confirmations_of(storage, name) for name in (s.info.study_name for s in searches)}
        if not any(search.trials for search in searches):
            names = ", ".join(search.info.study_name for search in searches)
            raise StudyError(f"a report needs at least one trial, {names} has none yet; wait for the first")
        with_figures = not arguments.no_figures
        page = write_report(arguments.out, searches, confirmations=confirmations, with_figures=with_figures)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        print(
            f"error: {arguments.out} must be writable ({error.strerror or error}); choose another --out",
            file=sys.stderr,
        )
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    print(f"report   {page}")
    if with_figures:
        print(f"figures  {page.parent / 'figures'}")
    print(f"tables   {page.parent / 'trials.parquet'}, {page.parent / 'epochs.parquet'}")
    return DONE


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse; a bad option ends the process with one line and exit code 2."""
    parser = Parser(
        prog="python -m tune_adamsrt.report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--study", action="append", metavar="NAME", help="a study; repeatable")
    which.add_argument(
        "--setting", action="append", metavar="NAME", help="the newest study of each optimizer on it; repeatable"
    )
    which.add_argument("--campaign", metavar="NAME", help="all searches of a campaign")
    parser.add_argument(
        "--output", default=DEFAULT_OUTPUT, metavar="DIR", help="the --output of the searches (default: runs)"
    )
    parser.add_argument(
        "--study-storage", metavar="URL", help="journal file or database (default: OUTPUT/optuna.journal)"
    )
    parser.add_argument("--out", default=Path("report"), type=Path, metavar="DIR", help="default: report")
    parser.add_argument(
        "--table",
        action="store_true",
        help="compare the optimizers on the test set instead: table.html, .md, .tex, .csv and .parquet",
    )
    parser.add_argument("--no-figures", action="store_true", help="no files of figures; the page has them in any case")
    parser.add_argument(
        "--test",
        choices=[str(test) for test in Test],
        default=Test.WELCH,
        help="of --table: welch, or paired over common seeds (default: welch)",
    )
    return parser.parse_args(argv)


def write_table(
    folder: Path,
    storage: BaseStorage,
    studies: Sequence[str],
    *,
    test: Test = Test.WELCH,
    with_figures: bool = True,
) -> None:
    """Print the comparison of searches and write it into a folder. Raises StudyError, ValueError or OSError."""
    cells, left_out = load_cells(storage, studies)
    comparison = build_comparison(cells, published=load_published(), test=test)
    for line in [*render_text(comparison, width=shutil.get_terminal_size().columns), "", *left_out]:
        print(line)
    searches = [load_search(storage, cell.study) for cell in cells]
    page = write_comparison(folder, comparison, searches, with_figures=with_figures)
    print(f"table    {short_path(page)}, table.md, .tex, .csv and .parquet beside it")


def choose_studies(storage: BaseStorage, arguments: argparse.Namespace) -> list[str]:
    """Give the studies to report on: those named, else the newest of each search. Raises StudyError."""
    if arguments.study:
        return list(dict.fromkeys(arguments.study))
    if arguments.campaign:
        return studies_of(storage, arguments.campaign)
    newest: dict[tuple[str, str], tuple[float, str]] = {}
    for study in storage.get_all_studies():
        if "description" not in study.user_attrs or is_confirmation(study.study_name):
            continue
        space = json.loads(study.user_attrs["description"])["space"]
        age = (study.user_attrs.get("search", {}).get("started_at") or 0.0, study.study_name)
        key = (space["setting"], space["optimizer"])
        newest[key] = max(age, newest.get(key, age))
    if not newest:
        raise StudyError("a report needs a study, this storage has none; name another with --output or --study-storage")
    settings = arguments.setting or [setting for setting, _ in newest]
    known = sorted({setting for setting, _ in newest})
    for setting in settings:
        if setting not in known:
            raise StudyError(unknown_name_message("setting with studies", setting, known))
    return [name for key, (_, name) in sorted(newest.items()) if key[0] in settings]


def write_search_report(folder: Path, storage: BaseStorage, study_name: str) -> tuple[Path, list[Path]]:
    """Write the report of one search, and of what confirmed it.

    Returns:
        The page, and what is worth keeping with the search elsewhere: page, figures and tables.
    Raises:
        StudyError, OSError.
    """
    search = load_search(storage, study_name)
    page = write_report(folder, [search], confirmations={study_name: confirmations_of(storage, study_name)})
    return page, [
        page,
        *sorted((folder / "figures").glob("*.png")),
        folder / "trials.parquet",
        folder / "epochs.parquet",
    ]


def write_report(
    folder: Path,
    searches: Sequence[StoredSearch],
    *,
    confirmations: Mapping[str, Sequence[StoredSearch]] = MappingProxyType({}),
    with_figures: bool = True,
) -> Path:
    """Write page, figures and tables into a folder, each file as a whole, the page last.

    Args:
        confirmations: of each search, the newest last (see `confirmations_of`), by the name of its study.
        with_figures: as files as well; the page has them in any case.
    Returns:
        The page's path. Raises OSError.
    """
    comparisons = [
        _named(best_so_far(of_setting), setting)
        for setting in dict.fromkeys(search.info.setting for search in searches)
        if len(of_setting := [search for search in searches if search.info.setting == setting]) > 1
    ]
    drawn = [
        DrawnSearch(
            search,
            [_named(chart, search.info.study_name if len(searches) > 1 else "") for chart in search_charts(search)],
            confirmations.get(search.info.study_name, ()),
        )
        for search in searches
    ]
    page = render_page(drawn, comparisons, created=datetime.datetime.now(datetime.UTC), has_files=with_figures)
    for chart in [*comparisons, *(chart for search in drawn for chart in search.charts)]:
        if chart.figure is not None and with_figures:
            for suffix, content in ((".png", render_png(chart.figure)), (".svg", render_svg(chart.figure).encode())):
                with replaced(folder / f"{figure_path(chart)}{suffix}") as temporary:
                    temporary.write_bytes(content)
    write_tables(folder, [*searches, *(run for runs in confirmations.values() for run in runs)])
    with replaced(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "index.html"


def _named(chart: Chart, owner: str) -> Chart:
    """The chart under a name that tells it from those of other searches, where there are any."""
    return dataclasses.replace(chart, name=f"{owner}-{chart.name}") if owner else chart


if __name__ == "__main__":
    leave(main())
