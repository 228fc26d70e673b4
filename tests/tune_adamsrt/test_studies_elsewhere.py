"""`--list-studies` of a cluster: what the head lists arrives here. The way there and back is in test_cluster_job."""

import contextlib
import io
import json
from types import SimpleNamespace

import optuna
import pytest

from tune_adamsrt import head_job, search
from tune_adamsrt.storage import open_storage


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The head's home folder; a submitted search keeps its studies in `shared`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)  # head_job changes it
    for name in ("shared", "tune_adamsrt/jobs/search-1"):
        (tmp_path / name).mkdir(parents=True)
    optuna.create_study(study_name="on-the-head", storage=open_storage(str(tmp_path / "shared" / "optuna.journal")))
    place = json.dumps(["--output", str(tmp_path / "shared")])
    (tmp_path / "tune_adamsrt/jobs/search-1/place.json").write_text(place)
    return tmp_path


@pytest.fixture
def cluster(home, monkeypatch):
    """Runs on the head, in this process, what is submitted."""

    def run_there(jobs, command, *, of):
        assert command[:3] == ["python", "-m", "tune_adamsrt.head_job"]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            code = head_job.main(command[3:])
        return code, out.getvalue()

    monkeypatch.setattr(search, "place", lambda *args, **more: contextlib.nullcontext(SimpleNamespace(jobs=None)))
    monkeypatch.setattr(search, "run_quietly", run_there)


@pytest.mark.usefixtures("cluster")
def test_the_heads_studies_are_listed(capsys):
    assert search.main(["--list-studies", "--cluster", "gpu.yaml"]) == 0
    assert capsys.readouterr().out.split()[0] == "on-the-head"
    assert search.main(["--list-studies", "--cluster", "gpu.yaml", "--output", "elsewhere"]) == 2
    assert "error: the study storage must exist, got" in capsys.readouterr().out


@pytest.mark.usefixtures("cluster")
def test_no_password_is_shown_by_ray(capsys):
    hidden = ["--study-storage", "postgresql://me:hush@host/db"]
    assert search.main(["--list-studies", "--cluster", "gpu.yaml", *hidden]) == 2
    said = capsys.readouterr().err
    assert "must hold no password" in said and "hush" not in said
