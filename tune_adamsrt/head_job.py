"""What a search from another machine runs on the cluster's head: `python -m tune_adamsrt.head_job WHAT ...`.

    run REQUEST    a search, in ~/tune_adamsrt, as the request (JSON) says; ends with the search's own exit code
    pack JOB       what a job has left to bring home, as text between two marks: a tar file in base64
    status ...     `python -m tune_adamsrt.status`, where the newest such search keeps its studies
    studies ...    `python -m tune_adamsrt.search --list-studies`, likewise

A search notes what is to be brought home with `bring_home`; elsewhere that does nothing.
"""

import base64
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

BROUGHT_HOME = "TUNE_ADAMSRT_BROUGHT_HOME"  # the file that lists the folders to bring home
OUTPUT, DATA_ROOT = "TUNE_ADAMSRT_OUTPUT", "TUNE_ADAMSRT_DATA_ROOT"  # the cluster's own places, set where Ray starts
JOB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
EXPORT = "best_hyper_parameters.py"
PACK_BEGINS, PACK_ENDS = "-----BEGIN TAR-----", "-----END TAR-----"


@dataclass(frozen=True)
class Request:
    """A search to run on the head.

    Attributes:
        job: its name, which names its folder as well.
        arguments: of the search, for the head.
        typed: as the user typed them, from which the search builds the command that goes on with it.
        settings: path -> text of the user's own settings; paths are relative, below the working directory.
        code: `code_digest` of the machine that asks.
    """

    job: str
    arguments: list[str]
    typed: list[str]
    settings: dict[str, str] = field(default_factory=dict)
    code: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


def main(argv: Sequence[str] | None = None) -> int:
    command, *rest = sys.argv[1:] if argv is None else argv
    folder = Path("~/tune_adamsrt").expanduser()  # where the cluster's file puts the project
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if command == "run":
        return run(Request(**json.loads(rest[0])))
    if command == "pack":
        print(PACK_BEGINS, base64.b64encode(pack(job_folder(rest[0]))).decode(), PACK_ENDS, sep="\n")
        return 0
    place = newest_place()
    if command == "studies":
        from tune_adamsrt import search

        return search.main(["--list-studies", *(with_places([]) if place is None else place), *rest])
    if place is None:
        print("error: a search must have begun on the cluster, got none yet; look again in a moment", file=sys.stderr)
        return 2
    from tune_adamsrt import status

    return status.main([*place, *rest])


def run(request: Request) -> int:
    """Run the search. Returns its exit code."""
    folder = job_folder(request.job)
    folder.mkdir(parents=True)
    for name, text in request.settings.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    os.environ[BROUGHT_HOME] = str(folder.absolute() / "home.jsonl")
    os.environ.pop("OMP_NUM_THREADS", None)  # Ray's own, for a worker without a CPU
    from tune_adamsrt import search
    from tune_adamsrt.arguments import parse_arguments

    arguments = with_places(request.arguments)
    parsed = parse_arguments(arguments)
    place = ["--output", parsed.output] + (["--study-storage", parsed.study_storage] if parsed.study_storage else [])
    (folder / "place.json").write_text(json.dumps(place))
    if request.code != code_digest():
        print(
            "note: the code or the settings on the cluster differ from yours; `ray up` brings yours there", flush=True
        )
    sys.argv[1:] = request.typed
    return search.main([*arguments, "--export", str(folder / EXPORT)])


def with_places(arguments: Sequence[str]) -> list[str]:
    """Name the cluster's own places for results and data where the user named none."""
    found = list(arguments)
    for option, variable in (("--output", OUTPUT), ("--data-root", DATA_ROOT)):
        is_given = any(argument == option or argument.startswith(f"{option}=") for argument in arguments)
        if not is_given and (place := os.environ.get(variable)):
            found += [option, place]
    return found


def bring_home(folder: Path, *, root: Path) -> None:
    """Note a folder below `root` that whoever submitted this search wants to have; nothing where nobody did."""
    if path := os.environ.get(BROUGHT_HOME):
        with Path(path).open("a") as file:
            file.write(json.dumps([str(root), str(folder.relative_to(root))]) + "\n")


def pack(folder: Path) -> bytes:
    """A tar file of the exported module and the folders that a job has noted."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        if (folder / EXPORT).exists():
            tar.add(folder / EXPORT, EXPORT)
        for root, name in _noted(folder / "home.jsonl"):
            tar.add(Path(root) / name, name)
    return buffer.getvalue()


def unpack(log: str) -> dict[str, bytes] | None:
    """The files that `pack` has printed, by their path; None where the log holds none.

    Raises ValueError or tarfile.TarError for anything but plain files at relative paths that lead nowhere up.
    """
    _, begins, rest = log.partition(f"{PACK_BEGINS}\n")
    text, ends, _ = rest.partition(f"\n{PACK_ENDS}")
    if not (begins and ends):
        return None
    files = {}
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(text)), mode="r:gz") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise ValueError(f"the results must be plain files below one folder, got {member.name!r}")
            if (content := tar.extractfile(member)) is not None:
                files[str(path)] = content.read()
    return files


def job_folder(job: str) -> Path:
    if not JOB_NAME.fullmatch(job):
        raise ValueError(f"a job's name must be letters, digits, '_' and '-', got {job!r}")
    return Path("jobs") / job


def newest_place() -> list[str] | None:
    """The options that name the storage of the newest submitted search; None where there was no such search."""
    places = sorted(Path("jobs").glob("*/place.json"), key=lambda path: path.stat().st_mtime)
    return list(json.loads(places[-1].read_text())) if places else None


def code_digest() -> str:
    """Differs where the code or the shipped settings differ."""
    import adamsrt
    import tune_adamsrt
    from tune_adamsrt.settings_file import shipped_folder

    digest = hashlib.sha256()
    packages = [Path(module.__file__).parent for module in (adamsrt, tune_adamsrt) if module.__file__]
    for folder, pattern in [*((package, "*.py") for package in packages), (shipped_folder(), "*.yaml")]:
        for path in sorted(folder.rglob(pattern)):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _noted(path: Path) -> Iterator[tuple[str, str]]:
    if path.exists():
        for line in dict.fromkeys(path.read_text().splitlines()):
            root, name = json.loads(line)
            if (Path(root) / name).is_dir():
                yield root, name


if __name__ == "__main__":
    sys.exit(main())
