"""A cloud's metadata service, played on this machine."""

import contextlib
import datetime
import email.utils
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NOW = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=3)  # the service's clock, not this machine's
TOKEN = "a token"
AWS_NOTICE = "/latest/meta-data/spot/instance-action"
GCP_NOTICE = "/computeMetadata/v1/instance/preempted"


class Metadata:
    """What the service says.

    Attributes:
        answers: path -> status and text.
        is_google: else it is AWS's, of which version 2 alone answers.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, tuple[int, str]] = {}
        self.is_google = False

    def take_away(self, seconds: float) -> None:
        """Give AWS's notice."""
        end = (NOW + datetime.timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.answers[AWS_NOTICE] = 200, json.dumps({"action": "terminate", "time": end})


@contextlib.contextmanager
def metadata_service() -> Iterator[Metadata]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            is_right = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
            self._answer(*((200, TOKEN) if is_right and not known.is_google else (405, "")))

        def do_GET(self) -> None:
            asked_well = self.headers["Metadata-Flavor"] == "Google"
            if not known.is_google:
                asked_well = self.headers["X-aws-ec2-metadata-token"] == TOKEN
            self._answer(*(known.answers.get(self.path, (404, "")) if asked_well else (401, "")))

        def _answer(self, status: int, text: str) -> None:
            self.send_response_only(status)
            self.send_header("Date", email.utils.format_datetime(NOW, usegmt=True))
            if known.is_google:
                self.send_header("Metadata-Flavor", "Google")
            self.end_headers()
            self.wfile.write(text.encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known = Metadata(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
