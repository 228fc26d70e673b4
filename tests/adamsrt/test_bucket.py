"""A data root that is a bucket: copied to the node once, from a local S3 server, or a folder named by a URI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem, copy_files
from tiny_data import write_tiny_datasets

from adamsrt.dataloaders import DATASETS, DataNotFoundError, bucket
from adamsrt.dataloaders.cache import cache_folder, load_image_sets
from adamsrt.dataloaders.cifar import CIFAR10

FETCH = """
import sys
from adamsrt.dataloaders import bucket
from adamsrt.dataloaders.cache import load_image_sets
from adamsrt.dataloaders.cifar import CIFAR10

copy = bucket.copy_files
def copy_files(*arguments, **options):
    print("copied", flush=True)
    copy(*arguments, **options)
bucket.copy_files = copy_files
print(len(load_image_sets(CIFAR10, sys.argv[1])[0].images))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMSRT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def uri(tmp_path):
    write_tiny_datasets(tmp_path / "far" / "data", train=60, test=20)
    return f"file://{tmp_path}/far/data"


def test_its_images_are_those_of_the_folder(uri, tmp_path):
    fetched, local = load_image_sets(CIFAR10, uri), load_image_sets(CIFAR10, tmp_path / "far" / "data")
    for ours, theirs in zip(fetched, local, strict=True):
        assert ours.images.equal(theirs.images) and ours.labels.equal(theirs.labels)


def test_once_fetched_the_bucket_is_not_needed(uri, tmp_path):
    DATASETS["cifar10"].prepare(uri)
    (tmp_path / "far").rename(tmp_path / "gone")
    assert len(load_image_sets(CIFAR10, uri)[0].images) == 60


def test_processes_that_start_at_once_fetch_it_once(uri):
    command = [sys.executable, "-c", FETCH, uri]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(3)]
    printed = [process.communicate(timeout=120)[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sorted(printed, key=len) == [["60"], ["60"], ["copied", "60"]]


def test_a_copy_that_breaks_off_leaves_nothing_behind(uri, monkeypatch):
    def broken(source, destination, **options):
        copy_files(source, destination, **options)
        raise OSError("connection reset")

    monkeypatch.setattr(bucket, "copy_files", broken)
    with pytest.raises(DataNotFoundError, match=r"cifar10 could not be fetched from file://.*connection reset"):
        load_image_sets(CIFAR10, uri)
    assert {path.name for path in (cache_folder(uri) / "files").iterdir()} == {".cifar10.lock"}
    monkeypatch.undo()
    os.environ["ADAMSRT_CACHE_DIR"] = str(Path(uri.removeprefix("file://")).parents[1] / "cache")
    assert len(load_image_sets(CIFAR10, uri)[0].images) == 60


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("file:///no/such/folder", "no cifar-10-batches-py/ or cifar-10-python.tar.gz and no cifar10/train"),
        ("nothing://bucket", "could not be fetched from nothing://bucket"),
    ],
)
def test_a_bucket_without_it_is_one_line(root, message):
    with pytest.raises(DataNotFoundError, match=message):
        load_image_sets(CIFAR10, root)


def test_imagenet_is_read_from_folders_only(uri):
    with pytest.raises(DataNotFoundError, match="imagenet must be in a folder"):
        DATASETS["imagenet"].prepare(uri)


def test_s3(uri, monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        filesystem, _ = FileSystem.from_uri("s3://images?allow_bucket_creation=true&region=us-east-1")
        filesystem.create_dir("images")
        copy_files(uri, "images/sets", destination_filesystem=filesystem)
        assert len(load_image_sets(CIFAR10, "s3://images/sets?region=us-east-1")[1].images) == 20
    finally:
        server.stop()
