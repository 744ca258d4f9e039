"""MNIST and CIFAR from files in the official formats: whole, cut off and malicious. The stage that looks at them."""

import argparse
import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_files import cifar_bytes, idx_bytes, mnist_bytes, some_cifar, that_makes
from small import on_cpu, small_job

from pipeline import data, data_sets
from pipeline.config import job_id
from pipeline.data import load_split
from pipeline.data_config import DATA_SIZES, DataConfig
from pipeline.images import read_cifar_batch, read_idx
from pipeline.paths import Paths
from pipeline.train import train
from pipeline.training import Training


def test_idx_gives_what_was_written(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    (tmp_path / "x").write_bytes(idx_bytes(array))
    assert np.array_equal(read_idx(tmp_path / "x", (5, 4, 3)).numpy(), array)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:7], lambda b: b"\1" + b[1:]])
def test_idx_that_is_not_whole_is_refused_by_name(tmp_path, change):
    (tmp_path / "x").write_bytes(change(idx_bytes(np.zeros((5, 4, 3)))))
    with pytest.raises(ValueError, match=f"^{tmp_path / 'x'}: .*header"):
        read_idx(tmp_path / "x", (5, 4, 3))


def test_idx_of_another_shape_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(idx_bytes(np.zeros((5, 3, 4))))
    with pytest.raises(ValueError, match="does not announce 5 x 4 x 3 bytes"):
        read_idx(tmp_path / "x", (5, 4, 3))


@pytest.mark.parametrize("columns_first", [False, True])
@pytest.mark.parametrize("key", ["labels", "fine_labels"])
def test_a_cifar_batch_gives_what_was_written(tmp_path, key, columns_first):
    """A row is 1,024 red, then green, then blue values, each plane row by row."""
    pixels, labels = some_cifar()
    (tmp_path / "b").write_bytes(cifar_bytes(pixels, labels, key, columns_first))
    found, found_labels = read_cifar_batch(tmp_path / "b", key, 3)
    assert found.dtype == torch.uint8
    assert np.array_equal(found[2, 1, 4].numpy(), pixels[2, 1024 + 4 * 32 : 1024 + 5 * 32])
    assert np.array_equal(found.flatten(1).numpy(), pixels)
    assert found_labels.tolist() == labels


@pytest.mark.parametrize("length", [0, 20, 5000, -1])
def test_a_cifar_batch_that_is_cut_off_is_refused_by_name(tmp_path, length):
    (tmp_path / "b").write_bytes(cifar_bytes(*some_cifar())[:length])
    with pytest.raises(ValueError, match=f"^{tmp_path / 'b'}: not a batch of CIFAR"):
        read_cifar_batch(tmp_path / "b", "labels", 3)


def test_a_cifar_batch_of_other_labels_is_refused(tmp_path):
    (tmp_path / "b").write_bytes(cifar_bytes(*some_cifar(), key="coarse_labels"))
    with pytest.raises(ValueError, match="labels `fine_labels` are expected"):
        read_cifar_batch(tmp_path / "b", "fine_labels", 3)


def test_nothing_that_a_pickle_says_is_done(tmp_path):
    made = str(tmp_path / "made")
    payload = that_makes(made)
    pixels, labels = some_cifar()
    (tmp_path / "b").write_bytes(cifar_bytes(pixels, labels, filenames=payload))
    read_cifar_batch(tmp_path / "b", "labels", 3)
    (tmp_path / "c").write_bytes(b"\x80\x02" + payload + b".")
    with pytest.raises(ValueError, match="not a batch of CIFAR"):
        read_cifar_batch(tmp_path / "c", "labels", 3)
    assert not os.path.exists(made)


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """MNIST's four files, for 20 and 10 images."""
    monkeypatch.setitem(DATA_SIZES, "mnist", (20, 10))
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        for kind, content in zip(("images-idx3", "labels-idx1"), mnist_bytes(count)):
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(("part", "count"), [("train", 20), ("test", 10)])
def test_mnist_is_read_from_its_files(mnist, part, count):
    split = load_split(DataConfig("mnist"), part, str(mnist))
    wanted = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    assert np.array_equal(split.images[:, 0].numpy(), wanted)
    assert split.labels.tolist() == [n % 10 for n in range(count)]


def test_a_split_is_read_once_until_its_files_or_its_numbers_change(mnist, monkeypatch):
    """However it is split, and its images changed while they are trained on. One source is kept, and no more."""
    reads, reader = [], data_sets.READERS["mnist"]
    monkeypatch.setitem(data_sets.READERS, "mnist", lambda *asked: reads.append(asked[1]) or reader(*asked))
    config, root = DataConfig("mnist", num_validation=5), str(mnist)
    first = [load_split(config, split, root) for split in ("train", "validation", "test")]
    again = [load_split(replace(config, flip=True), split, root) for split in ("train", "validation", "test")]
    assert reads == ["train", "test"]
    assert all(one.source is other.source for one, other in zip(first, again, strict=True))
    other = load_split(replace(config, split_seed=1), "train", root)
    assert not torch.equal(other.images, first[0].images)
    assert len(data._kept) == 1
    file = mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content, before = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(content[:8] + bytes(20))
    os.utime(file, ns=(before + 1, before + 1))
    assert load_split(replace(config, split_seed=1), "train", root).labels.tolist() == [0] * 15
    file.unlink()
    with pytest.raises(ValueError, match="missing"):
        load_split(replace(config, split_seed=1), "train", root)


@pytest.mark.parametrize("name", ["digits", "spheres"])
def test_who_trains_does_not_write_to_what_the_next_is_given(name, tmp_path):
    of = {"digits": {}, "spheres": {"num_train": None, "dimension": 2}}[name]
    config = small_job(data={"name": name} | of, model={"field": "perceptron", "pad_channels": None} if of else None)
    splits = [load_split(config.data, split, "") for split in ("train", "validation")]
    tensors = [tensor for split in splits for tensor in (split.source, split.labels)]
    before = [(tensor._version, tensor.clone()) for tensor in tensors]
    run = on_cpu(data_root="")
    assert train({job_id(config): config}, Paths(str(tmp_path / "stacked")), run, lambda: False)
    training = Training(config, "plain", run)
    assert training.split.source is tensors[0]
    training.run_epoch(lambda: False)
    for tensor, (version, content) in zip(tensors, before, strict=True):
        assert tensor._version == version
        assert torch.equal(tensor, content)


def test_mnist_missing_or_damaged_is_told_with_the_file_and_the_command(mnist):
    file = mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = file.read_bytes()
    for damage in (content[:-1], b"\0" + content):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=f"{file}: .*delete it, then run `python -m pipeline.data mnist --root"):
            load_split(DataConfig("mnist"), "train", str(mnist))
    file.write_bytes(content[:-1] + b"\x0a")
    with pytest.raises(ValueError, match="labels beyond its 10 classes"):
        load_split(DataConfig("mnist"), "train", str(mnist))
    file.unlink()
    with pytest.raises(ValueError, match=f"{file}: missing; run .* --download`"):
        load_split(DataConfig("mnist"), "train", str(mnist))
    with pytest.raises(ValueError, match=r"nowhere/MNIST/raw: missing; run .* --root .*nowhere --download`"):
        load_split(DataConfig("mnist"), "train", str(mnist / "nowhere"))


@pytest.mark.parametrize(("name", "key"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_is_read_only_with_the_right_checksum(tmp_path, monkeypatch, name, key):
    official = data_sets._official(name)
    monkeypatch.setitem(DATA_SIZES, name, (4, 3))
    files = [["one", 0], ["two", 2]]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    folder = tmp_path / official.base_folder
    folder.mkdir()
    for entry in files:
        file, first = entry
        content = cifar_bytes(pixels[first : first + 2], [first, first + 1], key)
        (folder / file).write_bytes(content)
        entry[1] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(official, "train_list", files)
    split = load_split(DataConfig(name), "train", str(tmp_path))
    assert np.array_equal(split.images.flatten(1).numpy(), pixels)
    assert split.labels.tolist() == [0, 1, 2, 3]
    whole = (folder / "two").read_bytes()
    (folder / "two").write_bytes(whole.replace(b"training", b"Training"))  # readable, but not the official file
    with pytest.raises(ValueError, match=f"two: damaged .*delete it, then run `python -m pipeline.data {name} "):
        load_split(DataConfig(name), "train", str(tmp_path))
    (folder / "two").unlink()
    with pytest.raises(ValueError, match="two: missing"):
        load_split(DataConfig(name), "train", str(tmp_path))


def arguments(name: str, **changes) -> argparse.Namespace:
    plain = {"root": "", "download": False, "output": None, "dimension": None, "folder": None, "image_size": None}
    return argparse.Namespace(name=name, **plain | {"num_classes": None} | changes)


def test_the_stage_writes_what_it_found(mnist, capsys):
    output = mnist / "results" / "mnist.json"
    data.main(arguments("mnist", root=str(mnist), output=str(output)))
    found = json.loads(output.read_text())
    assert {k: found[k] for k in ("name", "train", "test")} == {"name": "mnist", "train": 20, "test": 10}
    assert capsys.readouterr().out.count("\n") == 1
    image = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    data.main(arguments("mnist", root=str(mnist), output=str(output)))
    assert json.loads(output.read_text())["sha256"] != found["sha256"]
