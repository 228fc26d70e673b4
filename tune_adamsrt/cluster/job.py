"""A search on a cluster, from another machine: submitted to the head, followed, its results brought home.

    search --cluster FILE -> Request -> Ray job on the head -> its log here -> best_hyper_parameters.py, reports here

Whoever follows may go away at any time; the job goes on, and `python -m tune_adamsrt.logs` finds it again.
"""

import argparse
import contextlib
import datetime
import os
import re
import secrets
import shlex
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tune_adamsrt.cluster.jobs import Job, Jobs, JobStatus, read_token
from tune_adamsrt.cluster.tunnel import check_cluster_file, jobs_url, reaching
from tune_adamsrt.command_line import without_options
from tune_adamsrt.export import check_exportable, merge_entry, parse
from tune_adamsrt.head_job import EXPORT, JOB_NAME, Request, code_digest, unpack
from tune_adamsrt.mlflow.uri import mask_secrets
from tune_adamsrt.paths import short_path, this_python

if TYPE_CHECKING:
    from tune_adamsrt.plan import Plan  # torch and Ray, which only a search needs

DONE, SEARCH_FAILED, INTERRUPTED = 0, 1, 130
DEFAULT_OUTPUT = "runs"
KIND = "tune_adamsrt search"
POLL_S = 1.0
GIVE_UP_S = 300.0  # of a head that does not answer while its log is followed
STOP_WAIT_S = 120  # between the word to stop and the end by force: trials end, MLflow gets the rest
PACK_TIMEOUT_S = 120.0
# Ray's own lines in a job's log. The second may come after what the command has printed first.
RAYS_LINE = re.compile(
    r"^(?:\d{4}-\d\d-\d\d [\d:,]+\tINFO job_manager\.py:\d+ -- |Running entrypoint for job \S+: ).*\n", re.MULTILINE
)


@dataclass(frozen=True)
class Place:
    """Where the search runs, and where its results go on this machine.

    Attributes:
        where: the options that name the cluster on a command line.
        export: the module that the best configurations are merged into.
        output: the folder below which reports go, as report/STUDY.
    """

    jobs: Jobs
    where: tuple[str, ...]
    export: Path
    output: Path

    def command(self, program: str, *arguments: str) -> str:
        return shlex.join([this_python(), "-m", f"tune_adamsrt.{program}", *self.where, *arguments])


def is_elsewhere(arguments: argparse.Namespace) -> bool:
    """Whether the search is to be submitted to a cluster's head instead of run by this process. Raises ValueError."""
    address = arguments.address or os.environ.get("RAY_ADDRESS") or ""
    answer = arguments.cluster is not None or jobs_url(address) is not None
    if arguments.detach and not answer:
        raise ValueError("--detach must go with --cluster FILE or --address http://HOST:8265, got neither; add one")
    return answer


@contextlib.contextmanager
def place(cluster: str | None, address: str | None, *, export: str | None, output: str) -> Iterator[Place]:
    """Reach a cluster by the file of `ray up`, or by the address of its Jobs API. Raises ValueError."""
    if cluster is not None and address is not None:
        raise ValueError(f"one of --cluster and --address must name the cluster, got both; leave {address} out")
    file = None if cluster is None else check_cluster_file(cluster)
    url = None if address is None else jobs_url(address)
    where = ("--cluster", str(cluster)) if cluster is not None else ("--address", str(address)) if address else ()
    is_here = "://" not in output and not Path(output).expanduser().is_absolute()  # else it is the cluster's
    with reaching(file, url) as reach:
        yield Place(
            jobs=Jobs(reach, token=read_token()),
            where=where,
            export=Path(export or EXPORT).expanduser().resolve(),
            output=Path(output if is_here else DEFAULT_OUTPUT).resolve(),
        )


def search_elsewhere(arguments: argparse.Namespace, plans: Sequence["Plan"], typed: Sequence[str]) -> int:
    """Submit the search; follow it and bring its results home, unless it is to go on by itself.

    Args:
        typed: the command line as the user typed it.
    Returns:
        The search's exit code; 0 with --detach.
    Raises:
        ValueError, ConnectionError: one line for what a user got wrong, or a head that does not answer.
    """
    address = arguments.address or (None if arguments.cluster else os.environ.get("RAY_ADDRESS"))
    request = build_request(arguments, typed)
    for plan in plans:
        check_exportable(plan.export)
    with place(arguments.cluster, address, export=arguments.export, output=arguments.output) as at:
        others = [job.name for job in at.jobs.all() if is_search(job) and not job.has_ended]
        at.jobs.submit(
            request.job,
            shlex.join(["python", "-m", "tune_adamsrt.head_job", "run", request.to_json()]),
            metadata={
                "kind": KIND,
                "command": shlex.join(typed),
                "may_replace": "yes" if all(plan.may_replace for plan in plans) else "no",
            },
            environment={"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
        )
        print(f"job {request.job} is submitted; it goes on if this terminal closes", flush=True)
        if others:
            print(f"note: on this cluster {', '.join(others)} runs as well")
        if arguments.detach:
            print_ways(at, request.job)
            return DONE
        return follow_home(at, request.job)


def build_request(arguments: argparse.Namespace, typed: Sequence[str]) -> Request:
    """What the head is to run. Raises ValueError for what would not arrive there, or be seen by others."""
    if any(mask_secrets(word) != word for word in typed):
        raise ValueError(
            "the options must hold no password with --cluster, since Ray shows a job's command; set it in the "
            "environment of the head, where Ray starts"
        )
    settings = {}
    for name in arguments.setting or []:
        if "/" in name or name.endswith((".yaml", ".yml")):
            path = Path(name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"--setting must be a file below this folder with --cluster, got {name}; copy it here")
            settings[name] = path.read_text(encoding="utf-8")
    left_out = ["--cluster", "--export", *(["--address"] if jobs_url(arguments.address or "") else [])]
    kept = [word for word in without_options(typed, *left_out) if word != "--detach"]
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Request(
        job=f"search-{stamp}-{secrets.token_hex(2)}",
        arguments=kept,
        typed=[word for word in typed if word != "--detach"],
        settings=settings,
        code=code_digest(),
    )


def is_search(job: Job) -> bool:
    return job.metadata.get("kind") == KIND


def follow_home(at: Place, name: str) -> int:
    """Print a job's log until it ends, then bring its results home. Returns the search's exit code.

    Ctrl-C leaves: the job goes on, and the user learns how to come back.
    """
    try:
        job = follow(at.jobs, name)
        code = exit_code(job)
        if code < INTERRUPTED:
            bring_results(at, job)
        return code
    except KeyboardInterrupt:
        print(f"\nleft; job {name} goes on")
        print_ways(at, name)
        return INTERRUPTED
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        print("whether the job still runs is not known; when the cluster can be reached again:")
        print_ways(at, name)
        return SEARCH_FAILED


def follow(jobs: Jobs, name: str) -> Job:
    """Print a job's log as it grows. Returns the job when it has ended; a head out of reach is waited for."""
    shown = 0
    silent_since: float | None = None
    while True:
        try:
            job = jobs.job(name)  # before its log: that of a job that has ended is whole
            log = jobs.log(name) if job.status is not JobStatus.PENDING else ""
        except ConnectionError:
            now = time.monotonic()
            if silent_since is None:
                silent_since = now
                print("the cluster does not answer; trying again", file=sys.stderr)
            elif now - silent_since > GIVE_UP_S:
                raise
            time.sleep(5 * POLL_S)
            continue
        silent_since = None
        text = searchs_own(log, has_ended=job.has_ended)
        sys.stdout.write(text[shown:])
        sys.stdout.flush()
        shown = len(text)
        if job.has_ended:
            return job
        time.sleep(max(POLL_S, len(log) / 500_000))  # the log comes whole each time


def searchs_own(log: str, *, has_ended: bool) -> str:
    """The whole lines of a job's log that are not Ray's; of a job that has ended also a line without an end."""
    whole = log if has_ended else log[: log.rfind("\n") + 1]
    return RAYS_LINE.sub("", whole)


def exit_code(job: Job) -> int:
    """The search's exit code; says what happened where it has none of its own."""
    if job.status is JobStatus.SUCCEEDED:
        return DONE
    if job.status is JobStatus.STOPPED:
        print(f"job {job.name} was stopped; the same command with --resume goes on with it")
        return INTERRUPTED
    if job.exit_code is None:
        lines = [line for line in job.message.splitlines() if line.strip()]
        print(f"error: the job must start on the head, got: {(lines or ['no reason'])[-1][:300]}", file=sys.stderr)
        return SEARCH_FAILED
    if job.exit_code < 0 or job.exit_code > INTERRUPTED:
        print(
            f"error: the search was killed ({job.exit_code}); the same command with --resume goes on", file=sys.stderr
        )
        return SEARCH_FAILED
    return job.exit_code


def bring_results(at: Place, job: Job) -> None:
    """Merge what a job has exported into the module here, and copy its reports below the output folder.

    Says what it has brought. Nothing that comes from the cluster is executed. Its trouble ends nothing: it is said.
    """
    try:
        places = _bring(at, job)
    except (ValueError, OSError, tarfile.TarError, EOFError) as error:
        print(f"warning: the results stay on the cluster: {' '.join(str(error).split())}", file=sys.stderr)
        print(f"to fetch them: {at.command('logs', job.name)}", file=sys.stderr)
        return
    width = max((len(label) for label, _ in places), default=0)
    if places:
        print("\nbrought to this machine")
    for label, value in places:
        print(f"{label:<{width}}  {value}")


def _bring(at: Place, job: Job) -> list[tuple[str, str]]:
    places = []
    _, log = run_quietly(at.jobs, ["python", "-m", "tune_adamsrt.head_job", "pack", job.name], of=job.name)
    files = unpack(log)
    if files is None:
        raise ValueError(f"the head must pack the results, got: {(log.strip().splitlines() or ['no word'])[-1][:200]}")
    exported = files.pop(EXPORT, b"").decode()
    for entry in parse(exported, source=f"{EXPORT} of {job.name}"):
        shown = f"{short_path(at.export)}  ['{entry.dataset}']['{entry.model}']['{entry.optimizer}']"
        if not merge_entry(at.export, entry, may_replace=job.metadata.get("may_replace") == "yes"):
            shown = f"not exported: a reduced run does not replace {shown}; --export FILE exports it"
        places.append(("best values", shown))
    for name, content in files.items():
        if name.startswith("report/"):
            path = at.output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            if name.count("/") == 2 and name.endswith(".html"):
                places.append(("report", str(short_path(path))))
    if places and at.where[:1] == ("--cluster",):
        ray = shlex.join([str(Path(this_python()).with_name("ray")), "attach", "--port-forward", "5000", at.where[1]])
        places.append(("MLflow", f"{ray}   then open http://127.0.0.1:5000"))
    return places


def run_quietly(jobs: Jobs, command: Sequence[str], *, of: str) -> tuple[int, str]:
    """Run a command on the head to its end. Returns its exit code, and what it printed.

    Raises ConnectionError where it takes too long.
    """
    name = f"for-{of}-{secrets.token_hex(4)}"
    jobs.submit(name, shlex.join(command), metadata={"kind": f"for {of}"}, environment={})
    deadline = time.monotonic() + PACK_TIMEOUT_S
    while not (job := jobs.job(name)).has_ended:
        if time.monotonic() > deadline:
            raise ConnectionError(f"the head must answer within {PACK_TIMEOUT_S:g} s, got job {name} {job.status}")
        time.sleep(0.2)
    code = 0 if job.status is JobStatus.SUCCEEDED else job.exit_code or SEARCH_FAILED
    return code, searchs_own(jobs.log(name), has_ended=True)


def print_ways(at: Place, name: str) -> None:
    """Tell how to look at a job, get its results and stop it."""
    ways = [
        ("log and results", at.command("logs", name)),
        ("to stop it", at.command("logs", name, "--stop")),
    ]
    if at.where[:1] == ("--cluster",):
        ways.insert(0, ("how it stands", at.command("status", "--watch")))
    for label, command in ways:
        print(f"{label:<15}  {command}")


def find_job(jobs: Jobs, name: str | None) -> Job:
    """The job of that name, else the newest search that runs, else the newest. Raises ValueError."""
    if name is not None:
        if not JOB_NAME.fullmatch(name):
            raise ValueError(f"a job's name must be letters, digits, '_' and '-', got {name!r}; `--list` shows them")
        return jobs.job(name)
    searches = [job for job in jobs.all() if is_search(job)]
    if not searches:
        raise ValueError("the cluster must have a search that was submitted to it, got none")
    return max(searches, key=lambda job: (not job.has_ended, job.started_at))
