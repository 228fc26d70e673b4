"""Real MLflow servers for tests, and a proxy before one that can be slow, broken or away."""

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MLFLOW = str(Path(sys.executable).parent / "mlflow")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def start_server(command: Sequence[str], folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start an mlflow server and wait until it answers."""
    log = folder / "server.log"
    with log.open("a") as file:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # takes 9 seconds to stop
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    for _ in range(3000):  # five minutes, on a machine that is busy with other tests
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return server
        except OSError:
            time.sleep(0.1)
    server.kill()
    server.wait()
    raise AssertionError(log.read_text())


@contextmanager
def serving(command: Sequence[str], folder: Path, port: int | None = None) -> Iterator[str]:
    """The URL of an mlflow server."""
    port = port or free_port()
    server = start_server(command, folder, port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


class Proxy:
    """Stands before a server. While `fault` is set, requests meet it first.

    Attributes:
        fault: called with method, path and body; returns the status to answer with instead, or None to pass it on.
        requests: method and path of each request that came.
    """

    def __init__(self, upstream: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.fault: Any = lambda method, path, body: None
        self.requests: list[tuple[str, str]] = []
        self._upstream = upstream.removeprefix("http://")
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests.append((self.command, self.path))
                status = proxy.fault(self.command, self.path, body)
                if status is not None:
                    self.answer(status, b'{"error_code": "INTERNAL_ERROR", "message": "made up by the test"}')
                    return
                upstream = http.client.HTTPConnection(proxy._upstream, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                upstream.request(self.command, self.path, body, {**headers, "Host": proxy._upstream})
                answer = upstream.getresponse()
                self.answer(answer.status, answer.read())
                upstream.close()

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 (names of the standard library)

            def log_message(self, *args: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
