"""The one script that measures on a GPU: every line of it that can run without one does so here.

Its figures mean nothing here; that a mistake in it does not waste the one chance on a GPU is what counts.
"""

import ast
import importlib
import json
import operator
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_graphs, gpu_kernels
from benchmarks.gpu_aims import AIMS, CHECKS, render_aims, render_checks
from benchmarks.gpu_device import Device
from benchmarks.gpu_process import run_section
from benchmarks.gpu_report import Report
from benchmarks.gpu_section import DIED, MARK, Bench, Part, run_parts
from benchmarks.gpu_training import BATCH_SIZE, Arm, build_step, is_replayed, small_models, spec_of

REPOSITORY = Path(__file__).parents[2]
# What the aims and checks of a section begin with.
GIVES = {
    "graphs": ("graph/",),
    "epochs": ("epoch/",),
    "steps": ("step/", "step as a graph/"),
    "slots": ("slots/", "slots against no graph/"),
    "start": ("start/",),
    "data": ("data/",),
    "memory": ("memory/",),
}
KEYS = {each.key for each in (*AIMS, *CHECKS)}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run_here(section, **options):
    """Give what a section says when it is run in this process."""
    records = []
    bench = Bench("cpu", small=True, say=lambda record: records.append(json.loads(json.dumps(record))), **options)
    parts = importlib.import_module(f"benchmarks.gpu_{section}").PARTS
    with small_models(True):
        status = run_parts(parts, bench, clean_up=Device("cpu").clean_up)
    assert status == 0 and records[-1] == {"kind": "end"}
    assert [record["name"] for record in records if record["kind"] == "part"] == [part.name for part in parts]
    return records


def keys_of(records):
    return {record["key"] for record in records if record["kind"] in ("figure", "check")}


@pytest.mark.parametrize("section", [name for name in gpu.SECTIONS if name != "kernels"])
def test_a_section_gives_its_rows_and_all_of_its_aims_and_checks(section):
    records = run_here(section)
    assert [record for record in records if record["kind"] == "error"] == []
    assert [record["text"] for record in records if record["kind"] == "note" and "NOT MEASURED" in record["text"]] == []
    assert keys_of(records) == {key for key in KEYS if key.startswith(GIVES.get(section, ("none",)))}
    assert all(record["holds"] for record in records if record["kind"] == "check")
    report = Report(None)
    for record in records:
        report.take(record)  # a row has as many cells as its table has columns
    columns = 0
    for record in records:
        columns = len(record["columns"]) if record["kind"] == "table" else columns
        assert record["kind"] != "row" or len(record["cells"]) == columns
    if section != "machine":
        assert any(record["kind"] in ("row", "check") for record in records)


@pytest.mark.slow(seconds=15)
def test_the_command_runs_the_kernels_writes_files_and_says_what_it_has_not_measured(tmp_path):
    """The kernels by Triton's interpreter, which only a process of its own can have."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--sections", "machine", "kernels"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    log = (tmp_path / "log.txt").read_text()
    assert (done.returncode, done.stderr) == (0, ""), log
    raw = json.loads((tmp_path / "raw.json").read_text())
    assert [record for record in raw["records"] if record["kind"] == "error"] == [], log
    assert raw["machine"]["torch"] == torch.__version__ and raw["machine"]["copy, TB/s"]
    assert raw["checks"].keys() == {key for key in KEYS if key.startswith("formulas/")}
    assert raw["figures"].keys() == {key for key in KEYS if key.startswith("error/")}, "all kernels were interpreted"
    assert (tmp_path / "table.md").read_text().strip() in done.stdout
    assert "    not measured  epoch of ResNet18: at most 0.7 s" in done.stdout.splitlines()
    assert "    not measured  batches have the same bits on CPU and GPU" in done.stdout.splitlines()


def test_the_command_ends_in_its_time_and_says_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--out", str(tmp_path)]
    start = time.monotonic()
    done = subprocess.run([*command, "--time-limit", "0.2"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - start < 20
    assert (done.returncode, done.stderr) == (0, "")
    assert "NOT MEASURED: machine, start: the time for everything was over" in done.stdout
    assert "NOT MEASURED: arms, all of it: no time was left" in done.stdout
    assert done.stdout.count("    not measured  ") == len(AIMS) + len(CHECKS)
    assert json.loads((tmp_path / "raw.json").read_text())["figures"] == {}


def test_without_a_gpu_there_is_one_line():
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, gpu.NO_GPU)


def test_a_part_that_raises_costs_itself_only():
    def break_down(bench):
        bench.note("begun")
        raise ValueError("the reason\nmore of it")

    records = []
    bench = Bench("cpu", say=records.append)
    parts = [Part("first", break_down), Part("second", lambda bench: bench.check("key", True, "seen"))]
    assert run_parts(parts, bench, clean_up=lambda: None) == 0
    assert {"kind": "error", "part": "first", "text": "ValueError: the reason"} in records
    assert keys_of(records) == {"key"} and records[-1] == {"kind": "end"}


def test_a_gpu_that_takes_nothing_any_more_ends_the_process_after_what_it_broke_in():
    def refuse():
        raise RuntimeError("an illegal memory access was encountered")

    records = []
    assert run_parts([Part("a", lambda bench: None)] * 2, Bench("cpu", say=records.append), clean_up=refuse) == DIED
    assert [record["kind"] for record in records] == ["part", "done"]


CHILD = f"""
import json, os, sys, time
def say(**record): print({MARK!r} + json.dumps(record), flush=True)
behaviour = sys.argv[1].split(",")
print("a library says something")
for index in range(int(sys.argv[2]), len(behaviour)):
    say(kind="part", index=index, name=behaviour[index], limit_s=0.5 if behaviour[index] == "hangs" else 60)
    say(kind="note", text=f"begun {{index}}", raw={{}})
    if behaviour[index] == "crashes": os.kill(os.getpid(), 9)
    if behaviour[index] == "hangs": time.sleep(60)
    say(kind="done", part=behaviour[index], seconds=0)
    if behaviour[index] == "leaves": sys.exit({DIED})
say(kind="end")
"""


def run_child(behaviour, tmp_path, seconds=60.0):
    records, commands = [], []

    def command_from(first):
        commands.append(first)
        return [sys.executable, "-c", CHILD, behaviour, str(first)]

    with (tmp_path / "log.txt").open("w") as log:
        run_section(command_from, records.append, log=log, deadline=time.monotonic() + seconds)
    return records, commands


@pytest.mark.parametrize(
    ("behaviour", "begun_at", "failed"),
    [
        ("works,works", [0], {}),
        ("works,crashes,works", [0, 2], {"crashes": "its process died (status -9); see the log"}),
        ("hangs,works", [0, 1], {"hangs": "it took longer than its limit"}),
        ("leaves,works", [0, 1], {}),
        ("works,leaves", [0, 2], {}),
    ],
)
def test_another_process_goes_on_with_the_next_part(behaviour, begun_at, failed, tmp_path):
    records, commands = run_child(behaviour, tmp_path)
    assert commands == begun_at
    assert {each["part"]: each["text"] for each in records if each["kind"] == "error"} == failed
    texts = [record["text"] for record in records if record["kind"] == "note"]
    assert texts == [f"begun {index}" for index in range(len(behaviour.split(",")))], "what was said before is kept"
    assert records[-1] == {"kind": "end"}
    assert "a library says something" in (tmp_path / "log.txt").read_text()


def test_time_ends_for_everything(tmp_path):
    start = time.monotonic()
    records, commands = run_child("works,hangs,works", tmp_path, seconds=0.4)
    assert time.monotonic() - start < 10
    errors = [record["text"] for record in records if record["kind"] == "error"]
    assert errors == ["the time for everything was over"] and commands == [0]


def test_a_process_that_cannot_start_is_told_and_not_tried_again(tmp_path):
    records = []
    with (tmp_path / "log.txt").open("w") as log:
        command = [sys.executable, "-c", "raise SystemExit(3)"]
        run_section(lambda first: command, records.append, log=log, deadline=time.monotonic() + 60)
    assert records == [{"kind": "error", "part": "start", "text": "its process died (status 3); see the log"}]


def test_aims_and_checks_are_told_by_what_was_seen(tmp_path, capsys):
    assert len(KEYS) == len(AIMS) + len(CHECKS), "every key is there once"
    values = {"epoch/resnet18": [0.9, 0.6, 0.7], "epoch/vgg16": [0.41], "data/rate": [29.0, 31.0, 32.0]}
    lines = [line for line in render_aims(values) if not line.startswith("not measured")]
    assert lines == [
        "met           epoch of ResNet18: 0.7 [0.6, 0.9], n = 3; aim at most 0.7 s",
        "missed        epoch of VGG16: 0.41 [0.41, 0.41], n = 1; aim at most 0.4 s",
        "met           images per second and core: 31 [29, 32], n = 3; aim at least 30 of the published pipeline's",
    ]
    assert len(render_aims({})) == len(AIMS)
    report = Report(tmp_path / "new")
    report.begin("data", "Data")
    for holds, seen in ((True, "first"), (False, "second")):
        report.take({"kind": "check", "key": "data/bits", "holds": holds, "seen": seen})
    report.take({"kind": "check", "key": "start/bits", "holds": True, "seen": "losses equal"})
    assert report.has_failed
    report.end(1.0)
    printed = capsys.readouterr().out
    assert "    FAILED        batches have the same bits on CPU and GPU: second\n" in printed
    assert (
        "    holds         a training in the memory of another is a fresh one, bit for bit: losses equal\n" in printed
    )
    assert json.loads((tmp_path / "new" / "raw.json").read_text())["checks"]["data/bits"] == [
        [True, "first"],
        [False, "second"],
    ]
    missed = Report(None)
    missed.take({"kind": "figure", "key": "epoch/vgg16", "values": [9.0]})
    assert not missed.has_failed, "an aim that is missed is no error"
    assert sum(line.startswith("not measured") for line in render_checks({})) == len(CHECKS)


def test_rows_after_a_paragraph_get_a_heading_again(capsys):
    report = Report(None)
    table = {"kind": "table", "title": "Times", "columns": ["a", "b"]}
    row = {"kind": "row", "cells": ["1", "2"], "raw": {}}
    for record in (table, row, table, row, {"kind": "error", "part": "p", "text": "t"}, table, row):
        report.take(record)
    assert [line for line in capsys.readouterr().out.splitlines() if line] == [
        *("Times", "| a | b |", "|---|---|", "| 1 | 2 |", "| 1 | 2 |"),
        "NOT MEASURED: , p: t",
        *("Times", "| a | b |", "|---|---|", "| 1 | 2 |"),
    ]


def test_steps_that_do_not_follow_the_formulas_fail(monkeypatch):
    monkeypatch.setattr(gpu_kernels, "largest_errors", lambda *arguments, **options: (1e-12, 1e-5))
    monkeypatch.setattr(gpu_kernels, "why_not_fused", lambda kernel, device: None)
    records = []
    gpu_kernels.compare("adamsrt", Bench("cpu", small=True, say=records.append))
    failed = [record["seen"] for record in records if record["kind"] == "check" and not record["holds"]]
    assert failed == [f"{way} 1.0e-05" for way in gpu_kernels.WAYS]


def test_graphs_that_give_other_epochs_fail(monkeypatch):
    """As with a learning rate that is not dropped, and sums that do not begin anew."""
    before, plain = torch.zeros(3), torch.ones(3)
    wrong = [
        (torch.full((3,), 1.1), [(2.0, 0.5), (1.0, 0.5)]),
        (plain, [(2.0, 0.5), (3.0, 0.5)]),
        (plain, [(2.0, 0.5), (1.0, 0.25)]),
    ]
    for weights, results in wrong:
        given = iter([(before, plain, [(2.0, 0.5), (1.0, 0.5)]), (before, weights, results)])
        monkeypatch.setattr(gpu_graphs, "train", lambda *arguments, given=given, **options: next(given))
        records = []
        gpu_graphs.compare_epochs("adamsrt", Bench("cpu", small=True, say=records.append))
        assert [record["holds"] for record in records if record["kind"] == "check"] == [False]


def test_what_is_compared_is_what_a_search_trains():
    spec = spec_of("resnet18", "cuda")
    assert (spec.dataset, spec.precision, spec.batch_size, spec.cuda_graph) == ("cifar10", "bf16", BATCH_SIZE, True)
    with small_models(True):
        plain, step = build_step("resnet18", Arm("bf16", graph=True), "cpu", lr=0.1)
    assert step is plain and not is_replayed(step), "nothing is captured on a CPU"
    with small_models(True):
        from adamsrt.graph import GraphedStep

        assert not is_replayed(GraphedStep(plain, BATCH_SIZE)), "nothing is replayed before it was captured"


class FakeGPU:
    """As much of torch.cuda as `Device` asks for, on a clock of its own; it keeps what is done in which order."""

    def __init__(self):
        self.log, self.now_ms = [], 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at_ms = gpu.now_ms

            def synchronize(self):
                gpu.log.append("wait for event")

            def elapsed_time(self, end):
                return end.at_ms - self.at_ms

        class Stream:
            def wait_stream(self, other):
                gpu.log.append("wait for stream")

        class CUDAGraph:
            def replay(self):
                gpu.log.append("replay")

        class Within:
            def __init__(self, what):
                self.name = type(what).__name__

            def __enter__(self):
                gpu.log.append(f"on {self.name}")

            def __exit__(self, *error):
                gpu.log.append("off")

        main = Stream()
        self.names = {
            **{"Event": Event, "Stream": Stream, "CUDAGraph": CUDAGraph, "graph": Within, "stream": Within},
            "is_initialized": lambda: True,
            "current_stream": lambda: main,
            "synchronize": lambda: gpu.log.append("synchronize"),
            "set_sync_debug_mode": gpu.log.append,
            "memory_allocated": lambda: 7,
            "max_memory_allocated": lambda: 8,
            "max_memory_reserved": lambda: 9,
            "reset_peak_memory_stats": lambda: gpu.log.append("reset peak"),
            "empty_cache": lambda: gpu.log.append("empty cache"),
        }

    def take(self):
        self.log.append("take")
        self.now_ms += 2.0


def test_the_device_times_captures_and_counts_on_a_gpu(monkeypatch):
    fake, device = FakeGPU(), Device("cuda")
    for name, value in fake.names.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)
    of_gpu_s, of_python_s = device.seconds_per_step(fake.take, 5)
    assert of_gpu_s == pytest.approx(2e-3) and 0 <= of_python_s < 1e-3
    assert fake.log == ["take", "synchronize", *["take"] * 5, "wait for event"]
    fake.log.clear()
    replay = device.captured(fake.take)
    warm_up = ["wait for stream", "on Stream", *["take"] * 3, "off", "wait for stream"]
    assert fake.log == [*warm_up, "on CUDAGraph", "take", "off"]
    fake.log.clear()
    replay()
    device.raise_at_waits(True)
    device.raise_at_waits(False)
    device.forget_peak()
    device.clean_up()
    assert fake.log == ["replay", "error", "default", "reset peak", "synchronize", "empty cache"]
    assert device.allocated_bytes() == 7 and device.peak_bytes() == (8, 9)
    assert device.seconds(lambda: None) < 1.0


def test_every_name_of_torch_in_lines_that_only_a_gpu_reaches_exists():
    names = set()
    for file in (REPOSITORY / "benchmarks").glob("gpu*.py"):
        attributes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
        names |= {name for name in map(ast.unparse, attributes) if re.fullmatch(r"torch(\.\w+)+", name)}
    assert "torch.cuda.CUDAGraph" in names
    for name in names:
        operator.attrgetter(name.removeprefix("torch."))(torch)  # raises where it does not exist
