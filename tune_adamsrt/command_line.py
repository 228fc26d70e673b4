"""Command lines as lists of words, and how a command ends."""

import atexit
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def without_options(words: Sequence[str], *names: str) -> list[str]:
    """Leave these options out, with their values, as `--name value` or `--name=value`."""
    left: list[str] = []
    is_value = False
    for word in words:
        if not is_value and word not in names and not word.startswith(tuple(f"{name}=" for name in names)):
            left.append(word)
        is_value = not is_value and word in names
    return left


def leave(code: int) -> NoReturn:
    """End a command's process, with what is registered for its end but without taking its modules apart.

    With torch and Ray imported that takes Python seconds, and frees what the operating system frees at once.
    """
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
