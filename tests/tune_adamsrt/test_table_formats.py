"""A comparison as text, Markdown, LaTeX, HTML, CSV and Parquet: the same figures in each."""

import csv
import io
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from comparison_cells import SETTING, make_cell

from tune_adamsrt.records import Spread
from tune_adamsrt.reports.comparison_table import build_comparison
from tune_adamsrt.reports.table_formats import (
    build_arrow_table,
    render_csv,
    render_html_remarks,
    render_html_table,
    render_latex,
    render_markdown,
    render_text,
)

DIGITS = "resnet20-digits"


@pytest.fixture
def comparison():
    """Two settings: one with a published value, and one without an optimizer and with unequal protocols."""
    cells = [
        make_cell("adam", 93.0, 93.1, 93.2),
        make_cell("sgd", 95.0, 95.1, 95.3),
        make_cell("sgdmrt", 95.1, 95.2, 95.0),
        make_cell("adam", 99.0, setting=DIGITS),
        make_cell("sgd", 98.0, setting=DIGITS, protocol=make_cell("sgd", 98.0).protocol | {"epochs": 10}),
    ]
    return build_comparison(cells, published={(SETTING, "adam"): Spread(0.9377, 0.002, 0)})


def test_text_is_ascii_and_fits_a_width_where_it_can(comparison):
    lines = render_text(comparison, width=45)
    text = "\n".join(lines)
    assert text.isascii()
    assert re.search(r"^adam +93\.10 \+- 0\.10$", text, re.MULTILINE)
    assert re.search(r"^ +\(93\.77 \+- 0\.20\)$", text, re.MULTILINE)
    assert re.search(r"^sgd +95\.13 \+- 0\.15 \*$", text, re.MULTILINE)
    assert re.search(r"^sgdmrt +95\.10 \+- 0\.10 \*$", text, re.MULTILINE)
    assert re.search(r"^adam +99\.00$", text, re.MULTILINE), "one seed has no deviation"
    assert "64 trials, 10000 + 3645 epochs, 3 seeds" in text
    assert "resnet20-digits is not compared: unequal epochs: 405 (adam), 10 (sgd)" in text
    table = lines[1 : lines.index("budget: trials, epochs of the search + epochs to confirm")]
    assert max(len(line) for line in table) <= 45
    assert len([line for line in render_text(comparison, width=200) if line.startswith("optimizer")]) == 2, (
        "side by side"
    )


def test_every_format_says_how_runs_were_trained_and_how_the_published_ones_rank():
    published = {
        (SETTING, name): Spread(mean, 0.001, 0) for name, mean in (("adam", 0.93), ("adams", 0.94), ("sgd", 0.95))
    }
    cells = [make_cell("adam", 93.0, 93.2), make_cell("adams", 95.0, 95.2), make_cell("sgd", 94.0, 94.2)]
    whole = "\n".join(render_text(build_comparison(cells, published=published)))
    assert f"{SETTING}: every run trained for 405 epochs on all training images\n" in whole
    order = "order of the means: adams > sgd > adam; as published: sgd > adams > adam (2 of 3 pairs agree)"
    assert f"{SETTING}: {order}\n" in whole
    reduced = [
        make_cell(cell.optimizer, *(100 * value for value in cell.test.values()), epochs=10,
                  protocol=cell.protocol | {"epochs": 10, "limit_train_examples": 2000, "batch_size": 128})
        for cell in cells
    ]  # fmt: skip
    comparison = build_comparison(reduced, published=published)
    for text in (render_markdown(comparison), render_latex(comparison), render_html_remarks(comparison)):
        assert "every run trained for 10 epochs in batches of 128 on 2000 training images only" in text
        assert "this is a reduced run, which need not rank optimizers as the published one does" in text
    alone = "\n".join(render_text(build_comparison(reduced, published={(SETTING, "adam"): Spread(0.93, 0.001, 0)})))
    assert "order of the means" not in alone


def test_markdown_is_two_whole_tables(comparison):
    text = render_markdown(comparison)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {4} and len(rows) == 2 * (2 + 3)
    assert "| adam | 93.10 ± 0.10 (published 93.77 ± 0.20) | 99.00 |" in text
    assert "| sgd | **95.13 ± 0.15** | 98.00 |" in text
    assert "| sgdmrt | **95.10 ± 0.10** | - |" in text
    assert "| optimizer | resnet18-cifar10 | resnet20-digits (not compared) |" in text
    assert "Holm's correction" in text and "Welch" in text


def test_latex_is_balanced_and_escaped(comparison):
    text = render_latex(comparison)
    lines = text.splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert all(line.endswith(r"\\") and line.count("&") == 2 for line in body)
    assert r"sgd & $\mathbf{95.13 \pm 0.15}$ & $98.00$ \\" in body
    assert r" & $(93.77 \pm 0.20)$ &  \\" in body
    assert text.count("{") == text.count("}")
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
    caption = next(line for line in lines if line.startswith(r"\caption"))
    assert not re.search(r"(?<!\\)[%&#_]", caption)
    assert "hence not compared: resnet20-digits." in caption
    assert all(line.startswith("%") for line in lines[lines.index(r"\end{table}") + 1 :])


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.strong, self.cells = [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)
        self.cells += tag in ("td", "th")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "strong" in self.open:
            self.strong.append(data)


def test_html_is_well_formed_and_marks_what_is_bold(comparison):
    tags = Tags()
    tags.feed(render_html_table(comparison))
    assert tags.open == [] and tags.cells == 3 * 4
    assert tags.strong == ["95.13 ± 0.15", "95.10 ± 0.10"]
    tags = Tags()
    tags.feed(render_html_remarks(comparison))
    assert tags.open == []


def test_html_escapes_what_others_wrote():
    cell = make_cell("adam", 93.0, edges=("<script>",))
    assert "<script>" not in render_html_remarks(build_comparison([cell], published={}))


def test_arrow_holds_every_cell_with_its_test(comparison, tmp_path):
    table = build_arrow_table(comparison)
    pq.write_table(table, tmp_path / "table.parquet")
    read = pq.read_table(tmp_path / "table.parquet")
    assert read.schema.equals(table.schema) and read.schema.field("test_mean").metadata[b"description"]
    rows = {(row["setting"], row["optimizer"]): row for row in read.to_pylist()}
    assert len(rows) == 5
    sgd, adam = rows[SETTING, "sgd"], rows[SETTING, "adam"]
    assert (sgd["is_best"], sgd["is_bold"], sgd["corrected_p_to_best"]) == (True, True, None)
    assert (adam["is_best"], adam["is_bold"]) == (False, False) and 0 < adam["corrected_p_to_best"] < 0.05
    assert adam["test_mean"] == pytest.approx(0.931) and adam["test_accuracies"] == pytest.approx([0.93, 0.931, 0.932])
    assert adam["published_mean"] == 0.9377 and sgd["published_mean"] is None
    digits = rows[DIGITS, "adam"]
    assert (digits["is_best"], digits["is_bold"], digits["test_std"]) == (None, None, None)
    assert digits["refusals"] == ["unequal epochs: 405 (adam), 10 (sgd)"]


def test_csv_is_the_same_table(comparison):
    table = build_arrow_table(comparison)
    rows = list(csv.DictReader(io.StringIO(render_csv(comparison))))
    assert len(rows) == table.num_rows and list(rows[0]) == table.schema.names
    assert [float(row["test_mean"]) for row in rows] == table["test_mean"].to_pylist()
    assert rows[0]["seeds"] == "1; 2; 3" and rows[3]["test_std"] == ""
    assert pa.types.is_list(table.schema.field("seeds").type)
