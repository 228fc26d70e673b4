"""The order of the tests."""

from collections import Counter
from pathlib import Path

import pytest

USUAL_S = 15.0  # of a slow test that does not say


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none of them runs alone at the end."""
    expected_s: Counter[Path] = Counter()
    for item in items:
        if marker := item.get_closest_marker("slow"):
            expected_s[item.path] += marker.kwargs.get("seconds", USUAL_S)
    items.sort(key=lambda item: -expected_s[item.path])
