"""How this machine reaches a cluster's head: by SSH, with what the file of `ray up` says, or by an address."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import yaml

from tune_adamsrt.cluster.jobs import DEFAULT_PORT

OPEN_TIMEOUT_S = 180.0  # SSH itself gives up sooner, and says why
COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Tunnel:
    """A tunnel to the Jobs API of the cluster that a file of `ray up` describes. It is opened when it is needed."""

    def __init__(self, cluster_file: Path) -> None:
        self._cluster_file = cluster_file
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._port = 0

    def reach(self) -> str:
        """The address of its end here. Raises ConnectionError where no tunnel can be opened."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._open()
        return f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        """End the tunnel, with the SSH that Ray has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def _open(self) -> None:
        self._port = _free_port()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115, closed with the tunnel
        # In a session of its own: Ctrl-C in the terminal is for the search's log, not for the tunnel.
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tune_adamsrt.cluster.open_tunnel",
                str(self._cluster_file),
                str(self._port),
                str(DEFAULT_PORT),
            ],
            stdin=subprocess.PIPE,  # it ends when this end is closed
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + OPEN_TIMEOUT_S
        while not _answers(self._port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._output.seek(0)
                text = self._output.read().decode(errors="replace")
                self.close()
                raise ConnectionError(explain(text, self._cluster_file))
            time.sleep(0.1)


@contextlib.contextmanager
def reaching(cluster_file: Path | None, url: str | None) -> Iterator[Callable[[], str]]:
    """Give what `Jobs` calls to reach a head: through a tunnel for a cluster file, directly for an address."""
    if cluster_file is None:
        yield lambda: url or f"http://127.0.0.1:{DEFAULT_PORT}"
        return
    tunnel = Tunnel(cluster_file)
    try:
        yield tunnel.reach
    finally:
        tunnel.close()


def check_cluster_file(path: str) -> Path:
    """The path of a file of `ray up`. Raises ValueError for anything else."""
    file = Path(path).expanduser()
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no YAML"
        raise ValueError(
            f"--cluster must name a file of `ray up` such as cluster/gpu.yaml, got {path}: {reason}"
        ) from None
    if not isinstance(content, dict) or not {"cluster_name", "provider"} <= set(content):
        raise ValueError(
            f"--cluster must name a file of `ray up` such as cluster/gpu.yaml, got {path}, which names no cluster"
        )
    return file


def jobs_url(address: str) -> str | None:
    """The address of the Jobs API that an --address stands for; None for the address of a Ray that is joined.

    http://HOST:PORT is the API itself. ray://HOST:PORT is Ray's client, which would run Tune in another process than
    the study; the same head takes the search as a job, at the dashboard's own port.
    """
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    if address.startswith("ray://") and (host := urlsplit(address).hostname):
        return f"http://{f'[{host}]' if ':' in host else host}:{DEFAULT_PORT}"
    return None


def run_in_terminal(cluster_file: Path, command: Sequence[str]) -> None:
    """Run a command on the head, in this terminal, over SSH. Raises ConnectionError where the head is not reached."""
    # `ray exec`, with nothing on its standard output but what the remote command prints.
    quiet = "import os, sys; sys.stdout = open(os.devnull, 'w'); from ray.scripts.scripts import main; main()"
    with tempfile.TemporaryFile() as errors:
        there = f"{shlex.join(command)} || true"
        done = subprocess.run(
            [sys.executable, "-c", quiet, "exec", str(cluster_file), there], stderr=errors, check=False
        )
        if done.returncode != 0:
            errors.seek(0)
            raise ConnectionError(explain(errors.read().decode(errors="replace"), cluster_file))


def explain(text: str, cluster_file: Path) -> str:
    """Why the head could not be reached, from what Ray and SSH said, in one line."""
    if "Head node of cluster" in text and "not found!" in text:
        return f"the cluster of {cluster_file} must be up, got no head; run `ray up {cluster_file}` first"
    lines = [line for each in text.splitlines() if (line := " ".join(COLORS.sub("", each).split()))]
    by_ssh = [line for line in lines if re.match(r"ssh: |.*(Permission denied|timed out|refused)", line)]
    telling = by_ssh or [line for line in lines if re.match(r"\S*(Error|Exception): \S", line)]
    reason = (telling or lines or ["no answer in time"])[-1]
    return f"the head of {cluster_file} must be reached by SSH, got: {reason[:200]}; `ray up {cluster_file}` starts it"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False
