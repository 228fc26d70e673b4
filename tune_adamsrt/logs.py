"""The log of a search that was submitted to a cluster: `python -m tune_adamsrt.logs --cluster FILE [JOB]`.

Follows it while it runs, brings its results home when it has ended, and ends with its exit code; `--stop` stops it.
"""

import signal

if __name__ == "__main__":
    # The imports below take a second: Ctrl-C meanwhile ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import datetime
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from tune_adamsrt.cluster.job import (
    DEFAULT_OUTPUT,
    INTERRUPTED,
    POLL_S,
    STOP_WAIT_S,
    Place,
    find_job,
    follow_home,
    is_search,
    place,
)
from tune_adamsrt.cluster.jobs import DEFAULT_PORT, Job
from tune_adamsrt.head_job import EXPORT

DONE, USER_ERROR = 0, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the search's exit code; 0 with --list and --stop; 2 for a user's mistake."""
    arguments = parse_arguments(argv)
    address = arguments.address or (None if arguments.cluster else running_cluster())
    try:
        with place(arguments.cluster, address, export=arguments.export, output=arguments.output) as at:
            if arguments.list:
                return list_jobs(at)
            job = find_job(at.jobs, arguments.job)
            if arguments.stop:
                return stop(at, job)
            return follow_home(at, job.name)
    except (ValueError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains while it exits
        return DONE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"error: {message}; see --help", file=sys.stderr)
        sys.exit(USER_ERROR)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse; a bad option ends the process with one line and exit code 2."""
    parser = _Parser(
        prog="python -m tune_adamsrt.logs",
        description="Follow the log of a search that was submitted to a cluster, and bring its results here when it "
        "has ended. Ctrl-C leaves; the search goes on.",
    )
    parser.add_argument("job", nargs="?", metavar="JOB", help="its name (default: one that runs, else the newest)")
    parser.add_argument("--cluster", metavar="FILE", help="of `ray up`, such as cluster/gpu.yaml")
    parser.add_argument(
        "--address", metavar="URL", help="of the Jobs API, http://HOST:8265 (default: that of the cluster running here)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="print the searches of the cluster, and exit")
    what.add_argument("--stop", action="store_true", help="end the search cleanly; --resume can go on with it")
    parser.add_argument("--export", metavar="FILE", help=f"for the best values (default: {EXPORT})")
    parser.add_argument(
        "--output", default=DEFAULT_OUTPUT, metavar="DIR", help=f"for DIR/report/STUDY (default: {DEFAULT_OUTPUT})"
    )
    return parser.parse_args(argv)


def running_cluster() -> str:
    """The Jobs API of RAY_ADDRESS, or of the cluster that `ray start` left running on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address if "://" in address else f"http://127.0.0.1:{DEFAULT_PORT}"


def list_jobs(at: Place) -> int:
    for job in at.jobs.all():
        if is_search(job):
            print(describe(job))
    return DONE


def describe(job: Job) -> str:
    """A line: name, state, when it started, and the search's command line."""
    started = datetime.datetime.fromtimestamp(job.started_at).strftime("%Y-%m-%d %H:%M:%S")
    return f"{job.name}  {job.status.lower():<9}  {started}  {job.metadata.get('command', '')}"


def stop(at: Place, job: Job) -> int:
    """Have the search told to stop, and wait for it. It saves what it has, as at Ctrl-C."""
    if job.has_ended:
        print(f"job {job.name} has ended already: {job.status.lower()}")
        return DONE
    at.jobs.stop(job.name)
    print(f"job {job.name} is told to stop; what is recorded is kept", flush=True)
    has_ended, deadline = False, time.monotonic() + STOP_WAIT_S + 60
    while not has_ended and time.monotonic() < deadline:
        time.sleep(POLL_S)
        with contextlib.suppress(ConnectionError):
            has_ended = at.jobs.job(job.name).has_ended
    if not has_ended:
        raise ConnectionError(
            f"job {job.name} must end within {STOP_WAIT_S} s of the word to stop, got none; ask again"
        )
    print("stopped; the same command with --resume goes on with it")
    return DONE


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
