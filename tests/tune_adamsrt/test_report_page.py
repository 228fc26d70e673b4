"""The page: what stands in it, that it is well-formed and asks nobody for anything, and that its script works."""

import dataclasses
import datetime
import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from stored_searches import make_stored, make_stored_trial

from tune_adamsrt.records import TrialState
from tune_adamsrt.reports.figures import best_so_far, ends_per_rung, importance, learning_curves
from tune_adamsrt.reports.page import DrawnSearch, render_page

COMPLETE, STOPPED, FAILED = TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED
CREATED = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Reads a page strictly: every tag that opens closes in its place. Keeps tables, ids and whatever is linked."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.links, self.text, self.tables, self.tags = [], [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        assert len(known) == len(attributes), f"an attribute of {tag} stands twice"
        self.tags.append(tag)
        self.ids += [known["id"]] if "id" in known else []
        self.links += [known[name] for name in ("href", "src", "xlink:href") if name in known]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if {"style", "script"}.isdisjoint(self.open):
            self.text.append(data)
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def search():
    return make_stored(
        make_stored_trial(0, COMPLETE, [0.5, 0.6, 0.7, 0.8]),
        make_stored_trial(1, STOPPED, [0.4, 0.5], reason="rung 1 (epoch 2): rank 2 of 2, the best 1 went on"),
        make_stored_trial(2, COMPLETE, [0.5, 0.7, 0.8, 0.9], epochs_repeated=1),
        make_stored_trial(3, FAILED, [0.3, math.nan], reason="diverged"),
    )


def render(*searches, charts=(learning_curves, ends_per_rung, importance), **changes):
    drawn = [DrawnSearch(search, [chart(search) for chart in charts], **changes) for search in searches]
    comparisons = [best_so_far(searches)] if len(searches) > 1 else []
    return render_page(drawn, comparisons, created=CREATED)


def words_of(page):
    return " ".join(" ".join(Reader(page).text).split())


def test_the_page_is_well_formed_and_holds_all_it_needs(search):
    page = render(search, dataclasses.replace(search, info=dataclasses.replace(search.info, name="another")))
    reader = Reader(page)
    assert not re.search(r"https?:|//\w+\.\w+/|@import|url\((?!#)", page)
    assert all(link.startswith("#") or not re.match(r"\w+:|/", link) for link in reader.links)
    assert {"link", "img", "iframe", "object"}.isdisjoint(reader.tags)
    assert "default-src 'none'" in page
    assert len(reader.ids) == len(set(reader.ids)) and reader.tags.count("svg") == 5
    for name in re.findall(r'aria-labelledby="([^"]+)"', page):
        assert name in reader.ids


def test_what_a_person_asks_first_stands_on_top(search):
    words = words_of(render(search))
    for part in (
        "resnet20-digits/adamsrt",
        "written 2026-01-02 03:04 UTC",
        "90.00 % validation accuracy of trial 2 (sampled by tpe), the best of 2 trials trained in full",
        "lr=0.003 betas=(0.9, 0.99) weight_decay=0.0001",
        "ended: all trials done; started 2026-01-01 00:00 UTC, the last run took 1 min 05 s",
        "4 of 4: 2 complete, 1 stopped, 1 failed",
        "13 of at most 16, those of stopped and failed trials included; 1 of them were trained twice",
        "resnet20 on digits, 4 epochs, batch size 32",
        "sampler tpe, scheduler asha, rungs after epochs 2",
        "search 7, split of the data",
        "torch 2.15.0",
        "One seed. Every configuration was trained once",
        "the largest of 2, chosen on the images that it was measured on",
        "Not drawn: needs at least 10 trials",
    ):
        assert part in words, part
    assert "lies within" not in words


def test_the_table_holds_the_trials_the_best_first(search):
    [table] = Reader(render(search)).tables
    assert table[0] == [
        *("trial", "outcome", "value (%)", "epochs", "lr", "beta1", "beta2", "weight_decay"),
        *("valid. loss", "seed", "origin", "reason"),
    ]
    assert [row[:4] for row in table[1:]] == [
        ["2", "complete", "90.00", "4"],
        ["0", "complete", "80.00", "4"],
        ["1", "stopped", "50.00", "2"],
        ["3", "failed", "nan", "2"],
    ]
    assert table[1][4:] == ["0.003", "0.9", "0.99", "0.0001", "0.1", "102", "sampled by tpe", ""]


def test_without_candidates_nothing_is_best(search):
    trials = [trial for trial in search.trials if trial.state is not COMPLETE]
    running = make_stored(*trials, make_stored_trial(4, TrialState.RUNNING, [0.9]))
    words = words_of(render(dataclasses.replace(running, ended_at=None, ended_by=None)))
    assert "no result yet" in words and "No trial has been trained in full" in words
    assert "it still runs, or its driver was lost" in words and "0 complete, 1 stopped, 1 failed, 1 running" in words
    assert "One seed" not in words and "may still change" in words


def test_a_best_at_the_edge_of_the_space_is_said():
    point = {"lr": 0.03, "betas": (0.9, 0.99), "weight_decay": 0.0}
    words = words_of(render(make_stored(make_stored_trial(0, COMPLETE, [0.5] * 4, hyper_parameters=point))))
    assert "lr = 0.03 lies within 2% of the upper edge" in words


def test_a_confirmed_search_shows_its_test_accuracy(search):
    runs = [
        make_stored_trial(i, COMPLETE, [value] * 4, seed=900 + i // 2, confirms=confirms)
        for i, (confirms, value) in enumerate([(0, 0.85), (2, 0.82), (0, 0.87), (2, 0.84)])
    ]
    confirmation = dataclasses.replace(make_stored(*runs), confirms="x", test_accuracies={0: [0.8125, 0.8325]})
    page = render(search, confirmations=[confirmation])
    words = words_of(page)
    assert (
        "82.25 % ± 1.41 test accuracy of trial 0, trained again on 2 fresh seeds (mean and standard deviation); "
        "the best by validation accuracy (86.00 % ± 1.41) of 2 confirmed"
    ) in words
    assert "In the search: 90.00 %, validation accuracy of trial 2" in words
    assert "lr=0.001 betas=(0.9, 0.99)" in words and "One seed" not in words
    _, again = Reader(page).tables
    assert again[0][3] == "test accuracy (%)" and [row[3] for row in again[1:]] == ["83.25", "81.25", "", ""]


def test_names_and_reasons_are_escaped():
    evil = '"><script>alert(1)</script>&'
    trials = [
        make_stored_trial(0, COMPLETE, [0.5] * 4, origin=evil),
        make_stored_trial(1, FAILED, [0.5], reason=evil),
    ]
    searches = [make_stored(*trials, name=evil, optimizer="adam", study_name=name) for name in (evil, "b")]
    page = render(*searches)
    assert "<script>alert" not in page and html.escape("<script>alert(1)</script>&") in page
    assert Reader(page).tags.count("script") == 1


def test_each_search_has_a_section_and_a_row(search):
    other = make_stored(make_stored_trial(0, COMPLETE, [0.6] * 4), optimizer="adam")
    reader = Reader(render(search, other))
    overview, *tables = reader.tables
    assert [row[:7] for row in overview[1:]] == [
        ["resnet20-digits/adamsrt", "90.00", "2", "1", "1", "0", "13"],
        ["resnet20-digits/adam", "60.00", "1", "0", "0", "0", "4"],
    ]
    assert [len(table) for table in tables] == [5, 2]


DRIVE = """
<script>
const table = document.querySelector("table"), heads = [...table.tHead.rows[0].cells];
const column = (index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
const click = (name) => heads.find((head) => head.textContent === name).querySelector("button").click();
const seen = {buttons: heads.filter((head) => head.querySelector("button")).length};
const look = (key, name) => {
  click(name);
  seen[key] = [column(0).join(" "), heads.map((head) => head.ariaSort ?? "").join("")];
};
look("value", "value (%)"); look("valueAgain", "value (%)"); look("trial", "trial"); look("origin", "origin");
seen.width = window.innerWidth;
seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.background = getComputedStyle(document.body).backgroundColor;
parent.postMessage(JSON.stringify(seen), "*");
</script>"""

# Headless Chromium's own window is 500 pixels wide at least.
PHONE = """<!doctype html><body><script>onmessage = (event) => { document.body.dataset.seen = event.data; };</script>
<iframe src="page.html" style="width: 375px; height: 700px; border: 0"></iframe></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_in_a_dark_browser_on_a_phone_tables_sort_and_nothing_is_wider_than_the_page(tmp_path):
    trials = [
        make_stored_trial(0, COMPLETE, [0.8] * 4, origin="c"),
        make_stored_trial(9, COMPLETE, [0.85] * 4, origin="a"),
        make_stored_trial(10, STOPPED, [0.09] * 2, origin="b"),
        make_stored_trial(2, FAILED, [math.nan], origin="a"),
    ]
    (tmp_path / "page.html").write_text(render(make_stored(*trials)).replace("</body>", DRIVE + "</body>"))
    (tmp_path / "phone.html").write_text(PHONE)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    options += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, *options, "--blink-settings=preferredColorScheme=0", (tmp_path / "phone.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', done.stdout)[1]))
    assert seen.pop("buttons") == 12
    assert seen.pop("value") == ["9 0 10 2", "descending"], "NaN comes last"
    assert seen.pop("valueAgain") == ["10 0 9 2", "ascending"], "NaN comes last, again"
    assert seen.pop("trial") == ["0 2 9 10", "ascending"], "as numbers"
    assert seen.pop("origin") == ["2 9 10 0", "ascending"], "equal ones stay in their order"
    assert seen == {"width": 375, "wide": 0, "background": "rgb(20, 23, 28)"}
