"""Names for the things a user can choose: optimizers, models, datasets."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")
Decorated = TypeVar("Decorated")


class UnknownNameError(KeyError, ValueError):
    """A name that is in no registry; the message lists the known names and the closest one."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message, quotes included.
        return str(self.args[0])


class Registry(Mapping[str, Entry]):
    """A read-only mapping from a name to its entry, filled by `register` or `add`.

    Args:
        kind: what the entries are, in the singular ("optimizer"), for error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Add one entry. Raises ValueError where the name is taken."""
        if name in self._entries:
            raise ValueError(f"the {self.kind} name must be new, got {name!r}, which is registered already")
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """Decorator form of `add`."""

        def decorate(entry: Decorated) -> Decorated:
            self.add(name, entry)  # type: ignore[arg-type]
            return entry

        return decorate

    def __getitem__(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(unknown_name_message(self.kind, name, self._entries)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def unknown_name_message(kind: str, name: str, known: Mapping[str, object] | list[str]) -> str:
    """Render the line for a name that does not exist: the closest known name, then all of them."""
    closest = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    hint = f"; did you mean {closest[0]!r}?" if closest else ""
    return f"unknown {kind} {name!r}{hint or ';'} known: {', '.join(known)}"
