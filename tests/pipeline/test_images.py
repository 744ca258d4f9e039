"""Folders of pictures, and what is kept of them."""

import os
import resource
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import images
from pipeline.data import load_split
from pipeline.data_config import DataConfig
from pipeline.images import read_folder


@pytest.fixture
def folder(tmp_path):
    """Two classes; image i of a class is of one colour, (class, i, 7)."""
    for part, number in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (9, 5), (label, i, 7)).save(tmp_path / part / name / f"{i}.bmp")
    return tmp_path


def decoding_forbidden(*arguments):
    raise AssertionError("decoded again")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_folder_gives_its_images_with_their_classes(folder, part):
    (folder / part / "cat" / ".hidden").write_text("no image")
    found, labels = read_folder(folder, part, 4, 2)
    assert found.shape == (12 if part == "train" else 4, 3, 4, 4)
    assert torch.equal(found[:, 0, 0, 0].long(), labels)
    assert labels.bincount().tolist() == [len(labels) // 2] * 2
    assert bool((found[:, 2] == 7).all())
    assert len({tuple(image[:, 3, 3].tolist()) for image in found}) == len(found)
    assert part == "test" or labels.tolist() != sorted(labels.tolist())


def test_an_image_of_the_wanted_size_is_left_as_it_is(folder):
    pixels = np.random.default_rng(2).integers(0, 256, (5, 5, 3), np.uint8)
    for file in (folder / "train").glob("*/*.bmp"):
        Image.fromarray(pixels).save(file)
    found, _ = read_folder(folder, "train", 5, 2)
    assert all(np.array_equal(image, pixels.transpose(2, 0, 1)) for image in found.numpy())


def test_images_are_decoded_once(folder, monkeypatch):
    first = [part.clone() for part in read_folder(folder, "train", 4, 2)]
    read_folder(folder, "test", 4, 2)
    monkeypatch.setattr(images, "_decode", decoding_forbidden)
    assert all(map(torch.equal, first, read_folder(folder, "train", 4, 2)))


def test_decoding_holds_a_few_images_at_a_time(folder):
    """A folder may be larger than the memory, most of all than that of the machine where people log in."""
    read_folder(folder, "test", 128, 2)  # what is imported and made once
    tracemalloc.start()
    try:
        found, _ = read_folder(folder, "train", 128, 2)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < found.nbytes / 2


def test_what_a_killed_decoding_has_left_goes(folder):
    left = folder / ".decoded-4" / ".train-0123456789abcdef.npy.01234567.part"
    left.parent.mkdir()
    left.write_bytes(b"half")
    read_folder(folder, "train", 4, 2)
    assert len(list(left.parent.iterdir())) == 1


def test_two_that_decode_at_once_both_have_the_images(folder, monkeypatch, caplog):
    wanted = read_folder(folder, "train", 4, 2)[0].clone()
    shutil.rmtree(folder / ".decoded-4")
    decode, other = images._decode, []

    def decode_beside_another(path, size):
        monkeypatch.setattr(images, "_decode", decode)
        other.append(read_folder(folder, "train", 4, 2)[0])
        return decode(path, size)

    monkeypatch.setattr(images, "_decode", decode_beside_another)
    assert torch.equal(read_folder(folder, "train", 4, 2)[0], wanted)
    assert torch.equal(other[0], wanted)
    assert len(list((folder / ".decoded-4").iterdir())) == 1
    assert "cannot be kept" not in caplog.text


def test_a_disk_that_is_full_leaves_nothing_behind(folder, caplog):
    """No file may grow beyond a few images here. A map of a file would end the process."""
    wanted = read_folder(folder, "train", 128, 2)[0].clone()
    shutil.rmtree(folder / ".decoded-128")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wanted.nbytes // 2, before[1]))
    try:
        found, _ = read_folder(folder, "train", 128, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(found, wanted)
    assert "cannot be kept" in caplog.text
    assert not list((folder / ".decoded-128").iterdir())


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "replaced", "moved"])
def test_a_changed_folder_gives_what_it_holds_now_and_keeps_one_file(folder, change):
    """Files of one size and time alike, so that a name alone must tell that one was renamed."""
    for file in (folder / "train").glob("*/*"):
        os.utime(file, (1, 1))
    read_folder(folder, "train", 4, 2)
    file = folder / "train" / "cat" / "0.bmp"
    if change == "removed":
        file.unlink()
    elif change in ("renamed", "moved"):
        file.rename(folder / "train" / ("cat" if change == "renamed" else "dog") / "zero.bmp")
    else:
        new = file if change == "replaced" else file.with_name("6.bmp")
        Image.new("RGB", (9, 5), (0, 200, 7)).save(new)
        os.utime(new, (2, 2))
    found = [part.clone() for part in read_folder(folder, "train", 4, 2)]
    assert len(list((folder / ".decoded-4").iterdir())) == 1
    shutil.rmtree(folder / ".decoded-4")
    assert all(map(torch.equal, found, read_folder(folder, "train", 4, 2)))


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:20], lambda b: b""])
def test_a_kept_file_that_is_damaged_is_made_again(folder, damage):
    wanted = read_folder(folder, "train", 4, 2)[0].clone()
    (kept,) = (folder / ".decoded-4").iterdir()
    kept.write_bytes(damage(kept.read_bytes()))
    assert torch.equal(read_folder(folder, "train", 4, 2)[0], wanted)
    assert np.array_equal(np.load(kept, allow_pickle=False), wanted.numpy())


def test_a_folder_that_cannot_be_written_still_gives_its_images(folder, caplog):
    wanted = read_folder(folder, "train", 4, 2)[0].clone()
    for kept in (folder / ".decoded-4").iterdir():
        kept.unlink()
    (folder / ".decoded-4").rmdir()
    (folder / ".decoded-4").write_text("in the way: no folder can be made here")
    assert torch.equal(read_folder(folder, "train", 4, 2)[0], wanted)
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_what_is_no_image_is_named(folder, content):
    file = folder / "train" / "dog" / "3.bmp"
    file.write_bytes(file.read_bytes()[:45] if content == "cut" else content)
    with pytest.raises(ValueError, match=f"^{file}: cannot be decoded"):
        read_folder(folder, "train", 4, 2)


def test_another_layout_is_refused_with_what_is_expected(folder, tmp_path):
    with pytest.raises(ValueError, match="has 2 class folders, but num_classes is 3"):
        read_folder(folder, "train", 4, 3)
    (folder / "test" / "dog").rename(folder / "test" / "dogs")
    with pytest.raises(ValueError, match="only one has: dog, dogs"):
        read_folder(folder, "train", 4, 2)
    with pytest.raises(ValueError, match=r"none/train: no such folder; images are expected as .*/train/<class>"):
        read_folder(tmp_path / "none", "train", 4, 2)
    for name in ("cat", "dogs"):
        for file in (folder / "test" / name).iterdir():
            file.unlink()
    (folder / "test" / "dogs").rename(folder / "test" / "dog")
    with pytest.raises(ValueError, match="test: holds no images"):
        read_folder(folder, "test", 4, 2)


def test_imagefolder_is_read_under_the_root_and_split(folder):
    config = DataConfig("imagefolder", folder=folder.name, image_size=4, num_classes=2, num_validation=4)
    train, validation = (load_split(config, split, str(folder.parent)) for split in ("train", "validation"))
    assert train.labels.bincount().tolist() == [4, 4]
    assert validation.labels.bincount().tolist() == [2, 2]
    assert torch.equal(train.images[:, 0, 0, 0].long(), train.labels)


def test_digits_are_scikit_learns_own(monkeypatch):
    """The file that is read directly, and the package's function where the file is not found."""
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    read = images.read_digits()
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    for table in (read, images.read_digits()):
        assert (table[:, :64] == pixels).all()
        assert (table[:, 64] == targets).all()
