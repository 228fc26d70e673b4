"""The wheel holds both packages and the search spaces: build it, install it, use it from elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    run = {"check": True, "capture_output": True, "text": True, "timeout": 300}
    # --no-isolation: hatchling is pinned in requirements.txt
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, **run)
    [wheel] = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)], **run
    )
    code = (
        "import adamsrt, tune_adamsrt.search, tune_adamsrt.settings as s;"
        "print(adamsrt.__file__); print(s.__file__); print(*s.known_settings());"
        "print(s.load_setting('resnet18-cifar100').epochs)"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, **run)
    library, settings, names, epochs = done.stdout.splitlines()
    assert library.startswith(str(installed)) and settings.startswith(str(installed))
    assert names.split() == sorted(path.stem for path in (REPOSITORY / "search_spaces").glob("[!_]*.yaml"))
    assert epochs == "405"
    assert not (REPOSITORY / "build").exists()
