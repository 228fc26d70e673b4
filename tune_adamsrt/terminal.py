"""What a person sees while a search runs: one live view on a terminal, plain lines in a file or a pipe.

Reads from top to bottom: what is shown of a search's Progress (render_*, pure), and TerminalView, which prints it. All
words of our own are ASCII, so that any encoding of the output can take them.
"""

import math
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from tune_adamsrt.formats import (
    format_duration,
    format_estimate,
    format_hyper_parameters,
    format_percent,
    format_seeds,
    format_spread,
    format_value,
    one_line,
)
from tune_adamsrt.progress import Progress
from tune_adamsrt.records import EpochReport, SearchInfo, SearchSummary, TrialRecord, TrialState

_LABEL_WIDTH = 8
_STATE_STYLES = {
    TrialState.COMPLETE: "green",
    TrialState.RUNNING: "cyan",
    TrialState.PAUSED: "blue",
    TrialState.STOPPED: "yellow",
    TrialState.FAILED: "red",
}
_QUIET_S = 300.0  # a log that has been silent for this long gets a line, so that nobody thinks that the search hangs


def render_heading(progress: Progress) -> str:
    """What is searched, how and where: "resnet20-digits/adamsrt   tpe/asha   2 x 1 CPU"; what was done before."""
    info = progress.info
    method = "/".join(info.tags[key] for key in ("sampler", "scheduler") if info.tags.get(key))
    if _is_confirmation(progress):
        method = "confirming on fresh seeds"
    where = [info.tags[key] for key in ("resources", "device") if info.tags.get(key)]
    unit = _unit(progress)
    of = "" if info.is_bound_by_epochs else f" of {info.trials}"
    before = f"resumed: {progress.ended_before}{of} {unit} ended before" if info.restored else ""
    return "   ".join(one_line(part) for part in (info.name, info.position, method, *where, before) if part)


def render_time_left(progress: Progress, now: float) -> str:
    """ "about 3 min left", "at most 5 min left" where only the time budget is known, or "time left -"."""
    if len(progress.ended) >= progress.info.trials:
        return f"all {_unit(progress)} ended"
    estimate, budget_left = progress.seconds_left(now), progress.budget_left(now)
    if estimate is not None:
        own, whole = f"about {format_estimate(estimate)} left", progress.campaign_seconds_left(now)
        return own if not progress.info.epochs_after or whole is None else f"{own}, all: about {format_estimate(whole)}"
    return "time left -" if budget_left is None else f"at most {format_estimate(budget_left)} left"


def render_best(progress: Progress, *, with_configuration: bool = True) -> str:
    """The best candidate, or until there is one the best running trial with the epoch it is at."""
    trial, so_far = progress.best, ""
    if trial is None:
        trial = progress.leader
        if trial is None:
            return "-"
        so_far = f" so far at epoch {trial.epoch}"
    if not with_configuration:
        return f"{format_percent(trial.value)}{so_far}"
    configuration = format_hyper_parameters(trial.hyper_parameters)
    return f"{format_percent(trial.value)}{so_far}  trial {trial.number}  {configuration}"


def render_standings(progress: Progress) -> str:
    """How the candidates of a confirmation compare so far: "trial 16 99.07 % +- 0.20 (2 seeds), trial 3 ..."."""
    means = [
        f"trial {number} {format_spread(spread)} ({spread.n} seed{'' if spread.n == 1 else 's'})"
        for number, spread in progress.standings
    ]
    return ", ".join(means) or "-"


def render_counts(progress: Progress, *, gap: int = 3) -> Text:
    """ "3 complete   2 running   5 stopped   0 failed"."""
    counts = [(state, len(progress.in_state(state))) for state in _STATE_STYLES]
    counts = [(state, count) for state, count in counts if count or state is not TrialState.PAUSED]
    parts = [Text(f"{count} {state}", style=_STATE_STYLES[state] if count else "dim") for state, count in counts]
    return Text(" " * gap).join(parts)


def render_speed(progress: Progress, now: float) -> str:
    """ "42 epochs/min   elapsed 1 min 40 s   about 3 min left"."""
    speed = progress.epochs_per_second(now)
    per_minute = "-" if speed is None else f"{60 * speed:.0f}" if 60 * speed >= 10 else f"{60 * speed:.2g}"
    budget = progress.info.time_budget_s
    elapsed = format_duration(progress.elapsed(now)) + (
        "" if budget is None else f" of at most {format_duration(budget)}"
    )
    return f"{per_minute} epochs/min   elapsed {elapsed}   {render_time_left(progress, now)}"


def render_bars(progress: Progress) -> Table:
    """Two lines: trials ended of all, epochs spent of the most that can be spent."""
    info = progress.info
    ended, spent, total = len(progress.ended), progress.epochs_spent, max(info.trials, len(progress.trials))
    bars = Table.grid(padding=(0, 1), expand=True)
    bars.add_column(width=_LABEL_WIDTH - 1, no_wrap=True, style="dim")
    bars.add_column(ratio=1)
    bars.add_column(no_wrap=True)
    most = max(1, info.max_epochs_spent)
    if info.is_bound_by_epochs:
        bars.add_row(_unit(progress), Text(""), str(ended))
    else:
        bars.add_row(_unit(progress), ProgressBar(total=max(1, total), completed=ended), f"{ended} of {total}")
    # stopped trials leave epochs unspent, so the search is done before this bar is full
    bars.add_row("epochs", ProgressBar(total=most, completed=spent), f"{spent} of at most {info.max_epochs_spent}")
    return bars


def render_running(progress: Progress, *, width: int, rows: int) -> list[Text]:
    """The running trials in at most `rows` lines, the heading included; columns that do not fit are left out."""
    running = sorted(progress.in_state(TrialState.RUNNING), key=lambda trial: trial.number)
    if not running or rows < 2:
        return []
    shown = running if len(running) < rows else running[: max(1, rows - 2)]
    names = list(dict.fromkeys(name for trial in shown for name in trial.hyper_parameters))
    seeds = ["seed"] if _is_confirmation(progress) else []
    table = [["trial", "epoch", "accuracy", *seeds, *names]]
    for trial in shown:
        accuracy = trial.epochs[-1].valid_accuracy if trial.epochs else None
        values = [
            format_value(trial.hyper_parameters[name]) if name in trial.hyper_parameters else "-" for name in names
        ]
        number = trial.number if trial.confirms is None else trial.confirms
        cells = [str(number), f"{trial.epoch}/{progress.info.epochs}", format_percent(accuracy)]
        table.append([*cells, *(str(trial.seed) for _ in seeds), *values])

    lines = [""] * len(table)
    for index, column in enumerate(zip(*table, strict=True)):
        size, gap = max(len(cell) for cell in column), 2 if index else 0
        room = width - len(lines[0]) - gap
        if size > room and max(len(cell) for cell in column[1:]) <= room and room >= 6:
            size = room  # the heading is cut, the values are whole
        if size > room:
            break
        for row, cell in enumerate(column):
            cell = cell if len(cell) <= size else cell[: size - 2] + ".."
            lines[row] += " " * gap + (cell.rjust(size) if index < 3 else cell.ljust(size))
    if len(shown) < len(running) and rows > 2:
        lines.append(f"and {len(running) - len(shown)} more")
    return [_line(line.rstrip(), style="dim" if row in (0, len(table)) else "") for row, line in enumerate(lines)]


def render_live(progress: Progress, now: float, *, width: int, height: int) -> Group:
    """The live view, in at most `height` lines as long as the terminal has about ten."""
    name, _, rest = render_heading(progress).partition("   ")
    heading = [_line(line) for line in _wrapped(f"{name}   {rest}".rstrip(), width)]
    heading[0].stylize("bold", 0, min(len(name), len(heading[0])))
    best = ("best", render_best(progress), "bold" if progress.best else "")
    label, text, style = ("means", render_standings(progress), "bold") if _is_confirmation(progress) else best
    below = [
        *_labelled(label, text, width, style=style),
        *_labelled("speed", render_speed(progress, now), width),
    ]
    counts = Text.assemble(" " * _LABEL_WIDTH, render_counts(progress), no_wrap=True, overflow="ellipsis")
    if counts.cell_len > width:
        counts = render_counts(progress, gap=1)
        counts.no_wrap, counts.overflow = True, "ellipsis"
    space = [Text("")] if height >= 20 else []  # parts the view from what is above it
    used = len(space) + len(heading) + len(below) + 3
    running = render_running(progress, width=width, rows=height - used - 2)  # an empty line, and one left free
    return Group(*space, *heading, render_bars(progress), counts, *below, *([Text("")] if running else []), *running)


def render_trial_line(progress: Progress, trial: TrialRecord, now: float) -> str:
    """One line for a trial that has ended, with how far the search is."""
    name = f"trial {str(trial.number).rjust(len(str(max(0, progress.info.trials - 1))))}"
    if trial.confirms is not None:
        name = one_line(trial.origin)
    at = f"at epoch {trial.epoch}"
    reason = one_line(trial.reason)
    configuration = format_hyper_parameters(trial.hyper_parameters)
    if trial.state is TrialState.FAILED:
        what = f"{at}: {reason or 'no reason given'}  {configuration}"
    elif trial.state is TrialState.STOPPED:
        what = f"{format_percent(trial.value)} {at}" + (f"  ({reason})" if reason else "")
    else:
        what = f"{format_percent(trial.value)} {at}  {configuration}"
    return f"{name} {trial.state:<8}  {what}   [{render_position(progress, now)}]"


def render_position(progress: Progress, now: float) -> str:
    """ "8/16 trials, 74/160 epochs, best 98.61 %, about 40 s left"."""
    info = progress.info
    best = [] if _is_confirmation(progress) else [f"best {render_best(progress, with_configuration=False)}"]
    ended = str(len(progress.ended))
    ended += "" if info.is_bound_by_epochs else f"/{max(info.trials, len(progress.trials))}"
    parts = [
        f"{ended} {_unit(progress)}",
        f"{progress.epochs_spent}/{info.max_epochs_spent} epochs",
        *best,
        render_time_left(progress, now),
    ]
    return ", ".join(parts)


def render_summary(info: SearchInfo, summary: SearchSummary) -> list[tuple[str, str]]:
    """What a search came to, as pairs of label and value; the first pair is its name and how it ended."""
    counts = {state: sum(trial.state is state for trial in summary.trials) for state in _STATE_STYLES}
    states = ", ".join(
        f"{count} {state}"
        for state, count in counts.items()
        if count or state not in (TrialState.RUNNING, TrialState.PAUSED)
    )
    confirmation = summary.confirmation
    others = "stopped and failed trials included"
    others += "" if confirmation is None else f", plus {confirmation.epochs_spent} to confirm"
    of_all = "" if info.is_bound_by_epochs else f" of {info.trials}"
    rows = [
        (info.name, f"{one_line(summary.ended_by)}, after {format_duration(summary.seconds)}"),
        ("trials", f"{len(summary.trials)}{of_all}: {states}"),
        (
            "epochs spent",
            f"{summary.epochs_spent} of at most {info.max_epochs_spent}, {others}",
        ),
    ]
    budget = f"the full budget of {info.epochs} epoch{'' if info.epochs == 1 else 's'}"
    best = summary.best
    if best is None:
        return [*rows, ("best", f"none: no trial reached {budget}")]
    rows.append(("validation accuracy", format_percent(best.value)))
    of = f"best of {summary.candidates} trial{'' if summary.candidates == 1 else 's'} at {budget}"
    rows.append(("best", f"trial {best.number}, {of}" + (f" ({one_line(best.origin)})" if best.origin else "")))
    if confirmation is not None and confirmation.candidate is not None:
        best = confirmation.candidate
        valid = confirmation.valid_accuracy
        rows.append(("confirmed", f"{format_spread(valid)} ({format_seeds(valid.n)}, trial {best.number})"))
    if confirmation is not None and confirmation.test_accuracies:
        rows.append(("test accuracy", format_spread(confirmation.test_accuracy)))
    rows += [(f"  {name}", format_value(value, exact=True)) for name, value in best.hyper_parameters.items()]
    return rows


def render_aligned(rows: Sequence[tuple[str, str]], *, width: int | None = None) -> list[str]:
    """ "label  value" lines with the values under each other, as they are or wrapped at spaces to a width."""
    size = max((len(label) for label, _ in rows), default=0)
    lines: list[str] = []
    for label, value in rows:
        parts = [value] if width is None else _wrapped(value, width - size - 2)
        lines += [f"{label:<{size}}  {parts[0]}", *[" " * (size + 2) + part for part in parts[1:]]]
    return lines


def rows_after_resize(lengths: Sequence[int], width: int) -> int:
    """Rows that lines of these lengths take where the terminal has wrapped them at a new width."""
    return sum(max(1, math.ceil(length / width)) for length in lengths)


def _is_confirmation(progress: Progress) -> bool:
    return progress.info.role == "confirmation"


def _unit(progress: Progress) -> str:
    return "runs" if _is_confirmation(progress) else "trials"


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(10, width), break_on_hyphens=False) or [""]


def _labelled(label: str, text: str, width: int, *, style: str = "") -> list[Text]:
    lines = _wrapped(text, width - _LABEL_WIDTH)
    labels = [label, *[""] * (len(lines) - 1)]
    pairs = [((part.ljust(_LABEL_WIDTH), "dim"), (line, style)) for part, line in zip(labels, lines, strict=True)]
    return [Text.assemble(*pair, no_wrap=True, overflow="ellipsis") for pair in pairs]


class TerminalView:
    """Shows a search to a person: an Observer, and what else the driver has to say.

    On a terminal one view is redrawn in place, and only new bests and failures leave a line above it. Elsewhere (a
    file, a pipe, TERM=dumb) every ended trial is one plain line without control characters. Output that can't be
    written any more (a closed pipe) is dropped: the search goes on, its results are in the study.

    Args:
        console: where to print; standard output by default.
        clock: seconds that never go back.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        # without the isatty, FORCE_COLOR (which CI systems set) would draw the live view into their logs
        self._console = console or Console(force_interactive=None if sys.stdout.isatty() else False)
        self._clock = clock
        self._progress: Progress | None = None
        self._info: SearchInfo | None = None  # of the search, also while its best are confirmed
        self._live: Live | None = None
        self._lock = threading.Lock()  # held to change _progress and to draw it; never while printing
        self._drawn_width = 0
        self._drawn_lengths: list[int] = []
        self._last_printed = clock()

    def search_started(self, info: SearchInfo) -> None:
        """Show a search, or the confirmation that follows it and belongs to the same summary."""
        if self._live is not None:
            self._live.transient = True
        self.close()
        if info.role == "search":
            self._info = info
        self._progress = Progress(info, started=self._clock())
        self._drawn_lengths = []
        if not self._console.is_interactive:
            at_most = "" if _is_confirmation(self._progress) else "at most "
            budget = f"{info.trials} {_unit(self._progress)} of {at_most}{info.epochs} epochs"
            if info.is_bound_by_epochs:
                budget = f"at most {info.max_epochs_spent} epochs in trials of at most {info.epochs}"
            self._print(Text(f"{render_heading(self._progress)}   {budget}"))
            return
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=2,
            redirect_stdout=sys.stdout.isatty(),  # a redirected stream stays redirected
            redirect_stderr=sys.stderr.isatty(),
        )
        self._safely(self._live.start)

    def trial_started(self, trial: TrialRecord) -> None:
        self._take(trial)

    def epoch_reported(self, trial: TrialRecord, report: EpochReport) -> None:
        self._take(trial, report)
        if self._live is None:
            self.refresh()

    def trial_ended(self, trial: TrialRecord) -> None:
        progress = self._progress
        if progress is None:
            return
        self._take(trial)
        if self._live is None:
            self._print(Text(render_trial_line(progress, trial, self._clock())))
        elif trial.state is TrialState.FAILED:
            name = f"trial {trial.number}" if trial.confirms is None else one_line(trial.origin)
            what = f"{name} failed at epoch {trial.epoch}: {one_line(trial.reason) or 'no reason given'}"
            self._print(Text(f"{what}  {format_hyper_parameters(trial.hyper_parameters)}", style="red"), wrap=True)
        elif trial is progress.best and trial.confirms is None:
            self._print(Text(f"new best  {render_best(progress)}", style="green"), wrap=True)

    def search_ended(self, summary: SearchSummary) -> None:
        """Take the live view away and print what the search came to."""
        info = self._info
        if self._live is not None:
            self._live.transient = True
        self.close()
        self._progress = self._info = None
        if info is None:
            return
        (name, how), *rows = render_summary(info, summary)
        self._print(Text.assemble("\n", (name, "bold"), f": {how}"))
        for line in render_aligned(rows, width=self._console.width if self._console.is_interactive else None):
            self._print(Text(line))

    def show_where(self, lines: Sequence[tuple[str, str]]) -> None:
        """Print labelled paths and commands, one per line, whole and as they are, so that they can be copied."""
        self._print(Text(""))
        for line in render_aligned(lines):
            self._print(Text(line))

    def warn(self, message: str) -> None:
        """Print a warning, in one line, above the live view."""
        self._print(Text(f"warning: {one_line(message)}", style="yellow"))

    def note(self, message: str) -> None:
        """Print something worth knowing, in one line, above the live view."""
        self._print(Text(one_line(message)))

    def refresh(self) -> None:
        """Bring the view up to date; where there is none, print a line if nothing was printed for minutes."""
        now = self._clock()
        if self._live is not None:
            self._safely(self._live.refresh)
        elif self._progress is not None and now - self._last_printed >= _QUIET_S:
            running = len(self._progress.in_state(TrialState.RUNNING))
            self._print(Text(f"{running} running   [{render_position(self._progress, now)}]"))

    def close(self) -> None:
        """Give the terminal back. Safe to call twice; notes and warnings can still be printed."""
        live, self._live = self._live, None
        if live is not None:
            self._safely(live.stop)

    def _take(self, trial: TrialRecord, report: EpochReport | None = None) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.trials[trial.number] = trial
                if report is not None:
                    self._progress.add_report(self._clock(), report.seconds)

    def _draw(self) -> RenderableType:
        width, height = self._console.size
        with self._lock:
            if self._progress is None:
                return Text("")
            view = render_live(self._progress, self._clock(), width=width, height=height)
            if width < self._drawn_width:
                # The terminal has wrapped the lines of the last drawing. rich goes up as many rows as it has drawn, so
                # clear the others here.
                extra = rows_after_resize(self._drawn_lengths, width) - len(self._drawn_lengths)
                row = (ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1))
                self._console.control(Control(*row * extra))
            lines = self._console.render_lines(view, self._console.options, pad=False)
            self._drawn_width, self._drawn_lengths = width, [Segment.get_line_length(line) for line in lines]
        return view

    def _print(self, text: Text, *, wrap: bool = False) -> None:
        encoding = self._console.encoding
        text.plain = text.plain.encode(encoding, "replace").decode(encoding)
        if not self._console.is_interactive:
            text = Text(text.plain)  # FORCE_COLOR would print the styles
        self._last_printed = self._clock()
        if self._live is not None:
            self._safely(self._live.refresh)  # notices a resize before anything is drawn above the view
        self._safely(lambda: self._console.print(text, soft_wrap=not (wrap and self._console.is_interactive)))

    def _safely(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, SystemExit):  # rich exits on a closed pipe
            self._console.quiet = True
