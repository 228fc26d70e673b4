"""A search as seen from another terminal: `python -m tune_adamsrt.status [--watch]`.

    study storage -> the search, or the confirmation of its best -> how its driver stands -> the search's own view

Reads only: neither the storage nor the driver notice.
"""

import signal

if __name__ == "__main__":
    # The imports below take a second: Ctrl-C meanwhile ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tune_adamsrt.cluster.job import run_quietly
from tune_adamsrt.cluster.jobs import Jobs, read_token
from tune_adamsrt.cluster.tunnel import check_cluster_file, reaching, run_in_terminal
from tune_adamsrt.command_line import leave, without_options
from tune_adamsrt.driver import Driver, describe_driver, resume_command
from tune_adamsrt.progress import Progress
from tune_adamsrt.standing import Stand, build_progress, load_stand, newest_search, summarize
from tune_adamsrt.storage import StudyError, open_storage
from tune_adamsrt.studies import load_search
from tune_adamsrt.terminal_text import (
    render_aligned,
    render_best,
    render_counts,
    render_heading,
    render_live,
    render_position,
    render_running,
    render_speed,
    render_standings,
    render_summary,
)

DEFAULT_OUTPUT = "runs"
REFRESH_S = 2.0
DONE, USER_ERROR = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code: 0, or 2 (a user's mistake)."""
    arguments = parse_arguments(argv)
    if arguments.cluster is not None:
        return show_there(arguments, sys.argv[1:] if argv is None else argv)
    folder = Path(DEFAULT_OUTPUT if "://" in arguments.output else arguments.output).expanduser().resolve()
    console = Console(force_interactive=None if sys.stdout.isatty() else False)
    try:
        storage = open_storage(arguments.study_storage or str(folder / "optuna.journal"), must_exist=True)
        study_name = arguments.study or newest_search(storage)
        study_name = load_search(storage, study_name).confirms or study_name
        view = StatusView(
            lambda: load_stand(storage, study_name, folder=folder),
            resume_options=storage_options(arguments),
            console=console,
        )
        if arguments.watch:
            view.watch()
        else:
            view.show()
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it exits
    return DONE


def show_there(arguments: argparse.Namespace, typed: Sequence[str]) -> int:
    """Show the search that runs on a cluster, as this command shows it on the cluster's head. Returns its exit code."""
    command = ["python", "-m", "tune_adamsrt.head_job", "status", *without_options(typed, "--cluster")]
    try:
        file = check_cluster_file(arguments.cluster)
        if arguments.watch:
            if not (sys.stdout.isatty() and sys.stdin.isatty()):
                raise ValueError("--watch must have a terminal with --cluster, got none; leave it out")
            run_in_terminal(file, command)
            return DONE
        with reaching(file, None) as reach:
            code, text = run_quietly(Jobs(reach, token=read_token()), command, of="status")
        print(text, end="")
        return code
    except (ValueError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return DONE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(USER_ERROR)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse; a bad option ends the process with one line and exit code 2."""
    parser = _Parser(
        prog="python -m tune_adamsrt.status",
        description="Show a running or finished search from its study: trials, epochs, the best so far, time left.",
    )
    parser.add_argument("--study", metavar="NAME", help="of the search (default: the one that started last)")
    parser.add_argument(
        "--output", default=DEFAULT_OUTPUT, metavar="DIR", help=f"of the search (default: {DEFAULT_OUTPUT})"
    )
    parser.add_argument(
        "--study-storage", metavar="URL", help="journal file or database (default: OUTPUT/optuna.journal)"
    )
    parser.add_argument("--cluster", metavar="FILE", help="of `ray up`: show what runs on that cluster, over SSH")
    parser.add_argument("--watch", action="store_true", help=f"refresh every {REFRESH_S:g} s until the search ends")
    return parser.parse_args(argv)


def storage_options(arguments: argparse.Namespace) -> list[str]:
    """The options that name the same storage on the search's command line."""
    options = ["--output", arguments.output] if arguments.output != DEFAULT_OUTPUT else []
    return options + (["--study-storage", arguments.study_storage] if arguments.study_storage else [])


class StatusView:
    """Shows one search of a storage, once or until it ends.

    Args:
        load: reads how it stands.
        resume_options: name the storage on the search's command line.
    """

    def __init__(self, load: Callable[[], Stand], *, resume_options: Sequence[str], console: Console) -> None:
        self._load = load
        self._resume_options = resume_options
        self._console = console

    def show(self) -> None:
        """Print how the search stands now."""
        stand, now = self._load(), time.time()
        is_interactive = self._console.is_interactive
        lines: list[str] = []
        if stand.driver is Driver.ENDED:
            (name, how), *rows = render_summary(stand.search.info, summarize(stand))
            self._print(Text.assemble((name, "bold"), f": {how}"))
            lines = render_aligned(rows, width=self._console.width if is_interactive else None)
        elif is_interactive and stand.driver is not Driver.LOST:
            width, height = self._console.size
            self._console.print(render_live(build_progress(stand.stage, stand.driver), now, width=width, height=height))
        else:
            lines = render_plain(build_progress(stand.stage, stand.driver), now, stand.driver)
        where = [("study", stand.search.info.study_name), ("driver", describe_driver(stand.stage, stand.driver, now))]
        if stand.driver is not Driver.RUNNING and stand.is_unfinished:
            where.append(("to go on", resume_command(stand.search, self._resume_options)))
        for line in [*lines, "", *render_aligned(where)]:  # whole, so that the command can be copied
            self._print(Text(line))

    def watch(self) -> None:
        """Show the search anew every two seconds until it ends, then what it came to.

        In a file or a pipe it is one line whenever a trial has ended.
        """
        if self._console.is_interactive:
            with Live(console=self._console, screen=True, auto_refresh=False) as live:
                while (stand := self._going_on()) is not None:
                    live.update(self._draw(stand), refresh=True)
                    time.sleep(REFRESH_S)
        else:
            shown = None
            while (stand := self._going_on()) is not None:
                progress = build_progress(stand.stage, stand.driver)
                if shown != (progress.info.study_name, len(progress.ended)):
                    shown = (progress.info.study_name, len(progress.ended))
                    self._print(Text(render_position(progress, time.time())))
                    sys.stdout.flush()
                time.sleep(REFRESH_S)
        self.show()

    def _going_on(self) -> Stand | None:
        stand = self._load()
        return None if stand.driver in (Driver.ENDED, Driver.LOST) else stand

    def _draw(self, stand: Stand) -> RenderableType:
        """What fills the screen."""
        width, height = self._console.size
        now = time.time()
        view = render_live(build_progress(stand.stage, stand.driver), now, width=width, height=max(1, height - 2))
        below = f"{describe_driver(stand.stage, stand.driver, now)}   Ctrl-C leaves; the search goes on"
        return Group(view, Text(""), Text(below, style="dim", no_wrap=True, overflow="crop"))

    def _print(self, text: Text) -> None:
        encoding = self._console.encoding
        text.plain = text.plain.encode(encoding, "replace").decode(encoding)
        self._console.print(text if self._console.is_interactive else Text(text.plain), soft_wrap=True)


def render_plain(progress: Progress, now: float, driver: Driver) -> list[str]:
    """How a search stands as plain lines, for a file or a pipe."""
    info = progress.info
    of_all = "" if info.is_bound_by_epochs else f" of {max(info.trials, len(progress.trials))}"
    is_confirmation = info.role == "confirmation"
    rows = [
        (
            "runs" if is_confirmation else "trials",
            f"{len(progress.ended)}{of_all}: {', '.join(render_counts(progress).plain.split('   '))}",
        ),
        ("epochs", f"{progress.epochs_spent} of at most {info.max_epochs_spent}"),
        ("means", render_standings(progress)) if is_confirmation else ("best", render_best(progress)),
    ]
    rows += [("speed", render_speed(progress, now))] if driver is not Driver.LOST else []
    running = [line.plain for line in render_running(progress, width=1000, rows=1000)]
    return [render_heading(progress), *render_aligned(rows), *([""] if running else []), *running]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    leave(main())
