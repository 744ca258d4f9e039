"""What a job sees of a data set: its splits, and their batches.

    load_split(config, "train", root) -> Split          training_batches(split, config, ...) -> (images, labels), ...

python -m pipeline.data mnist --root data --download    # see to it that the data set is there, and whole
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline import data_sets, stage
from pipeline.augmentation import augmented
from pipeline.data_config import DataConfig
from pipeline.images import Part
from pipeline.records import replace_file
from pipeline.streams import stratified, stream

BRIGHTEST = {"digits": 16}  # the pixel value that becomes 1.0; 255 for the others


@dataclass(frozen=True)
class Split:
    """N samples of a part of a data set. From `load_split` on the CPU; nobody writes to the tensors, which others may
    be given too."""

    source: Tensor  # (M, C, H, W) uint8, perhaps mapped from a file, or (M, 1, d) float32: the images of the part
    labels: Tensor  # (N,) int64
    places: Tensor | None = None  # (N,) int64: where the split's images stand in `source`; None: all, in order

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """(N, ...): all of them at once. A copy, where they are not the whole part."""
        return self.source if self.places is None else self.source.index_select(0, self.places)

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels of the samples with these numbers, copied."""
        places = chosen if self.places is None else self.places[chosen]
        return self.source.index_select(0, places), self.labels[chosen]

    def near(self, device: torch.device) -> Split:
        """The split on the device if it is small against its memory: then no batch waits for the bus."""
        small = len(self) * self.source[0].nbytes < 2 * 2**30
        return Split(self.images.to(device), self.labels.to(device)) if small and device.type != "cpu" else self


# Splits


SplitName = Literal["train", "validation", "test"]
_kept: dict[object, dict[Part, tuple[Tensor, Tensor]]] = {}  # what was read, of one source at most


def load_split(config: DataConfig, split: SplitName, root: str) -> Split:
    """One split of a data set under the folder `root`. Training and validation images are disjoint parts of the
    data set's training images, stratified, chosen by `config.split_seed`; the test split is the data set's own.

    What was read and checked is kept for the process's next job, while the files have the same sizes and times of
    change. Never downloads. Raises ValueError for a data set that is missing or damaged, and for a split that is too
    large.
    """
    images, labels = _read(config, "test" if split == "test" else "train", root)
    if split == "test":
        return Split(images, labels)
    used = config.num_validation + (config.num_train or 1)
    if used > len(labels):
        raise ValueError(
            f"{config.name}: num_validation + num_train is {used}, but there are {len(labels)} training images"
        )
    chosen, rest = stratified(labels, config.num_validation, stream(config.split_seed, "validation"))
    if split == "train":
        chosen = rest
        if config.num_train is not None:
            chosen = rest[stratified(labels[rest], config.num_train, stream(config.split_seed, "train"))[0]]
    return Split(images, labels) if len(chosen) == len(labels) else Split(images, labels[chosen], chosen)


def _read(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    """All images and labels of a part, from its files if these are others than those last read."""
    found = _identity(config, root)
    if found is None:
        return data_sets.read(config, part, root)
    source = config.source, config.split_seed, found  # spheres are drawn for the seed
    if source not in _kept:
        _kept.clear()
    parts = _kept.setdefault(source, {})
    if part not in parts:
        parts[part] = data_sets.read(config, part, root)
    return parts[part]


def _identity(config: DataConfig, root: str) -> tuple | None:
    """Of the files that are read. None for a folder of images, which is one in the end, and where one is missing."""
    if config.name == "imagefolder":
        return None
    files = [file for part in data_sets.PARTS for file in data_sets.files(config.name, part, root)]
    try:
        return tuple((str(file.absolute()), (at := file.stat()).st_size, at.st_mtime_ns) for file in files)
    except OSError:
        return None


# Batches


def num_batches(size: int, batch_size: int, drop_last: bool) -> int:
    return size // batch_size if drop_last else math.ceil(size / batch_size)


def training_batches(
    split: Split,
    config: DataConfig,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    drop_last: bool,
    device: torch.device | str,
    first: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of batch `first` and all later ones of an epoch, float32 on `device`.

    Stateless: the order is drawn for (seed, epoch) and the augmentation for (seed, epoch, batch), so a training that
    goes on in the middle of an epoch sees what an uninterrupted one sees.
    """
    order = torch.randperm(len(split), generator=stream(seed, "batches", epoch)).to(split.labels.device)
    for i in range(first, num_batches(len(split), batch_size, drop_last)):
        chosen = order[i * batch_size : (i + 1) * batch_size]
        images, labels = split.batch(chosen)
        images = augmented(images.to(device), config, stream(seed, "augment", epoch, i))
        yield _floats(images, config), labels.to(device)


def evaluation_batches(
    split: Split, config: DataConfig, *, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels), all of them in order, float32 on `device`."""
    for start in range(0, len(split), batch_size):
        end = min(start + batch_size, len(split))
        images, labels = split.batch(torch.arange(start, end, device=split.labels.device))
        yield _floats(images.to(device), config), labels.to(device)


def _floats(images: Tensor, config: DataConfig) -> Tensor:
    """Pixels scaled to [0, 1], then (x - mean) / std per channel, if given. Points stay as they are."""
    if images.is_floating_point():
        return images
    floats = images.float().div_(BRIGHTEST.get(config.name, 255))
    if config.mean:
        mean, std = (torch.tensor(x, device=images.device).view(-1, 1, 1) for x in (config.mean, config.std))
        floats = floats.sub_(mean).div_(std)
    return floats


# The stage


def describe(config: DataConfig, root: str) -> dict[str, str | int]:
    """Name, number of images, and sha256 of all images and labels, training before test."""
    digest, sizes = hashlib.sha256(), {}
    for part in data_sets.PARTS:
        images, labels = data_sets.read(config, part, root)
        sizes[part] = len(labels)
        for tensor in (images, labels):
            digest.update(tensor.contiguous().numpy().data)
    return {"name": config.name, **sizes, "sha256": digest.hexdigest()}


def main(arguments: argparse.Namespace) -> None:
    config = DataConfig(
        arguments.name,
        folder=arguments.folder,
        image_size=arguments.image_size,
        num_classes=arguments.num_classes,
        dimension=arguments.dimension,
    )
    if arguments.download:
        data_sets.download(config.name, arguments.root)
    found = describe(config, arguments.root)
    shape = " x ".join(map(str, config.shape))
    print("{name}: {train} training and {test} test samples of {shape}, sha256 {sha256}".format(**found, shape=shape))
    if arguments.output:
        replace_file(arguments.output, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=data_sets.READERS, help="a data set")
    parser.add_argument("--root", default="data", help="where data sets lie (default: data)")
    parser.add_argument("--download", action="store_true", help="fetch what is missing of mnist, cifar10, cifar100")
    parser.add_argument("--output", help="write what was found as JSON")
    parser.add_argument("--dimension", type=int, help="spheres: 2, 3, 10 or 900")
    parser.add_argument("--folder", help="imagefolder: its folder under the root")
    parser.add_argument("--image-size", type=int, help="imagefolder: height and width to scale to, in pixels")
    parser.add_argument("--num-classes", type=int, help="imagefolder")
    stage.run(main, parser)
