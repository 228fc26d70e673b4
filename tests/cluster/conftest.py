"""The cluster files as Ray sees them."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Load a file of cluster/, fill it out and validate it with Ray's own code; Ray exits where it is wrong."""
    monkeypatch.chdir(ROOT)  # file mounts are relative to the repository

    def prepare(name: str) -> dict[str, Any]:
        config = prepare_config(yaml.safe_load((ROOT / "cluster" / name).read_text()))
        validate_config(config)
        return dict(config)

    logging.disable(logging.WARNING)  # Ray warns of mounted single files, which matters with docker only
    yield prepare
    logging.disable(logging.NOTSET)
