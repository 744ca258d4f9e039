"""Data set name -> splits and batches. The door of torchvision.

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
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline import stage
from pipeline.augmentation import augmented
from pipeline.data_config import DATA_SIZES, DataConfig
from pipeline.images import Part, read_cifar_batch, read_digits, read_folder, read_idx
from pipeline.records import replace_file

BRIGHTEST = {"digits": 16}  # the pixel value that becomes 1.0; 255 for the others
DOWNLOADED = ("mnist", "cifar10", "cifar100")  # torchvision's classes have these names, in capitals
SHELLS = ((0.10, 0.15), (0.25, 0.30), (0.40, 0.45))  # of the spheres: radii of the inner, middle and outer shell


@dataclass(frozen=True)
class Split:
    """images: (N, C, H, W) uint8, or (N, 1, d) float32 for spheres; labels: (N,) int64. From `load_split` on the CPU,
    the images perhaps mapped from a file."""

    images: Tensor
    labels: Tensor

    def near(self, device: torch.device) -> Split:
        """The split on the device if it is small against its memory: then no batch waits for the bus."""
        small = self.images.nbytes < 2 * 2**30
        return Split(self.images.to(device), self.labels.to(device)) if small else self

    def __len__(self) -> int:
        return len(self.labels)


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A named random stream: other names, other numbers, whatever else was drawn. On the CPU, so that no draw depends
    on the device. Torch's generator keeps 32 bits of its seed: of 10,000 streams two are alike with probability 1 %."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


# Splits


def load_split(config: DataConfig, split: Literal["train", "validation", "test"], root: str) -> Split:
    """One split of a data set under the folder `root`. Training and validation images are disjoint parts of the
    data set's training images, stratified, chosen by `config.split_seed`; the test split is the data set's own.

    Never downloads. Raises ValueError for a data set that is missing or damaged, and for a split that is too large.
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
    if len(chosen) == len(labels):  # all, in order: no copy of what may be mapped from a file
        return Split(images, labels)
    return Split(images.index_select(0, chosen), labels[chosen])


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(chosen, rest): increasing indices. `count` are chosen at random, of each class its share n_c count / N, rounded
    down or up: up for the classes with the largest remainders, among equals for those of the lowest number."""
    sizes = torch.bincount(labels)
    shares, remainders = sizes * count // len(labels), sizes * count % len(labels)
    up = remainders.argsort(descending=True, stable=True)[: count - int(shares.sum())]
    shares[up] += 1
    shuffled = torch.randperm(len(labels), generator=generator)
    is_chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in enumerate(shares.tolist()):
        is_chosen[shuffled[labels[shuffled] == label][:share]] = True
    return is_chosen.nonzero()[:, 0], (~is_chosen).nonzero()[:, 0]


# Data sets: (config, part, root) -> (images, labels)


def _read(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    images, labels = READERS[config.name](config, part, root)
    if labels.max() >= config.classes:
        raise ValueError(f"{config.name} under {root}: has labels beyond its {config.classes} classes: damaged files?")
    return images, labels


def _digits(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    """The 1,797 digits that come with scikit-learn have no test split: 360 are set apart, always the same."""
    table = torch.from_numpy(read_digits()).long()  # a row an image: 64 pixels, then the digit
    images, labels = table[:, :64].to(torch.uint8).view(-1, 1, 8, 8), table[:, 64]
    test, train = stratified(labels, DATA_SIZES["digits"][1], stream(0, "digits"))
    chosen = test if part == "test" else train
    return images[chosen], labels[chosen]


def _spheres(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    """Points in three concentric shells of R^d, the middle one its own class (Ott et al., ICLR 2021, after Dupont et
    al. 2019): a quarter, a half and a quarter of them, along Gaussian directions, at the radius
    (r_max - r_min) u^(1/d) + r_min with u uniform. Shells come mixed."""
    d, n = config.dimension, DATA_SIZES["spheres"][part == "test"]
    assert d is not None
    generator = stream(config.split_seed, "spheres", d, part)
    shell = torch.tensor([0, 1, 1, 2]).repeat(n // 4)[torch.randperm(n, generator=generator)]
    r_min, r_max = torch.tensor(SHELLS, dtype=torch.float64)[shell].T
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    direction = functional.normalize(torch.randn(n, d, dtype=torch.float64, generator=generator))
    points = ((r_max - r_min) * u ** (1 / d) + r_min)[:, None] * direction
    return points.float()[:, None], (shell == 1).long()


def _xor(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    """Four points that no line divides: (0, 0) and (1, 1) against (0, 1) and (1, 0). They are the test as well."""
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    return points[:, None], torch.tensor([0, 0, 1, 1])


def _mnist(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    """torchvision has no check of the unpacked files: `read_idx` compares their size with their header."""
    prefix, count = ("train", DATA_SIZES["mnist"][0]) if part == "train" else ("t10k", DATA_SIZES["mnist"][1])
    paths = [Path(root, "MNIST", "raw", f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    for path in paths:
        _need_file(path, config.name, root)
    try:
        images, labels = read_idx(paths[0], (count, 28, 28)), read_idx(paths[1], (count,))
    except ValueError as error:
        raise ValueError(f"{error}; delete it, then run `{_command(config.name, root)}`") from None
    return images[:, None], labels.long()


def _cifar(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    """Only files with torchvision's checksum are read."""
    from torchvision.datasets.utils import check_integrity

    official = _official(config.name)
    files = official.train_list if part == "train" else official.test_list
    count = DATA_SIZES[config.name][part == "test"] // len(files)
    label_key = {"cifar10": "labels", "cifar100": "fine_labels"}[config.name]
    batches = []
    for name, md5 in files:
        path = Path(root, official.base_folder, name)
        _need_file(path, config.name, root)
        if not check_integrity(path, md5):
            raise ValueError(
                f"{path}: damaged (its checksum is wrong); delete it, then run `{_command(config.name, root)}`"
            )
        batches.append(read_cifar_batch(path, label_key, count))
    images, labels = zip(*batches)
    return torch.cat(images), torch.cat(labels)


def _imagefolder(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    assert config.folder is not None
    return read_folder(Path(root, config.folder), part, config.image_size or 0, config.classes)


READERS = {
    "digits": _digits,
    "spheres": _spheres,
    "xor": _xor,
    "mnist": _mnist,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "imagefolder": _imagefolder,
}


def _official(name: str):
    from torchvision import datasets

    return getattr(datasets, name.upper())


def _need_file(path: Path, name: str, root: str) -> None:
    if not path.is_file():
        missing = path.parent if not path.parent.is_dir() else path
        raise ValueError(f"{missing}: missing; run `{_command(name, root)}` where there is a network")


def _command(name: str, root: str) -> str:
    return f"python -m pipeline.data {name} --root {root} --download"


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
        images = split.images.index_select(0, chosen).to(device)
        images = augmented(images, config, stream(seed, "augment", epoch, i))
        yield _floats(images, config), split.labels[chosen].to(device)


def evaluation_batches(
    split: Split, config: DataConfig, *, batch_size: int, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels), all of them in order, float32 on `device`."""
    for start in range(0, len(split), batch_size):
        batch = slice(start, start + batch_size)
        yield _floats(split.images[batch].to(device), config), split.labels[batch].to(device)


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


def download(name: str, root: str) -> None:
    """What is missing of mnist, cifar10 or cifar100, by torchvision; the others have nothing to fetch."""
    if name not in DOWNLOADED:
        return
    try:
        _official(name)(root, download=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{name} could not be fetched into {root}: {error}") from None


def describe(config: DataConfig, root: str) -> dict[str, str | int]:
    """Name, number of images, and sha256 of all images and labels, training before test."""
    digest, sizes = hashlib.sha256(), {}
    for part in ("train", "test"):
        images, labels = _read(config, part, root)
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
        download(config.name, arguments.root)
    found = describe(config, arguments.root)
    shape = " x ".join(map(str, config.shape))
    print("{name}: {train} training and {test} test samples of {shape}, sha256 {sha256}".format(**found, shape=shape))
    if arguments.output:
        replace_file(arguments.output, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=READERS, help="a data set")
    parser.add_argument("--root", default="data", help="where data sets lie (default: data)")
    parser.add_argument("--download", action="store_true", help="fetch what is missing of mnist, cifar10, cifar100")
    parser.add_argument("--output", help="write what was found as JSON")
    parser.add_argument("--dimension", type=int, help="spheres: 2, 3, 10 or 900")
    parser.add_argument("--folder", help="imagefolder: its folder under the root")
    parser.add_argument("--image-size", type=int, help="imagefolder: height and width to scale to, in pixels")
    parser.add_argument("--num-classes", type=int, help="imagefolder")
    stage.run(main, parser)
