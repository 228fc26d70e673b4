"""A comparison as text, Markdown, LaTeX, an HTML fragment, CSV and Parquet. Pure: each gives text or a table.

Accuracies are in percent wherever a person reads them, and fractions in CSV and Parquet.
"""

import csv
import html
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from tune_adamsrt.records import Spread
from tune_adamsrt.reports.comparison import Cell
from tune_adamsrt.reports.comparison_table import SOURCE, Column, Comparison

NOTHING = "-"
PUBLISHED_EPOCHS = 405


def render_text(comparison: Comparison, *, width: int = 100) -> list[str]:
    """Plain ASCII lines; settings that do not fit side by side come below each other."""
    heads, rows = _grid(comparison, lambda cell, is_bold: _spread(cell.test_accuracy) + (" *" if is_bold else "  "))
    published = _published_rows(comparison)
    below = "; as published in parentheses" if any(any(row) for row in published.values()) else ""
    lines = [f"test accuracy in %, mean +- std over seeds{below}", ""]
    both = [row for name, *row in rows for row in ([name, *row], ["", *published[name]]) if any(row)]
    lines += _side_by_side(heads, both, width)
    lines += ["", "budget: trials, epochs of the search + epochs to confirm", ""]
    lines += _side_by_side(*_grid(comparison, lambda cell, is_bold: _budget(cell)), width)
    lines += ["", "*  " + comparison.method, *_remarks(comparison)]
    return lines


def render_markdown(comparison: Comparison) -> str:
    """GitHub's Markdown: the accuracies, the budgets, the remarks."""

    def cell_text(cell: Cell, is_bold: bool) -> str:
        ours = _spread(cell.test_accuracy, "±")
        published = comparison.published.get((cell.setting, cell.optimizer))
        return (f"**{ours}**" if is_bold else ours) + (f" (published {_spread(published, '±')})" if published else "")

    def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        escaped = [[cell.replace("|", "\\|") for cell in row] for row in [heads, *rows]]
        lines = [f"| {' | '.join(row)} |" for row in escaped]
        return [lines[0], "|" + "---|" * len(heads), *lines[1:]]

    parts = [
        "Test accuracy in %, mean ± standard deviation over seeds.",
        "\n".join(table(*_grid(comparison, cell_text))),
        "Budget: trials, epochs of the search + epochs to confirm.",
        "\n".join(table(*_grid(comparison, lambda cell, is_bold: _budget(cell)))),
        f"Bold: {comparison.method}",
        "\n".join(f"- {line}" for line in _remarks(comparison)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_latex(comparison: Comparison) -> str:
    """A `table` for the booktabs package; published values in a line of their own, in parentheses."""
    heads, rows = _grid(
        comparison,
        lambda cell, is_bold: ("$\\mathbf{%s}$" if is_bold else "$%s$") % _spread(cell.test_accuracy, r"\pm"),
    )
    published = _published_rows(comparison, lambda spread: f"$({_spread(spread, chr(92) + 'pm')})$")
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'c' * len(comparison.columns)}}}",
        r"\toprule",
        " & ".join(["optimizer", *(_latex(head) for head in heads[1:])]) + r" \\",
        r"\midrule",
    ]
    for name, *cells in rows:
        lines.append(" & ".join([_latex(name), *cells]) + r" \\")
        if any(published[name]):
            lines.append(" & ".join(["", *published[name]]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    caption = "Test accuracy in \\%, mean $\\pm$ standard deviation over seeds"
    caption += f"; in parentheses as published in {SOURCE}. " if any(any(row) for row in published.values()) else ". "
    caption += f"Bold: {_latex(comparison.method)}"
    if refused := [column.setting for column in comparison.columns if column.refusals]:
        caption += f" Trained under unequal protocols, hence not compared: {_latex(', '.join(refused))}."
    lines += [f"\\caption{{{caption}}}", r"\end{table}"]
    lines += [f"% {line}" for line in _remarks(comparison)]
    return "\n".join(lines) + "\n"


def render_html_table(comparison: Comparison) -> str:
    """A `<table>` to be put into a page; published values and budgets are below each accuracy."""
    heads = "".join(f'<th scope="col">{html.escape(_head(column))}</th>' for column in comparison.columns)
    rows = []
    for name in comparison.optimizers:
        cells = "".join(_html_cell(comparison, column, name) for column in comparison.columns)
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    return (
        "<table>\n<caption>Test accuracy in %, mean ± standard deviation over seeds</caption>\n"
        f'<thead><tr><th scope="col">optimizer</th>{heads}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>"
    )


def render_html_remarks(comparison: Comparison) -> str:
    """A paragraph and a list: how the bold ones were found, what is not compared, what a reader must know."""
    remarks = "".join(f"<li>{html.escape(line)}</li>\n" for line in _remarks(comparison))
    return f"<p><strong>Bold</strong>: {html.escape(comparison.method)}</p>\n" + (
        f"<ul>\n{remarks}</ul>" if remarks else ""
    )


def _html_cell(comparison: Comparison, column: Column, name: str) -> str:
    cell = column.cells.get(name)
    published = comparison.published.get((column.setting, name))
    below = f"<small>published {_spread(published, '±')}</small>" if published else ""
    if cell is None:
        return f"<td>{NOTHING}{'<br>' + below if below else ''}</td>"
    ours = _spread(cell.test_accuracy, "±")
    ours = f"<strong>{ours}</strong>" if name in column.bold else ours
    details = f"<small>{html.escape(_budget(cell))}</small>"
    return f"<td>{'<br>'.join(part for part in (ours, below, details) if part)}</td>"


# --- for programs ------------------------------------------------------------------------------------------------


def _field(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={"description": description})


SCHEMA = pa.schema(
    [
        _field("setting", pa.string(), "a model on a dataset"),
        _field("optimizer", pa.string(), ""),
        _field("test_mean", pa.float64(), "test accuracy in [0, 1], mean over seeds"),
        _field("test_std", pa.float64(), "its standard deviation (n - 1); null for one seed"),
        _field("valid_mean", pa.float64(), "validation accuracy in [0, 1], mean over the same seeds"),
        _field("valid_std", pa.float64(), "its standard deviation (n - 1); null for one seed"),
        _field("seeds", pa.list_(pa.int64()), "of the confirmation"),
        _field("test_accuracies", pa.list_(pa.float64()), "one per seed, in the order of seeds"),
        _field("is_best", pa.bool_(), "the highest mean of its setting; null where the setting must not be compared"),
        _field("is_bold", pa.bool_(), "the best, or not significantly worse; null where it must not be compared"),
        _field("corrected_p_to_best", pa.float64(), "after Holm's correction; null for the best, or without a test"),
        _field("test", pa.string(), "welch or paired"),
        _field("alpha", pa.float64(), "below which a corrected p is significant"),
        _field("published_mean", pa.float64(), f"test accuracy in [0, 1] as published in {SOURCE}; null without one"),
        _field("published_std", pa.float64(), "its standard deviation"),
        _field("epochs", pa.int64(), "full budget of a trial"),
        _field("trials", pa.int64(), "started by the search"),
        _field("search_epochs_spent", pa.int64(), "stopped and failed trials included"),
        _field("search_epochs_allowed", pa.int64(), "the most that the search was allowed"),
        _field("confirm_epochs_spent", pa.int64(), "by all runs of the confirmation"),
        _field("study", pa.string(), "name of the Optuna study"),
        _field("trial", pa.int64(), "number of the confirmed trial"),
        _field("refusals", pa.list_(pa.string()), "why the setting must not be compared"),
        _field("flags", pa.list_(pa.string()), "what a reader must know of the setting"),
    ]
)


def build_arrow_table(comparison: Comparison) -> pa.Table:
    """Give one row per cell, setting by setting."""
    rows = [
        _row(comparison, column, column.cells[name])
        for column in comparison.columns
        for name in comparison.optimizers
        if name in column.cells
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def render_csv(comparison: Comparison) -> str:
    """The columns of `build_arrow_table` as CSV; the parts of a list are parted by semicolons."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, SCHEMA.names, lineterminator="\n")
    writer.writeheader()
    for row in build_arrow_table(comparison).to_pylist():
        writer.writerow({k: "; ".join(str(part) for part in v) if isinstance(v, list) else v for k, v in row.items()})
    return buffer.getvalue()


def _row(comparison: Comparison, column: Column, cell: Cell) -> dict[str, Any]:
    name = cell.optimizer
    published = comparison.published.get((cell.setting, name))
    to_best = {
        other: found.corrected_p
        for found in column.tests
        for other in ({found.first, found.second} - {column.best})
        if column.best in (found.first, found.second)
    }
    many = len(cell.test) > 1
    return {
        **{
            key: getattr(cell, key)
            for key in ("setting", "optimizer", "epochs", "trials", "search_epochs_spent", "search_epochs_allowed")
        },
        "test_mean": cell.test_accuracy.mean,
        "test_std": cell.test_accuracy.std if many else None,
        "valid_mean": cell.valid_accuracy.mean,
        "valid_std": cell.valid_accuracy.std if many else None,
        "seeds": list(cell.seeds),
        "test_accuracies": [cell.test[seed] for seed in cell.seeds],
        "is_best": name == column.best if column.best else None,
        "is_bold": name in column.bold if column.best else None,
        "corrected_p_to_best": to_best.get(name),
        "test": str(comparison.test),
        "alpha": comparison.alpha,
        "published_mean": published.mean if published else None,
        "published_std": published.std if published else None,
        "confirm_epochs_spent": cell.confirm_epochs_spent,
        "study": cell.study,
        "trial": cell.trial,
        "refusals": list(column.refusals),
        "flags": list(column.flags),
    }


# --- shared by the renderings ------------------------------------------------------------------------------------


def _grid(comparison: Comparison, render: Callable[[Cell, bool], str]) -> tuple[list[str], list[list[str]]]:
    """Headings and one row per optimizer, each cell as `render(cell, is_bold)` gives it."""
    heads = ["optimizer", *(_head(column) for column in comparison.columns)]
    rows = [
        [name, *(render(c.cells[name], name in c.bold) if name in c.cells else NOTHING for c in comparison.columns)]
        for name in comparison.optimizers
    ]
    return heads, rows


def _head(column: Column) -> str:
    return column.setting + (" (not compared)" if column.refusals else "")


def _published_rows(
    comparison: Comparison, render: Callable[[Spread], str] = lambda spread: f"({_spread(spread)})"
) -> dict[str, list[str]]:
    return {
        name: [
            render(published) if (published := comparison.published.get((column.setting, name))) else ""
            for column in comparison.columns
        ]
        for name in comparison.optimizers
    }


def _spread(spread: Spread, sign: str = "+-") -> str:
    """ "94.92 +- 0.05" in percent; without a deviation for a single seed."""
    mean = f"{100 * spread.mean:.2f}"
    return mean if spread.n == 1 else f"{mean} {sign} {100 * spread.std:.2f}"


def _budget(cell: Cell) -> str:
    seeds = len(cell.test)
    what = f"{seeds} seed{'' if seeds == 1 else 's'}"
    return f"{cell.trials} trials, {cell.search_epochs_spent} + {cell.confirm_epochs_spent} epochs, {what}"


def _remarks(comparison: Comparison) -> list[str]:
    """How each setting was trained, refusals and flags, then what the published values are and how they rank."""
    lines = []
    for column in comparison.columns:
        if not column.refusals:
            lines.append(f"{column.setting}: {_training(column)}")
        lines += [f"{column.setting} is not compared: {line}" for line in column.refusals]
        lines += [f"{column.setting}: {line}" for line in column.flags]
        lines += [f"{column.setting}: {line}" for line in _orders(comparison, column)]
    if any(comparison.published.get((c.setting, name)) for c in comparison.columns for name in comparison.optimizers):
        lines.append(
            f"Published values: {SOURCE}, under its own protocol ({PUBLISHED_EPOCHS} epochs, all training images); "
            "shown, never tested against."
        )
    return lines


def _training(column: Column) -> str:
    """ "every run trained for 405 epochs in batches of 128 on all training images"; says so where that is reduced."""
    cell = next(iter(column.cells.values()))
    limit = cell.protocol.get("limit_train_examples")
    images = "all training images" if limit is None else f"{limit} training images only"
    batches = f" in batches of {cell.protocol['batch_size']}" if "batch_size" in cell.protocol else ""
    return f"every run trained for {cell.epochs} epochs{batches} on {images}"


def _orders(comparison: Comparison, column: Column) -> list[str]:
    """The order of the means beside that of the published ones, over the optimizers that have both."""
    published = {name: comparison.published.get((column.setting, name)) for name in column.cells}
    theirs = {name: found.mean for name, found in published.items() if found is not None}
    if column.refusals or len(theirs) < 2:
        return []
    ours = {name: column.cells[name].test_accuracy.mean for name in theirs}
    pairs = list(itertools.combinations(theirs, 2))
    agree = sum((ours[a] - ours[b]) * (theirs[a] - theirs[b]) > 0 for a, b in pairs)
    reduced = column.cells[next(iter(theirs))]
    is_reduced = reduced.epochs < PUBLISHED_EPOCHS or reduced.protocol.get("limit_train_examples") is not None
    note = "; this is a reduced run, which need not rank optimizers as the published one does" if is_reduced else ""
    both = f"{_ranked(ours)}; as published: {_ranked(theirs)}"
    return [f"order of the means: {both} ({agree} of {len(pairs)} pairs agree){note}"]


def _ranked(means: Mapping[str, float]) -> str:
    return " > ".join(sorted(means, key=lambda name: -means[name]))


def _side_by_side(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Align a table; where it is too wide, its columns come in blocks, each with the first column."""
    sizes = [max(len(row[index]) for row in [heads, *rows]) for index in range(len(heads))]
    blocks: list[list[int]] = [[]]
    for index in range(1, len(heads)):
        if blocks[-1] and sizes[0] + sum(2 + sizes[other] for other in [*blocks[-1], index]) > width:
            blocks.append([])
        blocks[-1].append(index)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        for row in [heads, *rows]:
            lines.append("  ".join(row[index].ljust(sizes[index]) for index in [0, *block]).rstrip())
    return lines


def _latex(text: str) -> str:
    return "".join("\\" + char if char in "&%$#_{}" else char for char in text)
