"""Fetching data sets: from a server of our own, that has small files in the official formats."""

import argparse
import gzip
import hashlib
import io
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from image_files import cifar_bytes, mnist_bytes, text, that_makes
from torchvision import datasets

from pipeline import data
from pipeline.data import load_split
from pipeline.data_config import DATA_SIZES, DataConfig

COUNT = 2  # images of a file of CIFAR
NUM_TRAIN, NUM_TEST = 20, 10  # of MNIST
KEYS = {"cifar10": "labels", "cifar100": "fine_labels"}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


class Server:
    """Files under `folder`, at `url`; `asked` for these paths so far."""

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format, *args):
                pass

            def do_GET(self):
                asked.append(self.path)
                super().do_GET()

        folder.mkdir()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Server(tmp_path / "served")
    yield server
    server.http.shutdown()
    server.http.server_close()


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def offer_cifar(server: Server, monkeypatch, name: str, filenames: bytes = b"]", meta: bytes = b"\x80\x02}.") -> Path:
    """Two files for the training, one for the test; returns the archive."""
    official = getattr(datasets, name.upper())
    monkeypatch.setitem(DATA_SIZES, name, (2 * COUNT, COUNT))
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 3072), np.uint8)
    contents = {file: cifar_bytes(pixels, [i, i + 1], KEYS[name], filenames=filenames) for i, file in enumerate("abc")}
    contents[official.meta["filename"]] = meta
    archive = server.folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file, content in contents.items():
            entry = tarfile.TarInfo(f"{official.base_folder}/{file}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    listed = [[file, md5(contents[file])] for file in "abc"]
    monkeypatch.setattr(official, "train_list", listed[:2])
    monkeypatch.setattr(official, "test_list", listed[2:])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": md5(meta)})
    monkeypatch.setattr(official, "url", f"{server.url}/cifar.tar.gz")
    monkeypatch.setattr(official, "filename", "cifar.tar.gz")
    monkeypatch.setattr(official, "tgz_md5", md5(archive.read_bytes()))
    return archive


def offer_mnist(server: Server, monkeypatch) -> None:
    """On the second mirror; the first one has nothing."""
    monkeypatch.setitem(DATA_SIZES, "mnist", (NUM_TRAIN, NUM_TEST))
    (server.folder / "second").mkdir()
    resources = []
    for prefix, count in (("train", NUM_TRAIN), ("t10k", NUM_TEST)):
        for kind, content in zip(("images-idx3", "labels-idx1"), mnist_bytes(count)):
            packed = gzip.compress(content)
            (server.folder / "second" / f"{prefix}-{kind}-ubyte.gz").write_bytes(packed)
            resources.append((f"{prefix}-{kind}-ubyte.gz", md5(packed)))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{server.url}/first/", f"{server.url}/second/"])


def stage(name: str, root: Path, **changes) -> None:
    plain = {"download": True, "output": None, "dimension": None, "folder": None, "image_size": None}
    data.main(argparse.Namespace(name=name, root=str(root), **plain | {"num_classes": None} | changes))


@pytest.mark.parametrize("name", KEYS)
def test_cifar_is_fetched_once_and_found_whole(server, monkeypatch, tmp_path, capsys, name):
    offer_cifar(server, monkeypatch, name)
    stage(name, tmp_path / "data")
    assert f"{name}: 4 training and 2 test samples" in capsys.readouterr().out
    assert load_split(DataConfig(name), "train", str(tmp_path / "data")).labels.tolist() == [0, 1, 1, 2]
    assert set(server.asked) == {"/cifar.tar.gz"}
    server.asked.clear()
    stage(name, tmp_path / "data")
    assert not server.asked


def test_a_damaged_file_of_cifar_is_made_anew_from_the_archive(server, monkeypatch, tmp_path):
    offer_cifar(server, monkeypatch, "cifar10")
    stage("cifar10", tmp_path / "data")
    file = tmp_path / "data" / FOLDERS["cifar10"] / "b"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    server.asked.clear()
    stage("cifar10", tmp_path / "data")
    assert file.read_bytes() == whole
    assert not server.asked


@pytest.mark.parametrize("name", KEYS)
def test_nothing_that_is_fetched_is_unpickled(server, monkeypatch, tmp_path, name):
    """Checksums are no answer to that: MD5 can be forged."""
    made = [tmp_path / "by a batch", tmp_path / "by the list of names"]
    batch, meta = (that_makes(str(folder)) for folder in made)
    offer_cifar(server, monkeypatch, name, filenames=batch, meta=b"\x80\x02}(" + text("x") + meta + b"u.")
    stage(name, tmp_path / "data")
    assert not any(folder.exists() for folder in made)


def test_an_archive_with_another_checksum_is_not_unpacked(server, monkeypatch, tmp_path):
    archive = offer_cifar(server, monkeypatch, "cifar10")
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"^cifar10 could not be fetched into .*corrupted"):
        stage("cifar10", tmp_path / "data")
    assert not (tmp_path / "data" / FOLDERS["cifar10"]).exists()


def test_mnist_is_fetched_from_whoever_has_it_and_only_what_is_missing(server, monkeypatch, tmp_path, capsys):
    offer_mnist(server, monkeypatch)
    stage("mnist", tmp_path / "data")
    assert "mnist: 20 training and 10 test samples" in capsys.readouterr().out
    assert len(set(server.asked)) == 8  # on both mirrors
    raw = tmp_path / "data" / "MNIST" / "raw"
    for file in (raw / "t10k-labels-idx1-ubyte", *raw.glob("*.gz")):
        file.unlink()
    server.asked.clear()
    stage("mnist", tmp_path / "data")
    assert set(server.asked) == {f"/{mirror}/t10k-labels-idx1-ubyte.gz" for mirror in ("first", "second")}


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_the_stage_fetches_only_when_told_and_tells_why_it_could_not(server, monkeypatch, tmp_path, name):
    offer = {"mnist": offer_mnist, "cifar10": partial(offer_cifar, name="cifar10")}[name]
    offer(server, monkeypatch)
    for file in server.folder.rglob("*.gz"):
        file.unlink()
    output = tmp_path / "found.json"
    with pytest.raises(ValueError, match=r"missing; run .* --download"):
        stage(name, tmp_path / "data", download=False, output=str(output))
    assert not server.asked
    with pytest.raises(ValueError, match=f"^{name} could not be fetched into {tmp_path / 'data'}: .*404") as error:
        stage(name, tmp_path / "data", output=str(output))
    assert "\n" not in str(error.value)
    assert not output.exists()


def test_what_is_drawn_or_comes_with_a_package_is_not_fetched(server, monkeypatch, tmp_path):
    offer_cifar(server, monkeypatch, "cifar10")
    stage("spheres", tmp_path, dimension=2)
    stage("digits", tmp_path)
    assert not server.asked
