"""Images read from files: scikit-learn's digits, idx files (MNIST), CIFAR's batches, folders with a folder per class.

Every reader gives pixels as uint8 and raises ValueError, beginning with the file, for what is not whole. No reader
runs anything that a file says: CIFAR's batches are pickles, and are read without unpickling them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
import os
import pickletools
import uuid
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

log = logging.getLogger(__name__)

Part = Literal["train", "test"]
CIFAR_SHAPE = (3, 32, 32)
TEXT = {"SHORT_BINSTRING", "BINSTRING"}  # of Python 2, which wrote CIFAR's batches
NUMBER = {"BININT1", "BININT2", "BININT"}
DECODING = "Pillow, RGB, bilinear"  # part of the name of what is kept: another way of decoding is another file


def read_digits() -> np.ndarray:
    """(1797, 65): scikit-learn's file, read without importing the package, which takes as long as importing torch; by
    the package where the file is not in its place."""
    package = importlib.util.find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package else ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    return np.column_stack((pixels, targets))  # type: ignore[arg-type]


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Bytes of the given shape, mapped into memory. An idx file is two zero bytes, the type (8: bytes), the number
    of dimensions, each size as four bytes with the highest first, then the entries (MNIST's home page)."""
    header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
    with open(path, "rb") as file:
        found = file.read(len(header))
    if found != header:
        raise ValueError(f"{path}: its header does not announce {' x '.join(map(str, shape))} bytes in idx format")
    size, wanted = path.stat().st_size, len(header) + math.prod(shape)
    if size != wanted:
        raise ValueError(f"{path}: has {size} bytes where its header announces {wanted} (cut off?)")
    # mode "c": a private, writable view; torch warns of tensors over memory that is read-only
    return torch.from_numpy(np.memmap(path, np.uint8, "c", len(header), shape))


def read_cifar_batch(path: Path, label_key: str, count: int) -> tuple[Tensor, Tensor]:
    """(images, labels) of one file of the official Python version: uint8 (count, 3, 32, 32) and int64 (count,).

    The file is a pickled dictionary, {"data": array, label_key: [6, 9, ...], ...}. Unpickling would run whatever the
    file says, so its instructions are only listed (`pickletools` carries none of them out): the pixels are the one
    text of the right length, the labels the numbers between the text `label_key` and the next text.
    """
    pixels, labels, key, columns_first = None, [], None, False
    try:
        with open(path, "rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in TEXT and isinstance(argument, str):
                    key = argument
                    if len(argument) == count * math.prod(CIFAR_SHAPE):
                        pixels = argument
                elif opcode.name in NUMBER and key == label_key:
                    labels.append(argument)
                elif opcode.name in ("NEWTRUE", "NEWFALSE") and pixels is None:
                    columns_first = opcode.name == "NEWTRUE"  # numpy's flag, just before the pixels
    except ValueError as error:
        raise ValueError(f"{path}: not a batch of CIFAR ({error})") from None
    if pixels is None or len(labels) != count:
        raise ValueError(f"{path}: not a batch of CIFAR: {count} images and labels `{label_key}` are expected")
    entries = np.frombuffer(bytearray(pixels, "latin-1"), np.uint8)
    rows = np.ascontiguousarray(entries.reshape((count, -1), order="F" if columns_first else "C"))
    return torch.from_numpy(rows).view(count, *CIFAR_SHAPE), torch.tensor(labels)


def read_folder(folder: Path, part: Part, image_size: int, num_classes: int) -> tuple[Tensor, Tensor]:
    """(images, labels) of <folder>/<part>/<class>/*: uint8 (N, 3, image_size, image_size), mapped into memory, and
    int64 (N,): the position of the class among the sorted names under <folder>/train.

    Images are decoded once and kept in <folder>/.decoded-<image_size>/, in a file named by a digest of all names,
    sizes and times of change: a changed folder has another name and is decoded again. Names with a leading dot are
    no images. Raises ValueError for another layout and for an image that cannot be decoded.
    """
    classes = _class_names(folder, num_classes)
    files = [
        (f"{name}/{entry.name}", label)
        for label, name in enumerate(classes)
        for entry in os.scandir(folder / part / name)
        if not entry.name.startswith(".")
    ]
    if not files:
        raise ValueError(f"{folder / part}: holds no images")
    # Classes mixed, by a digest of the name: an evaluation takes images in this order, and its batches should be alike.
    files.sort(key=lambda file: hashlib.sha256(os.fsencode(file[0])).digest())
    digest = hashlib.sha256(DECODING.encode())
    for name, _ in files:
        status = os.stat(folder / part / name)
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    kept = folder / f".decoded-{image_size}" / f"{part}-{digest.hexdigest()[:16]}.npy"
    images = _decoded([folder / part / name for name, _ in files], kept, image_size)
    return images, torch.tensor([label for _, label in files])


def _class_names(folder: Path, num_classes: int) -> list[str]:
    found = {}
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise ValueError(
                f"{folder / part}: no such folder; images are expected as {folder}/train/<class>/* and "
                f"{folder}/test/<class>/*"
            )
        found[part] = sorted(e.name for e in os.scandir(folder / part) if e.is_dir() and not e.name.startswith("."))
    if len(found["train"]) != num_classes:
        raise ValueError(
            f"{folder / 'train'}: has {len(found['train'])} class folders, but num_classes is {num_classes}"
        )
    if found["test"] != found["train"]:
        differing = ", ".join(sorted(set(found["train"]) ^ set(found["test"])))
        raise ValueError(f"{folder}: train and test must have the same class folders; only one has: {differing}")
    return found["train"]


def _decoded(files: list[Path], kept: Path, size: int) -> Tensor:
    """The images of `files`, from the file `kept`, which is made if it is not there or not whole."""
    shape = (len(files), 3, size, size)
    if (images := _mapped(kept, shape)) is not None:
        return images
    log.info("decoding %d images under %s", len(files), kept.parent.parent)
    trouble = None
    try:
        _keep(files, kept, size)
    except OSError as error:
        trouble = error
    if (images := _mapped(kept, shape)) is not None:  # perhaps from another process, which was faster
        return images
    log.warning("decoded images cannot be kept (%s): they are decoded again at every start", trouble)
    array = np.empty(shape, np.uint8)
    for i, file in enumerate(files):
        array[i] = _decode(file, size)
    return torch.from_numpy(array)


def _keep(files: list[Path], kept: Path, size: int) -> None:
    """Decode into the file `kept`, and delete what former states of the folder, and killed decodings, have left.

    Image after image is written beside it: in memory is but one, and a full disk is an error (where one writes to a map
    of a file, it ends the process).
    """
    kept.parent.mkdir(exist_ok=True)
    beside = kept.with_name(f".{kept.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with open(beside, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), 3, size, size)}
            np.lib.format.write_array_header_1_0(file, header)
            for path in files:
                file.write(_decode(path, size).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, kept)
    finally:
        beside.unlink(missing_ok=True)
    for left in kept.parent.glob(f"*{kept.name.split('-')[0]}-*"):
        if left != kept:
            left.unlink(missing_ok=True)


def _mapped(kept: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The array, or None where the file is missing, damaged or of another shape."""
    try:
        array = np.load(kept, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(array) if array.dtype == np.uint8 and array.shape == shape else None


def _decode(path: Path, size: int) -> np.ndarray:
    """(3, size, size) bytes. An image of that size already is left as it is."""
    try:
        with Image.open(path) as image:
            scaled = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow's decoders fail in many ways: OSError, SyntaxError, struct.error, EOFError, ...
        raise ValueError(f"{path}: cannot be decoded as an image ({error}); mend or remove it") from None
    return np.asarray(scaled).transpose(2, 0, 1)
