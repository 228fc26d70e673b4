"""Ray's Jobs API, over HTTP: submit a command to a cluster's head, read its log, ask how it stands, stop it.

Ray's own client lets RAY_ADDRESS override the address that it is given, and asks through proxies; this one does not.
"""

import http.client
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

TIMEOUT_S = 60.0
DEFAULT_PORT = 8265


class JobStatus(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


@dataclass(frozen=True)
class Job:
    """A job as the head describes it.

    Attributes:
        exit_code: of its command; None while it runs, where it was stopped, and where it never started.
        message: why it failed, in Ray's words.
        started_at: seconds since the Unix epoch.
    """

    name: str
    status: JobStatus
    metadata: Mapping[str, str]
    exit_code: int | None
    message: str
    started_at: float

    @property
    def has_ended(self) -> bool:
        return self.status not in (JobStatus.PENDING, JobStatus.RUNNING)


class UnknownJobError(ValueError):
    """The cluster knows no job of that name."""


class Jobs:
    """The jobs of one cluster.

    Args:
        reach: gives the address of the Jobs API, http://HOST:PORT; called before every request, so that it may open a
            broken tunnel again. Raises ConnectionError or ValueError with one line.
        token: what Ray asks for; None where it asks for none.

    All methods raise ConnectionError where the head does not answer, ValueError where it refuses.
    """

    def __init__(self, reach: Callable[[], str], *, token: str | None) -> None:
        self._reach = reach
        self._token = token
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def submit(self, name: str, command: str, *, metadata: Mapping[str, str], environment: Mapping[str, str]) -> None:
        """Start a shell command on the head, as a job of this name, which must be new."""
        body = {
            "submission_id": name,
            "entrypoint": command,
            "metadata": dict(metadata),
            "runtime_env": {"env_vars": dict(environment)},
        }
        self._ask("POST", "/api/jobs/", body)

    def job(self, name: str) -> Job:
        return _job(self._ask("GET", f"/api/jobs/{name}"))

    def all(self) -> list[Job]:
        """Every submitted job that the cluster remembers, the newest last."""
        found = [_job(item) for item in self._ask("GET", "/api/jobs/") if item.get("submission_id")]
        return sorted(found, key=lambda job: job.started_at)

    def log(self, name: str) -> str:
        """All that the command has printed so far."""
        return str(self._ask("GET", f"/api/jobs/{name}/logs")["logs"])

    def stop(self, name: str) -> None:
        """Have the command told to stop (SIGTERM); it may take its time."""
        self._ask("POST", f"/api/jobs/{name}/stop")

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        address = self._reach()
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(address + path, data=data, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2000).decode(errors="replace")
            raise _refusal(error.code, text, has_token=self._token is not None) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError, json.JSONDecodeError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, socket.gaierror):
                reason = "no such host"
            raise ConnectionError(
                f"Ray's Jobs API must answer at {address}, got: {reason}; the head needs Ray's dashboard "
                "(pip install 'ray[default]') and must be up"
            ) from None


def read_token() -> str | None:
    """The token that Ray's own programs would show: RAY_AUTH_TOKEN, a file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.

    None where there is none, or where RAY_AUTH_MODE says that no token is wanted.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() not in ("token", ""):
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _job(item: Mapping[str, Any]) -> Job:
    return Job(
        name=item["submission_id"],
        status=JobStatus(item["status"]),
        metadata=item.get("metadata") or {},
        exit_code=item.get("driver_exit_code"),
        message=item.get("message") or "",
        started_at=(item.get("start_time") or 0) / 1000,
    )


def _refusal(code: int, text: str, *, has_token: bool) -> ValueError | ConnectionError:
    if code == 401 or (code == 403 and not has_token):
        return ValueError(
            "the cluster asks for a token, got none; copy its ~/.ray/auth_token to this machine (chmod 600)"
        )
    if code == 403:
        return ValueError("the cluster must know the token in ~/.ray/auth_token, got another; copy the cluster's here")
    if code == 404:
        return UnknownJobError(f"the cluster must know the job, got: {_first_line(text)}; `--list` shows its jobs")
    kind = ConnectionError if code >= 500 else ValueError  # a head that has much to do answers so for a while
    return kind(f"the cluster must take the request, got status {code}: {_first_line(text)}")


def _first_line(text: str) -> str:
    """The most telling line of a reply; a Python traceback ends with it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "no reason"
    return (lines[-1] if lines[0].startswith("Traceback") else lines[0])[:200]
