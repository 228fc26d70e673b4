"""Paths as a person in this folder types them."""

import sys
from pathlib import Path


def short_path(path: Path) -> Path:
    """The path relative to the working directory where it lies below; else as it is."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def this_python() -> str:
    """The program that runs this."""
    return str(short_path(Path(sys.executable)))
