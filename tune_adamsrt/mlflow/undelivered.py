"""Which searches MLflow does not hold in full yet: a small file per search in the output folder.

The epochs themselves are in the study; the file names the study, where it goes to, and what the study does not know:
files and models. It is there from a search's start until all is delivered, so that one whose driver was killed is found
as well. `python -m tune_adamsrt.sync` reads it.
"""

import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tune_adamsrt.mlflow.uri import mask_secrets
from tune_adamsrt.paths import short_path, this_python

FOLDER = "undelivered"
STORAGE_FILE = "optuna.journal"  # in the output folder, unless another storage is named


@dataclass
class Undelivered:
    """What of a search is not in MLflow yet.

    Attributes:
        output: the driver's own folder.
        study_storage: journal file or database that holds the study.
        items: what to send beside the study's own content, each with a kind: {"kind": "artifact", "path": ...}, or
            {"kind": "model", ...} with the arguments of `tune_adamsrt.mlflow.model.log_model`. No secrets.
        missing: in words, what is known to be missing.
    """

    output: Path
    study_name: str
    study_storage: str
    tracking_uri: str
    items: list[dict[str, Any]] = field(default_factory=list)
    missing: str = ""

    @property
    def path(self) -> Path:
        return self.output / FOLDER / f"{self.study_name}.json"

    @property
    def artifacts(self) -> list[Path]:
        return [Path(item["path"]) for item in self.items if item["kind"] == "artifact"]

    def add(self, item: Mapping[str, Any]) -> None:
        """Keep something that could not be sent, or is yet to be sent."""
        if dict(item) not in self.items:
            self.items.append(dict(item))
        self.write()

    def write(self) -> None:
        """Write the file, without secrets. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {
                "study": self.study_name,
                "study_storage": mask_secrets(self.study_storage),
                "tracking_uri": mask_secrets(self.tracking_uri),
                "missing": self.missing,
                "items": self.items,
            },
            indent=2,
        )
        descriptor, draft = tempfile.mkstemp(dir=self.path.parent, prefix=".", suffix=".draft")
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
        Path(draft).replace(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @property
    def command(self) -> str:
        """What sends it; secrets are left out (***)."""
        words = [this_python(), "-m", "tune_adamsrt.sync", "--output", str(short_path(self.output))]
        if self.study_storage != str(self.output / STORAGE_FILE):
            words += ["--study-storage", mask_secrets(self.study_storage)]
        return shlex.join(words)


def load_undelivered(output: Path, study_name: str) -> Undelivered | None:
    """Read what is known of a study; None where nothing is missing. Raises ValueError for a damaged file."""
    path = output / FOLDER / f"{study_name}.json"
    try:
        kept = json.loads(path.read_text())
        return Undelivered(
            output, kept["study"], kept["study_storage"], kept["tracking_uri"], list(kept["items"]), kept["missing"]
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be as tune_adamsrt wrote it, it is damaged ({error}); remove it") from error


def undelivered_studies(output: Path) -> list[str]:
    """The names of the studies that MLflow does not hold in full, the oldest name first."""
    return sorted(path.stem for path in (output / FOLDER).glob("*.json"))
