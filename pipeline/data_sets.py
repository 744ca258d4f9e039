"""What lies on the disk, or is drawn: data set name -> all images and labels of a part. The door of torchvision.

read(config, "train", root) -> (images, labels)          download("mnist", root)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data_config import DATA_SIZES, DataConfig
from pipeline.images import Part, read_cifar_batch, read_digits, read_folder, read_idx
from pipeline.streams import stratified, stream

PARTS: tuple[Part, ...] = ("train", "test")
DOWNLOADED = ("mnist", "cifar10", "cifar100")  # torchvision's classes have these names, in capitals
SHELLS = ((0.10, 0.15), (0.25, 0.30), (0.40, 0.45))  # of the spheres: radii of the inner, middle and outer shell


def read(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    """All images, (N, C, H, W) uint8 and perhaps mapped from a file, or (N, 1, d) float32 for points; labels (N,)
    int64. Raises ValueError for a data set that is missing under the folder `root`, or damaged."""
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
    paths, count = files(config.name, part, root), DATA_SIZES["mnist"][part == "test"]
    for path in paths:
        _need_file(path, config.name, root)
    try:
        images, labels = read_idx(paths[0], (count, 28, 28)), read_idx(paths[1], (count,))
    except ValueError as error:
        raise ValueError(f"{error}; delete it, then run `{_command(config.name, root)}`") from None
    return images[:, None], labels.long()


def _cifar(config: DataConfig, part: Part, root: str) -> tuple[Tensor, Tensor]:
    """Only files with torchvision's checksum are read."""
    paths = files(config.name, part, root)
    count = DATA_SIZES[config.name][part == "test"] // len(paths)
    label_key = {"cifar10": "labels", "cifar100": "fine_labels"}[config.name]
    batches = []
    for path in paths:
        _need_file(path, config.name, root)
        if not _is_official(path, config.name):
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


def files(name: str, part: Part, root: str) -> list[Path]:
    """Those of mnist, cifar10 and cifar100; none of what is drawn, comes with a package, or is a folder of images."""
    if name == "mnist":
        prefix = "train" if part == "train" else "t10k"
        return [Path(root, "MNIST", "raw", f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
    if name not in DOWNLOADED:
        return []
    official = _official(name)
    listed = official.train_list if part == "train" else official.test_list
    return [Path(root, official.base_folder, file) for file, _ in listed]


def download(name: str, root: str) -> None:
    """Fetch what is missing of mnist, cifar10 or cifar100 from where torchvision knows it to be, and see to its
    checksum; the others have nothing to fetch. torchvision's own classes would unpickle what they have fetched.
    Raises ValueError if it cannot be had."""
    from torchvision.datasets.utils import download_and_extract_archive

    for addresses, file, md5, folder in _missing(name, root):
        errors = []
        for address in addresses:
            try:
                download_and_extract_archive(address, str(folder), filename=file, md5=md5)
                break
            except (RuntimeError, OSError) as error:
                errors.append(f"{address}: {error}")
        else:
            raise ValueError(f"{name} could not be fetched into {root}: {'; '.join(errors)}")


def _missing(name: str, root: str) -> Iterator[tuple[list[str], str, str, Path]]:
    """Archives: addresses of each, its name, its MD5 sum, and the folder into which it is unpacked."""
    paths = [path for part in PARTS for path in files(name, part, root)]
    if name == "mnist":
        packed = dict(_official(name).resources)
        for path in paths:
            file = f"{path.name}.gz"
            if not path.is_file():
                yield [mirror + file for mirror in _official(name).mirrors], file, packed[file], path.parent
    elif not all(_is_official(path, name) for path in paths):
        official = _official(name)
        yield [official.url], official.filename, official.tgz_md5, Path(root)


def _official(name: str):
    """torchvision's class, of which only the constants are used."""
    from torchvision import datasets

    return getattr(datasets, name.upper())


def _is_official(path: Path, name: str) -> bool:
    """True if it is there and has the checksum that torchvision gives for CIFAR's files."""
    from torchvision.datasets.utils import check_integrity

    official = _official(name)
    return check_integrity(path, dict([*official.train_list, *official.test_list])[path.name])


def _need_file(path: Path, name: str, root: str) -> None:
    if not path.is_file():
        missing = path.parent if not path.parent.is_dir() else path
        raise ValueError(f"{missing}: missing; run `{_command(name, root)}` where there is a network")


def _command(name: str, root: str) -> str:
    return f"python -m pipeline.data {name} --root {root} --download"
