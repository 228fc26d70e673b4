"""What a capture asks of a GPU, and how it ends where something fails."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from adamsrt.capture import capture


@pytest.fixture
def calls(monkeypatch):
    """What a capture asks of a GPU, in order."""
    calls: list[str] = []

    class FakeGraph:
        def capture_begin(self, *, capture_error_mode) -> None:
            calls.append(f"begin {capture_error_mode}")

        def capture_end(self) -> None:
            calls.append("end")
            if "fail" in calls:
                raise RuntimeError("the capture is broken")

    @contextlib.contextmanager
    def entered(what):
        calls.append(f"on {what}")
        yield
        calls.append(f"off {what}")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "device", entered)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: entered("its stream"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty the cache"))
    return calls


A_STREAM = SimpleNamespace(device="its device")


@pytest.mark.parametrize("make_room", [True, False])
def test_a_capture_begins_and_ends_on_its_stream(make_room, calls):
    graph, given = capture(A_STREAM, lambda: calls.append("take") or 7, make_room=make_room)
    assert given == 7 and type(graph).__name__ == "FakeGraph"
    room = ["empty the cache"] if make_room else []
    taken = ["begin thread_local", "take", "end"]
    assert calls == ["on its device", "on its stream", *room, *taken, "off its stream", "off its device"]


def test_a_failed_capture_is_ended_and_tells_the_cause(calls):
    def fail() -> None:
        calls.append("fail")
        raise RuntimeError("the cause\nand where")

    with pytest.warns(UserWarning, match=r"goes on without a CUDA graph \(the cause\)"):
        assert capture(A_STREAM, fail, make_room=False) is None
    of_nothing = ["on its device", "on its stream", "begin thread_local", "end"]
    assert calls[2:] == ["begin thread_local", "fail", "end", *of_nothing], "random numbers work again after the second"
    assert capture(A_STREAM, lambda: calls.remove("fail"), make_room=False) is not None, "the next one may begin"


def test_an_error_that_is_no_failed_capture_is_raised(calls):
    with pytest.raises(KeyError):
        capture(A_STREAM, lambda: {}["missing"], make_room=False)
    assert "end" in calls


def test_too_little_memory_is_an_error_though_the_end_of_the_capture_fails_too(calls):
    def fill() -> None:
        calls.append("fail")
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        capture(A_STREAM, fill, make_room=False)
    assert "end" in calls
