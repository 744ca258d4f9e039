"""The data section of a job. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.reading import need

DATA_SIZES = {"digits": (1437, 360), "spheres": (2000, 1000), "xor": (4, 4), "mnist": (60000, 10000)} | dict.fromkeys(
    ("cifar10", "cifar100"), (50000, 10000)
)  # images for training (and validation), images for the test

POINTS = ("spheres", "xor")  # and no images


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they are split and changed. Sizes are in images."""

    name: Literal["digits", "spheres", "xor", "mnist", "cifar10", "cifar100", "imagefolder"]
    num_validation: int = 0  # cut from the training images; the test split chooses nothing
    num_train: int | None = None  # train on this many of the rest only; None: all
    split_seed: int = 0
    mean: tuple[float, ...] = ()  # per channel, taken off after scaling to [0, 1]; () leaves the images alone
    std: tuple[float, ...] = ()
    crop_padding: int = 0  # random crops of the image padded by so many pixels
    crop_mode: Literal["zero", "reflect"] = "zero"
    flip: bool = False  # mirror left-right with probability 1/2
    dimension: int | None = None  # spheres: 2, 3, 10 or 900
    folder: str | None = None  # imagefolder: <data root>/<folder>/{train,test}/<class>/*
    image_size: int | None = None  # imagefolder: images are scaled to this height and width
    num_classes: int | None = None  # imagefolder

    def __post_init__(self):
        need(self.num_validation >= 0, "num_validation must be at least 0, got {}", self.num_validation)
        need(self.num_train is None or self.num_train > 0, "num_train must be at least 1, got {}", self.num_train)
        need(self.split_seed >= 0, "split_seed must be at least 0, got {}", self.split_seed)
        need(len(self.mean) == len(self.std), "mean and std must be equally long, got {} and {}", self.mean, self.std)
        need(all(s > 0 for s in self.std), "std must be positive, got {}", self.std)
        if self.mean and self.name not in POINTS:
            need(len(self.mean) == self.shape[0], "mean needs one number per channel, got {}", self.mean)
        need(self.crop_padding >= 0, "crop_padding must be at least 0, got {}", self.crop_padding)
        if self.name == "spheres":
            need(self.dimension in (2, 3, 10, 900), "spheres need `dimension: 2`, 3, 10 or 900, got {}", self.dimension)
        else:
            need(self.dimension is None, "dimension belongs to spheres, not to {}", self.name)
        if self.name in POINTS:
            changed = self.crop_padding or self.flip or self.mean
            need(not changed, "{} are points: no crop, flip or mean", self.name)
        extras = (self.folder, self.image_size, self.num_classes)
        if self.name == "imagefolder":
            need(None not in extras, "imagefolder needs `folder`, `image_size` and `num_classes`")
            need((self.image_size or 0) >= 1, "image_size must be at least 1, got {}", self.image_size)
            need((self.num_classes or 0) >= 2, "num_classes must be at least 2, got {}", self.num_classes)
        else:
            need(extras == (None,) * 3, "folder, image_size, num_classes belong to imagefolder, not to {}", self.name)
            most = DATA_SIZES[self.name][0]
            used = self.num_validation + (self.num_train or 1)
            need(used <= most, "num_validation and num_train take at least {} of {}'s {} images", used, self.name, most)
        if self.crop_mode == "reflect":
            least = min(self.shape[1:])
            need(self.crop_padding < least, "reflect needs crop_padding below {}, got {}", least, self.crop_padding)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W), or (1, d) for points."""
        size = self.image_size or 0
        return {
            "digits": (1, 8, 8),
            "spheres": (1, self.dimension or 0),
            "xor": (1, 2),
            "mnist": (1, 28, 28),
            "cifar10": (3, 32, 32),
            "cifar100": (3, 32, 32),
            "imagefolder": (3, size, size),
        }[self.name]

    @property
    def source(self) -> str:
        """Names the images themselves, however they are split: `mnist`, `spheres2`."""
        folder = "-".join(c for c in (self.folder or "").split("/") if c)
        parts = (self.name + str(self.dimension or ""), folder, str(self.image_size or ""))
        return "-".join(part for part in parts if part)

    @property
    def classes(self) -> int:
        return {"spheres": 2, "xor": 2, "cifar100": 100, "imagefolder": self.num_classes or 0}.get(self.name, 10)

    @property
    def train_size(self) -> int | None:
        """Images trained on; None if only the folder knows."""
        if self.num_train is not None or self.name == "imagefolder":
            return self.num_train
        return DATA_SIZES[self.name][0] - self.num_validation
