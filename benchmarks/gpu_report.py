"""What `benchmarks.gpu` has heard from its sections: printed as Markdown at once, and written to files."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_aims import render_aims, render_checks
from benchmarks.gpu_section import Record


class Report:
    """Takes records, one section after the other.

    Args:
        folder: where table.md and raw.json go; None for none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._lines: list[str] = []
        self._records: list[Record] = []
        self._section = self._heading = self._table = ""
        self.figures: dict[str, list[float]] = {}
        self.checks: dict[str, list[tuple[bool, str]]] = {}
        self.machine: dict[str, Any] = {}
        self.has_no_gpu = False

    def begin(self, section: str, text: str) -> None:
        """Begin a section; its heading comes with the first thing that it says."""
        self._section, self._heading = section, text

    def take(self, record: Record) -> None:
        """Take a record of this section."""
        self._records.append({"section": self._section, **record})
        kind = record["kind"]
        if kind == "table":
            self._begin_table(record["title"], record["columns"])
        elif kind == "row":
            self._print(render_row(record["cells"]))
        elif kind == "note":
            self._print_outside(record["text"])
            self.machine |= record["raw"].get("machine", {})
        elif kind == "error":
            self._print_outside(f"NOT MEASURED: {self._section}, {record['part']}: {record['text']}")
        elif kind == "figure":
            self.figures[record["key"]] = record["values"]
        elif kind == "no GPU":
            self.has_no_gpu = True
        elif kind == "check":
            self.checks.setdefault(record["key"], []).append((record["holds"], record["seen"]))
            if not record["holds"]:
                self._print_outside(f"CHECK FAILED: {record['key']}: {record['seen']}")

    def _begin_table(self, title: str, columns: Sequence[str]) -> None:
        """Begin a table; one of the same title right after it is the same one."""
        if title != self._table:
            self._print_outside(title)
            self._print("")
            self._print(render_row(columns))
            self._print("|---" * len(columns) + "|")
            self._table = title

    def end(self, seconds: float) -> None:
        """Say how all aims and checks stand, and write the files."""
        self.begin("", "Aims and checks")
        for line in (*render_aims(self.figures), *render_checks(self.checks)):
            self._print(f"    {line}")
        self._print_outside(f"{seconds:.0f} s in all.")
        self.write()

    def write(self) -> None:
        """Write the files; a folder that cannot be written must not stop the measurement."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "table.md").write_text("\n".join(self._lines) + "\n")
            content = {
                "machine": self.machine,
                "figures": self.figures,
                "checks": self.checks,
                "records": self._records,
            }
            (self._folder / "raw.json").write_text(json.dumps(content, indent=1))
        except OSError as error:
            print(f"not written: {error}", file=sys.stderr, flush=True)

    @property
    def has_failed(self) -> bool:
        """Whether a check has failed."""
        return not all(holds for seen in self.checks.values() for holds, _ in seen)

    def _print_outside(self, text: str) -> None:
        """Print a paragraph; a table ends before it."""
        self._table = ""
        if not self._heading:
            self._print("")
        self._print(text)

    def _print(self, line: str) -> None:
        if self._heading:
            heading, self._heading = self._heading, ""
            self._print(f"\n## {heading}\n")
        self._lines.append(line)
        print(line, flush=True)


def render_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
