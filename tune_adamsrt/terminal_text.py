"""What a person is shown of a search's Progress, as text. Pure.

All words of our own are ASCII, so that any encoding of the output can take them.
"""

import math
import textwrap
from collections.abc import Sequence

from rich.console import Group
from rich.progress_bar import ProgressBar
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
from tune_adamsrt.records import SearchInfo, SearchSummary, TrialRecord, TrialState

_LABEL_WIDTH = 8


_STATE_STYLES = {
    TrialState.COMPLETE: "green",
    TrialState.RUNNING: "cyan",
    TrialState.PAUSED: "blue",
    TrialState.STOPPED: "yellow",
    TrialState.FAILED: "red",
}


def render_heading(progress: Progress) -> str:
    """What is searched, how and where: "resnet20-digits/adamsrt   tpe/asha   2 x 1 CPU"; what was done before."""
    info = progress.info
    method = "/".join(info.tags[key] for key in ("sampler", "scheduler") if info.tags.get(key))
    if is_confirmation(progress):
        method = "confirming on fresh seeds"
    where = [info.tags[key] for key in ("resources", "device") if info.tags.get(key)]
    unit = unit_of(progress)
    of = "" if info.is_bound_by_epochs else f" of {info.trials}"
    before = f"resumed: {progress.ended_before}{of} {unit} ended before" if info.restored else ""
    return "   ".join(one_line(part) for part in (info.name, info.position, method, *where, before) if part)


def render_time_left(progress: Progress, now: float) -> str:
    """ "about 3 min left", "at most 5 min left" where only the time budget is known, or "time left -"."""
    if len(progress.ended) >= progress.info.trials:
        return f"all {unit_of(progress)} ended"
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
        bars.add_row(unit_of(progress), Text(""), str(ended))
    else:
        bars.add_row(unit_of(progress), ProgressBar(total=max(1, total), completed=ended), f"{ended} of {total}")
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
    seeds = ["seed"] if is_confirmation(progress) else []
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
    label, text, style = ("means", render_standings(progress), "bold") if is_confirmation(progress) else best
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
    best = [] if is_confirmation(progress) else [f"best {render_best(progress, with_configuration=False)}"]
    ended = str(len(progress.ended))
    ended += "" if info.is_bound_by_epochs else f"/{max(info.trials, len(progress.trials))}"
    parts = [
        f"{ended} {unit_of(progress)}",
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


def is_confirmation(progress: Progress) -> bool:
    return progress.info.role == "confirmation"


def unit_of(progress: Progress) -> str:
    return "runs" if is_confirmation(progress) else "trials"


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(10, width), break_on_hyphens=False) or [""]


def _labelled(label: str, text: str, width: int, *, style: str = "") -> list[Text]:
    lines = _wrapped(text, width - _LABEL_WIDTH)
    labels = [label, *[""] * (len(lines) - 1)]
    pairs = [((part.ljust(_LABEL_WIDTH), "dim"), (line, style)) for part, line in zip(labels, lines, strict=True)]
    return [Text.assemble(*pair, no_wrap=True, overflow="ellipsis") for pair in pairs]
