"""The background writer: one thread that sends what the runs have to be told, and tries again while nobody answers.

`wake` only sets a flag. What is on record stays where it is (see `Run.points`), so that a store that is away for hours
costs no memory, and nothing is dropped; what a search means in MLflow's terms is tracking.py's.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

from tune_adamsrt.mlflow.run import Run
from tune_adamsrt.mlflow.sender import Sender, Sent
from tune_adamsrt.mlflow.store import QUIET_ENVIRONMENT, TrackingOffError
from tune_adamsrt.mlflow.uri import mask_secrets

TRIES_BEFORE_WARNING = 3
BACKOFF_S = 0.25  # doubled with each failure in a row
LONGEST_BACKOFF_S = 30.0
CPU_SHARE = 0.02  # the thread shares a core with the driver: the dearer it was, the longer it gathers
LONGEST_GATHERING_S = 30.0


class Writer:
    """One thread that sends what the runs have to be told.

    Args:
        on_warning: told of each kind of trouble once, in one line without secrets. Called from the thread.
        flush_interval_s: how long news is gathered before it is sent together, at least.
    """

    def __init__(self, uri: str, on_warning: Callable[[str], None] | None, flush_interval_s: float) -> None:
        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._uri = uri
        self._on_warning = on_warning
        self._gathering_s = self._flush_interval_s = flush_interval_s
        self._runs: list[Run] = []
        self._has_news = threading.Event()
        self._is_closing = threading.Event()
        self._is_off = False
        self._failures = 0  # in a row
        self._warned: set[str] = set()
        self._sender: Sender | None = None
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)

    @property
    def is_answering(self) -> bool:
        return self._thread.is_alive() and not self._is_off and self._failures < TRIES_BEFORE_WARNING

    @property
    def sent(self) -> Sent:
        return Sent() if self._sender is None else self._sender.sent

    def start(self, experiment: str, key: str = "") -> None:
        """Start the thread; runs whose key begins with `key` are looked up before they are created."""
        self._sender = Sender(self._uri, experiment=experiment, key=key, warn=self.warn)
        self._thread.start()
        self.wake()

    def add(self, run: Run) -> Run:
        self._runs.append(run)
        return run

    def wake(self) -> None:
        """There is something new to send. Touches neither disk nor network."""
        if not self._has_news.is_set():
            self._has_news.set()

    def close(self, timeout_s: float | None) -> None:
        """Send what is left and end the thread; after three failures in a row it ends without."""
        self._is_closing.set()
        self._has_news.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def warn(self, kind: str, text: str) -> None:
        """Tell the user, once for each kind."""
        if kind in self._warned or self._on_warning is None:
            return
        self._warned.add(kind)
        line = mask_secrets(" ".join(text.split()))
        try:
            self._on_warning(line if len(line) <= 300 else line[:297] + "...")
        except Exception:
            logging.getLogger(__name__).debug("on_warning raised", exc_info=True)

    def _work(self) -> None:
        while True:
            self._has_news.wait()
            # a moment later there is more to say, and one call says it all
            is_last = self._is_closing.wait(self._gathering_s)
            self._has_news.clear()
            try:
                self._send_all()
                self._failures = 0
                if is_last:
                    return
            except TrackingOffError as error:
                self._switch_off(error)
                return
            except Exception as error:  # whatever a store, a driver or a plugin raises, the search goes on
                self._failures += 1
                if self._failures >= TRIES_BEFORE_WARNING:
                    self.warn(
                        "no answer",
                        f"MLflow at {self._uri} does not take the results; they are kept and sent later ({error})",
                    )
                    if is_last:
                        return
                self._has_news.set()
                self._back_off(is_last)

    def _back_off(self, is_last: bool) -> None:
        delay_s = min(BACKOFF_S * 2**self._failures, 1.0 if is_last else LONGEST_BACKOFF_S)
        if is_last:
            time.sleep(delay_s)
        else:
            self._is_closing.wait(delay_s)

    def _send_all(self) -> None:
        assert self._sender is not None
        self._sender.open()
        begun_s = time.thread_time()
        # one run that the store chokes on must not hold up the others
        for run in sorted(self._runs, key=lambda run: run.failures):
            if run.parent is not None and run.parent.run_id is None:
                self._send(self._sender, run.parent)
            if not run.is_settled:
                self._send(self._sender, run)
        cpu_s = time.thread_time() - begun_s
        self._gathering_s = max(self._flush_interval_s, min(cpu_s / CPU_SHARE, LONGEST_GATHERING_S))

    def _send(self, sender: Sender, run: Run) -> None:
        run.failures += 1
        sender.send(run)
        run.failures = 0

    def _switch_off(self, error: Exception) -> None:
        self.warn("off", str(error))
        self._is_off = True
        for run in self._runs:
            run.is_created.set()
