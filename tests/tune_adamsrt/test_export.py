"""best_hyper_parameters.py: its text, its reader, and merges that lose nothing, whatever happens to the process."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tune_adamsrt.export import HEADER, Entry, ExportError, check_exportable, merge_entry, merged, parse, render
from tune_adamsrt.settings import known_settings, load_setting

ROOT = Path(__file__).parents[2]
PUBLISHED = "published: arXiv:2006.13382"
ENTRIES = [
    Entry("svhn", "vgg16", "sgd", {"weight_decay": 0.0, "momentum": 0.9, "lr": 1e-05}, (PUBLISHED,)),
    Entry("cifar10", "resnet20", "adamsrt", {"lr": 0.1 + 0.2, "betas": [0.9, 0.999]}, ("tuned", "", "#kept as it is")),
    Entry(
        "cifar10",
        "resnet20",
        "adam",
        {
            "lr": 0.0012345678901234567,
            "betas": (0.9123456789012345, 0.999123456789),
            "weight_decay": 1.2345678901234e-05,
        },
    ),
    Entry("cifar10", "resnet18", "adamw", {"lr": 1}),
]


def test_the_text_is_golden():
    """Regenerate with `python -c "import sys; sys.path.append('tests/tune_adamsrt'); import test_export as t;
    print(t.render(t.ENTRIES))"` and look at the difference."""
    expected = """
BEST_HYPER_PARAMETERS = {
    "cifar10": {
        "resnet18": {
            "adamw": {"lr": 1},
        },
        "resnet20": {
            "adam": {
                "lr": 0.0012345678901234567,
                "betas": (0.9123456789012345, 0.999123456789),
                "weight_decay": 1.2345678901234e-05,
            },
            # tuned
            #
            #kept as it is
            "adamsrt": {"lr": 0.30000000000000004, "betas": (0.9, 0.999)},
        },
    },
    "svhn": {
        "vgg16": {
            # published: arXiv:2006.13382
            "sgd": {"lr": 1e-05, "momentum": 0.9, "weight_decay": 0.0},
        },
    },
}
"""
    assert render(ENTRIES) == HEADER + expected
    assert render(reversed(ENTRIES)) == render(ENTRIES)
    assert render([]) == f"{HEADER}\nBEST_HYPER_PARAMETERS = {{}}\n"


def test_parse_gives_back_what_was_rendered():
    assert parse(render(ENTRIES)) == sorted(ENTRIES, key=lambda entry: entry.key)
    assert parse(render([])) == parse("") == []


def test_the_text_is_a_module_with_these_values():
    namespace: dict = {}
    exec(render(ENTRIES), namespace)
    table = namespace["BEST_HYPER_PARAMETERS"]
    assert table["cifar10"]["resnet20"]["adamsrt"] == {"lr": 0.1 + 0.2, "betas": (0.9, 0.999)}
    assert sorted(table) == ["cifar10", "svhn"]


@pytest.mark.parametrize("command", [["format", "--check"], ["check"]])
def test_ruff_has_nothing_to_change(command, tmp_path):
    formatted = [Entry("cifar10", "vgg16", "adam", ENTRIES[2].hyper_parameters, ("a", "", "b", "# # c")), *ENTRIES[2:]]
    (tmp_path / "many.py").write_text(render([ENTRIES[0], *formatted]))
    (tmp_path / "none.py").write_text(render([]))
    files = [tmp_path / "many.py", tmp_path / "none.py", ROOT / "best_hyper_parameters.py"]
    config = ["--no-cache", "--config", ROOT / "pyproject.toml"]
    done = subprocess.run([sys.executable, "-m", "ruff", *command, *config, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shipped_file_holds_the_published_entries_of_the_settings():
    entries = {entry.key: entry for entry in parse((ROOT / "best_hyper_parameters.py").read_text())}
    settings = [load_setting(name) for name in known_settings()]
    published = {(s.dataset, s.model, optimizer): p for s in settings for optimizer, p in s.published.items()}
    assert len(published) == 54
    assert published.keys() <= entries.keys()
    # A search of your own replaces an entry and its provenance; those still marked as published are as published.
    marked = {key: entry.hyper_parameters for key, entry in entries.items() if entry.provenance == (PUBLISHED,)}
    assert marked == {key: point for key, point in published.items() if key in marked}
    assert all(key in marked or any("tune" in line for line in entries[key].provenance) for key in published)


def test_some_published_values():
    entries = {entry.key: entry.hyper_parameters for entry in parse((ROOT / "best_hyper_parameters.py").read_text())}
    if len(entries) == 54:  # as shipped
        best = {"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.0}
        assert entries["cifar100", "resnet18", "adamsrt"] == best
        assert entries["cifar10", "resnet20", "adamw"] == {"lr": 0.001, "betas": (0.9, 0.99)}
        assert entries["imagenet", "resnet18", "sgdmrt"] == {"lr": 0.1, "momentum": 0.9, "weight_decay": 6.25e-05}
        assert entries["svhn", "vgg16", "adamg"] == {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 5e-4}


def test_values_become_plain_numbers():
    entry = Entry("digits", "resnet20", "adam", {"lr": np.float64(0.1), "betas": [np.float32(0.5), 1]})
    assert '{"lr": 0.1, "betas": (0.5, 1)}' in render([entry])
    for wrong in (float("nan"), float("inf"), "0.1", None, [0.1, "a"]):
        with pytest.raises(ValueError, match=r"^lr must be a finite number or a tuple of them, got "):
            Entry("digits", "resnet20", "adam", {"lr": wrong})


def test_an_entry_stands_once():
    with pytest.raises(ValueError, match="an entry must stand once, got cifar10/resnet18/adamw twice"):
        render([ENTRIES[3], ENTRIES[3]])


def test_provenance_of_several_lines_is_split():
    assert Entry("a", "b", "c", {}, ("one\ntwo", "# three ")).provenance == ("one", "two", "three")


def test_a_merge_keeps_the_others_byte_for_byte(tmp_path):
    path = tmp_path / "best.py"
    path.write_text(render(ENTRIES))
    path.chmod(0o640)
    merge_entry(path, Entry("cifar10", "resnet20", "sgd", {"lr": 0.1}, ("new",)))
    old, new = render(ENTRIES).splitlines(), path.read_text().splitlines()
    assert [line for line in new if line not in old] == ["            # new", '            "sgd": {"lr": 0.1},']
    assert [line for line in new if line in old] == old
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_merge_replaces_the_entry_and_its_provenance(tmp_path):
    path = tmp_path / "best.py"
    path.write_text(render(ENTRIES))
    changed = Entry("svhn", "vgg16", "sgd", {"lr": 0.2}, ("tuned",))
    merge_entry(path, changed)
    assert path.read_text() == render([changed, *ENTRIES[1:]]) == render(merged(ENTRIES, changed))


def test_a_missing_file_is_made_and_an_empty_one_filled(tmp_path):
    (tmp_path / "empty.py").touch()
    for name in ("missing.py", "empty.py"):
        merge_entry(tmp_path / name, ENTRIES[0])
        assert (tmp_path / name).read_text() == render(ENTRIES[:1])
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "missing.py").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "best.py"
    link.symlink_to(tmp_path / "real" / "best.py")
    merge_entry(link, ENTRIES[0])
    merge_entry(link, ENTRIES[1])
    assert link.is_symlink()
    assert (tmp_path / "real" / "best.py").read_text() == render(ENTRIES[:2])


TABLE = "BEST_HYPER_PARAMETERS = {\n%s\n}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("BEST_HYPER_PARAMETERS = {\n", r", line 1 must be valid Python, got: '\{' was never closed; correct it"),
        (TABLE % "" + "import os\n", r", line 4: it may hold data only, BEST_HYPER_PARAMETERS = .*, got import os; "),
        ("X = {}\n", r", line 1: it may hold data only, .*, got X = \{\}; "),
        (TABLE % "" + TABLE % "", ", line 4: it may hold data only, .*, once, got BEST_HYPER_PARAMETERS"),
        (TABLE % '"a": f()', r", line 2: it must hold a dict here, got f\(\); "),
        (TABLE % '"a": {1: {}}', ", line 2: it must hold a name in quotes as key, got 1; "),
        (TABLE % '"a": {},\n"a": {}', ", line 3: it must hold a key once, got 'a' again; "),
        (TABLE % '"a": {"b": {"c": {"lr": f()}}}', ", line 2: it must map names to finite numbers, got "),
        (TABLE % '"a": {"b": {"c": {"lr": 1e999}}}', ", line 2: it must map names to finite numbers, got lr must"),
        (TABLE % '"a": {"b": {"c": {"lr": 1, "lr": 2}}}', ", line 2: it must map names to finite numbers, got a name"),
        (TABLE % "# lost", ", line 2: it may hold comments directly above an optimizer's key only, got '# lost'; "),
        (TABLE % '"a": {"b": {"c": {}}}  # lost', ", line 2: it may hold comments directly above an optimizer's key "),
        ("\0", " must be valid Python, got: "),
    ],
)
def test_a_file_that_is_not_a_table_is_refused_and_left_as_it_is(text, expected, tmp_path):
    path = tmp_path / "best.py"
    path.write_text(text)
    for refused in (lambda: merge_entry(path, ENTRIES[0]), lambda: check_exportable(path)):
        with pytest.raises(ExportError, match=rf"^{path}{expected}") as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert path.read_text() == text
    assert {file.name for file in tmp_path.iterdir()} <= {"best.py", "best.py.lock"}


def test_parse_never_runs_the_file(tmp_path):
    witness = tmp_path / "witness"
    with pytest.raises(ExportError):
        parse(TABLE % f'"a": {{"b": {{"c": {{"lr": open({str(witness)!r}, "w")}}}}}}')
    assert not witness.exists()


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes.py").write_bytes(b"\xff")
    # /proc refuses new files even to root
    cases = [
        (tmp_path / "no" / "best.py", r"^the folder of .*best.py must exist, got none; create .*/no or choose"),
        (tmp_path / "folder", r"folder must be a readable file, got: Is a directory; choose another path$"),
        (tmp_path / "bytes.py", r"bytes.py must be UTF-8 text, got other bytes; choose another path"),
        (
            Path("/proc/best.py"),
            r"^/proc/best.py must be in a folder that can be written, got: .*; choose another path$",
        ),
    ]
    for path, expected in cases:
        with pytest.raises(ExportError, match=expected):
            check_exportable(path)
        with pytest.raises(ExportError, match=expected):
            merge_entry(path, ENTRIES[0])
    assert (tmp_path / "bytes.py").read_bytes() == b"\xff"
    assert not (tmp_path / "no").exists()


def test_check_exportable_leaves_nothing_behind(tmp_path):
    check_exportable(tmp_path / "best.py")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_stays_held_is_one_line(tmp_path):
    path = tmp_path / "best.py"
    with FileLock(f"{path}.lock"), pytest.raises(ExportError, match=r"best.py.lock must be free within 0.01 s, got it"):
        merge_entry(path, ENTRIES[0], timeout_s=0.01)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "best.py"
    path.write_text(render(ENTRIES))

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ExportError, match="No space left on device"):
        merge_entry(path, Entry("digits", "resnet20", "adam", {"lr": 0.1}))
    assert path.read_text() == render(ENTRIES)
    assert {file.name for file in tmp_path.iterdir()} <= {"best.py", "best.py.lock"}


MERGE_LOOP = """
import sys
from tune_adamsrt.export import Entry, merge_entry
path, dataset, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    merge_entry(path, Entry(dataset, f"model{number}", "adam", {"lr": number / 7}, (f"{dataset} {number}",)))
    print(number, flush=True)
"""


def start(path: Path, dataset: str, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", MERGE_LOOP, str(path), dataset, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_eight_processes_at_once_lose_nothing(tmp_path):
    path = tmp_path / "best.py"
    path.write_text(render(ENTRIES))
    workers = [start(path, f"data{number}", 5) for number in range(8)]
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    expected = [
        Entry(f"data{a}", f"model{b}", "adam", {"lr": b / 7}, (f"data{a} {b}",)) for a in range(8) for b in range(5)
    ]
    assert path.read_text() == render([*ENTRIES, *expected])


def test_kill_9_never_leaves_half_a_file(tmp_path):
    """A write in place would sooner or later be cut between truncation and the last byte."""
    path = tmp_path / "best.py"
    path.write_text(render(ENTRIES))
    wait = random.Random(0)
    for number in range(8):
        with start(path, f"data{number}", 100_000) as worker:
            assert worker.stdout is not None
            worker.stdout.readline()
            time.sleep(wait.uniform(0, 0.03))
            worker.send_signal(signal.SIGKILL)
            told = [int(line) for line in worker.stdout.read().split()]
        entries = {entry.key: entry for entry in parse(path.read_text())}
        assert all(entries[entry.key] == entry for entry in ENTRIES)
        # every merge that had returned is there
        assert all((f"data{number}", f"model{done}", "adam") in entries for done in [0, *told])
    merge_entry(path, Entry("digits", "resnet20", "adam", {"lr": 0.1}))
    assert {file.name for file in tmp_path.iterdir()} <= {"best.py", "best.py.lock"}


def test_an_entry_that_may_not_be_replaced_stays_and_a_new_place_is_taken(tmp_path):
    path = tmp_path / "best.py"
    first = Entry("cifar10", "resnet18", "adam", {"lr": 0.1})
    assert merge_entry(path, first, may_replace=False)
    before = path.read_bytes()
    assert not merge_entry(path, Entry("cifar10", "resnet18", "adam", {"lr": 0.2}), may_replace=False)
    assert path.read_bytes() == before
    assert merge_entry(path, Entry("cifar10", "resnet18", "sgd", {"lr": 0.2}), may_replace=False)
    assert {entry.optimizer for entry in parse(path.read_text())} == {"adam", "sgd"}
