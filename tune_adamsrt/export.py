"""best_hyper_parameters.py: render (pure), parse (never executes), merge under a lock, write atomically."""

import ast
import io
import math
import os
import stat
import tokenize
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

NAME = "BEST_HYPER_PARAMETERS"
LINE_LENGTH = 120  # the formatter's, see pyproject.toml
HYPER_PARAMETER_ORDER = ("lr", "betas", "momentum", "weight_decay")

HEADER = '''"""The best known hyper-parameters: BEST_HYPER_PARAMETERS[dataset][model][optimizer].

A search writes here: `python -m tune_adamsrt.search --setting resnet20-digits` replaces the entry that it has tuned and
leaves the others as they are. The comment above an entry says where it comes from. Data only: a file that holds code is
refused and not changed.

    from adamsrt.optimizers import build_optimizer
    from best_hyper_parameters import BEST_HYPER_PARAMETERS

    optimizer = build_optimizer("adamsrt", model, **BEST_HYPER_PARAMETERS["cifar10"]["resnet18"]["adamsrt"])
"""
'''


class ExportError(ValueError):
    """The file of the best hyper-parameters cannot be read or written; the message is one line."""


@dataclass(frozen=True)
class Entry:
    """The best hyper-parameters of one optimizer on one setting.

    Args:
        hyper_parameters: finite numbers, and pairs of them (betas).
        provenance: where they come from, as the lines of a comment, without "# ". A line that starts with "#" stands as
            it is.
    """

    dataset: str
    model: str
    optimizer: str
    hyper_parameters: Mapping[str, Any]
    provenance: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values = {name: _plain(name, value) for name, value in self.hyper_parameters.items()}
        lines = [line for text in self.provenance for line in text.splitlines() or [""]]
        object.__setattr__(self, "hyper_parameters", values)
        object.__setattr__(self, "provenance", tuple(_without_marker(line.rstrip()) for line in lines))

    @property
    def key(self) -> tuple[str, str, str]:
        """Its place in BEST_HYPER_PARAMETERS."""
        return self.dataset, self.model, self.optimizer


def render(entries: Iterable[Entry]) -> str:
    """Render the file's text: datasets, models and optimizers in alphabetical order, stable under `ruff format`.

    Raises ValueError where two entries have the same place.
    """
    lines = []
    place: tuple[str, ...] = ()
    placed: set[tuple[str, str, str]] = set()
    for entry in sorted(entries, key=lambda entry: entry.key):
        if entry.key in placed:
            raise ValueError(f"an entry must stand once, got {'/'.join(entry.key)} twice; merge them first")
        placed.add(entry.key)
        lines += _braces(place, entry.key[:2])
        place = entry.key[:2]
        lines += _entry_lines(entry)
    lines += _braces(place, ())
    body = [f"{NAME} = {{", *lines, "}"] if lines else [f"{NAME} = {{}}"]
    return "\n".join([HEADER, *body, ""])


def parse(text: str, *, source: str = "the text") -> list[Entry]:
    """Read the entries of a rendered (or hand-edited) file, with their comments, without running it.

    Raises ExportError, with `source` and the line, for anything that `render` could not keep: code, a repeated key, a
    comment that stands anywhere but directly above an optimizer's key.
    """
    try:
        tree = ast.parse(text)
        comments = _comments(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ExportError(
            f"{source}{line} must be valid Python, got: {_reason(error)}; correct it, it was left as it is"
        ) from None
    entries = []
    for dataset, _, models in _items(_table(tree, source), source):
        for model, _, optimizers in _items(models, source):
            for optimizer, line_number, values in _items(optimizers, source):
                try:
                    provenance = _take_comment_above(comments, line_number)
                    entries.append(Entry(dataset, model, optimizer, _literal(values), provenance))
                except ValueError as error:
                    raise _refusal(source, line_number, "must map names to finite numbers", str(error)) from None
    for line_number, comment in comments.items():
        raise _refusal(source, line_number, "may hold comments directly above an optimizer's key only", repr(comment))
    return entries


def merged(entries: Iterable[Entry], entry: Entry) -> list[Entry]:
    """Replace the entry at the same place, or add it."""
    return [*(other for other in entries if other.key != entry.key), entry]


def check_exportable(path: str | Path) -> None:
    """Check, before a long search, that `merge_entry` will work. Raises ExportError.

    The file holds a table or does not exist yet; its folder exists and can be written.
    """
    target = _target(path)
    _read(target)
    try:
        temporary = _temporary(target)
        temporary.touch(exist_ok=False)
        temporary.unlink(missing_ok=True)  # a merge that runs right now tidies up
    except OSError as error:
        raise _unwritable(target, error) from None


def merge_entry(path: str | Path, entry: Entry, *, may_replace: bool = True, timeout_s: float = 60.0) -> bool:
    """Put one entry into the file; the others keep their values and comments. The file is made where there is none.

    Args:
        may_replace: False leaves a file as it is that has an entry at this place already.
    Returns:
        True where the entry was written.

    Safe against other processes (a lock beside the file, `<path>.lock`) and against being killed: the file is replaced
    as a whole, after the new one has reached the disk. Raises ExportError, with the file left as it is.
    """
    target = _target(path)
    check_exportable(target)  # the lock would make a missing folder, and wait in one that cannot be written
    try:
        with FileLock(f"{target}.lock", timeout=timeout_s):
            entries = _read(target)
            if not may_replace and any(other.key == entry.key for other in entries):
                return False
            text = render(merged(entries, entry))
            # A file that cannot be read back would stop every later search.
            assert render(parse(text)) == text
            _replace(target, text)
    except Timeout:
        raise ExportError(
            f"{target}.lock must be free within {timeout_s:g} s, got it held; end its holder and try again"
        ) from None
    except OSError as error:
        raise _unwritable(target, error) from None
    return True


def _plain(name: str, value: Any) -> Any:
    """Plain Python numbers: a NumPy float would be rendered as `np.float64(...)`."""
    if isinstance(value, list | tuple):
        return tuple(_plain(name, item) for item in value)
    if isinstance(value, bool | int):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number or a tuple of them, got {value!r}")
    return number


def _without_marker(line: str) -> str:
    if line == "#":
        return ""
    return line[2:] if line.startswith("# ") and not line.startswith("# #") else line


def _with_marker(line: str) -> str:
    return line if line.startswith("#") else f"# {line}".rstrip()


def _braces(old: tuple[str, ...], new: tuple[str, ...]) -> list[str]:
    """Close the dicts of the old place that the new one is not in, open those of the new one."""
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    closing = [f"{'    ' * (depth + 1)}}}," for depth in reversed(range(same, len(old)))]
    return closing + [f"{'    ' * (depth + 1)}{_quoted(new[depth])}: {{" for depth in range(same, len(new))]


def _entry_lines(entry: Entry) -> list[str]:
    indent = " " * 12
    names = sorted(entry.hyper_parameters, key=lambda name: (_order(name), name))
    items = [f"{_quoted(name)}: {entry.hyper_parameters[name]!r}" for name in names]
    lines = [f"{indent}{_with_marker(line)}" for line in entry.provenance]
    short = f"{indent}{_quoted(entry.optimizer)}: {{{', '.join(items)}}},"
    if len(short) <= LINE_LENGTH:
        return [*lines, short]
    return [
        *lines,
        f"{indent}{_quoted(entry.optimizer)}: {{",
        *(f"{indent}    {item}," for item in items),
        f"{indent}}},",
    ]


def _order(name: str) -> int:
    return HYPER_PARAMETER_ORDER.index(name) if name in HYPER_PARAMETER_ORDER else len(HYPER_PARAMETER_ORDER)


def _quoted(name: str) -> str:
    if not name.isprintable() or '"' in name or "\\" in name:
        raise ValueError(f"a name must be printable, without quotes and backslashes, got {name!r}; rename it")
    return f'"{name}"'


def _comments(text: str) -> dict[int, str]:
    """Line number -> the whole line that a comment stands on; one that stands beside code does not start with "#"."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.line.strip() for token in tokens if token.type == tokenize.COMMENT}


def _take_comment_above(comments: dict[int, str], line_number: int) -> tuple[str, ...]:
    lines: list[str] = []
    above = line_number - 1
    while comments.get(above, "").startswith("#"):
        lines.insert(0, comments.pop(above))
        above -= 1
    return tuple(lines)


def _table(tree: ast.Module, source: str) -> ast.expr | None:
    """The dict that is assigned to BEST_HYPER_PARAMETERS; none in an empty file."""
    table = None
    for number, statement in enumerate(tree.body):
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and number == 0:
            continue
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as value) if name == NAME and table is None:
                table = value
            case _:
                got = ast.unparse(statement).splitlines()[0][:60]
                raise _refusal(source, statement.lineno, f"may hold data only, {NAME} = {{...}}, once", got)
    return table


def _items(node: ast.expr | None, source: str) -> list[tuple[str, int, ast.expr]]:
    """(key, line, value) of a dict, every key a string that stands once."""
    if node is None:
        return []
    if not isinstance(node, ast.Dict):
        raise _refusal(source, node.lineno, "must hold a dict here", ast.unparse(node)[:60])
    items: dict[str, tuple[str, int, ast.expr]] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            raise _refusal(source, value.lineno, "must hold a name in quotes as key", ast.unparse(key) if key else "**")
        if key.value in items:
            raise _refusal(source, key.lineno, "must hold a key once", f"{key.value!r} again")
        items[key.value] = (key.value, key.lineno, value)
    return list(items.values())


def _literal(node: ast.expr) -> dict[str, Any]:
    if not isinstance(node, ast.Dict):
        raise ValueError(ast.unparse(node)[:60])
    names = [key.value if isinstance(key, ast.Constant) else None for key in node.keys]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError("a name that is no string or stands twice")
    values: dict[str, Any] = ast.literal_eval(node)
    return values


def _refusal(source: str, line_number: int, rule: str, got: str) -> ExportError:
    return ExportError(f"{source}, line {line_number}: it {rule}, got {got}; correct it, the file was left as it is")


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__


def _target(path: str | Path) -> Path:
    """The file itself where the path is a symbolic link, so that the link stays one."""
    return Path(os.path.realpath(path))


def _read(target: Path) -> list[Entry]:
    try:
        if not target.parent.is_dir():
            raise ExportError(
                f"the folder of {target} must exist, got none; create {target.parent} or choose another path"
            )
        return parse(target.read_text(encoding="utf-8"), source=str(target))
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise ExportError(
            f"{target} must be UTF-8 text, got other bytes; choose another path, it was left as it is"
        ) from None
    except OSError as error:
        raise ExportError(f"{target} must be a readable file, got: {error.strerror}; choose another path") from None


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")


def _replace(target: Path, text: str) -> None:
    # We hold the lock: what lies here was left by a process that was killed.
    for stale in target.parent.glob(f".{target.name}.*.tmp"):
        stale.unlink(missing_ok=True)
    temporary = _temporary(target)
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The folder too, or a power cut could bring the old name back.
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unwritable(target: Path, error: OSError) -> ExportError:
    return ExportError(f"{target} must be in a folder that can be written, got: {error.strerror}; choose another path")
