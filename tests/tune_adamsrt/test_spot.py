"""The watcher on a spot machine, against metadata services that are played."""

import datetime
import json
import subprocess

import pytest
from cloud_metadata import AWS_NOTICE, GCP_NOTICE, NOW, metadata_service

from tune_adamsrt import spot


@pytest.fixture
def metadata():
    with metadata_service() as service:
        yield service


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ((404, ""), None),
        ((500, "busy"), None),
        ((200, json.dumps({"action": "terminate", "time": f"{NOW + datetime.timedelta(seconds=90):%FT%TZ}"})), 90),
        ((200, json.dumps({"action": "stop", "time": f"{NOW - datetime.timedelta(seconds=5):%FT%TZ}"})), 0),
        ((200, "what is this"), spot.AWS_NOTICE_S),
        ((200, json.dumps({"action": "hibernate"})), spot.AWS_NOTICE_S),
    ],
)
def test_aws_says_how_long_by_its_own_clock(metadata, answer, seconds):
    notice = spot.find_cloud(metadata.url)
    metadata.answers[AWS_NOTICE] = answer
    assert notice() == (None if seconds is None else pytest.approx(seconds, abs=1.5))


@pytest.mark.parametrize(("text", "seconds"), [("FALSE", None), ("TRUE", 30.0), ("TRUE\n", 30.0)])
def test_google_says_whether(metadata, text, seconds):
    metadata.is_google = True
    notice = spot.find_cloud(metadata.url)
    metadata.answers[GCP_NOTICE] = (200, text)
    assert notice() == seconds


def test_a_machine_of_ones_own_is_left_alone(monkeypatch, capsys):
    for name, value in (("SILENT_FOR_S", 0.05), ("POLL_EVERY_S", 0.01)):
        monkeypatch.setattr(spot, name, value)
    assert spot.main(["--metadata", "http://127.0.0.1:9"]) == 0
    assert "nothing to watch" in capsys.readouterr().out


def test_ray_is_told_until_it_listens(metadata, monkeypatch, capsys):
    """Ray may be starting when the notice comes, and the service may be busy for a moment."""
    commands = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, len(commands) % 2, "", "no cluster\nhere")

    answers = iter([OSError("busy"), None, 90.0, 80.0])

    def notice(url):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(spot.subprocess, "run", run)
    monkeypatch.setattr(spot, "aws_notice", notice)
    monkeypatch.setattr(spot, "POLL_EVERY_S", 0.01)
    assert spot.main(["--metadata", metadata.url]) == 0
    assert len(commands) == 2 and commands[0][-1] == "10" and "--node-id" not in commands[0]
    assert "no cluster here" in capsys.readouterr().out


@pytest.mark.parametrize(("left", "deadline"), [(120, "10"), (30, "10"), (12, "6"), (0, "1")])
def test_the_deadline_comes_before_the_end(left, deadline, monkeypatch):
    commands = []
    monkeypatch.setattr(
        spot.subprocess, "run", lambda command, **_: commands.append(command) or subprocess.CompletedProcess(command, 0)
    )
    assert spot.drain(left, node_id="ab", address="head:6379")
    [command] = commands
    assert command[command.index("--deadline-remaining-seconds") + 1] == deadline
    assert command[-4:] == ["--address", "head:6379", "--node-id", "ab"]
