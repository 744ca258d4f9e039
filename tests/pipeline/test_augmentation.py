"""Crops and mirror images against the same thing done one image at a time."""

import pytest
import torch
from torch.nn import functional

from pipeline.augmentation import augmented, crop, mirror, pad
from pipeline.data_config import DataConfig


def pictures(number: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(
        0, 256, (number, channels, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("p", [1, 3])
def test_a_padded_image_is_that_of_torch(mode, p):
    images = pictures(2)
    wanted = functional.pad(images.double(), (p, p, p, p), mode="constant" if mode == "zero" else mode)
    assert torch.equal(pad(images, p, mode).double(), wanted)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_a_slice_of_the_padded_image_at_every_offset(channels):
    p, (h, w) = 2, (6, 5)
    offsets = torch.cartesian_prod(torch.arange(2 * p + 1), torch.arange(2 * p + 1)).T
    images = pictures(offsets.shape[1], channels)
    padded = functional.pad(images, (p, p, p, p))
    cropped = crop(padded, p, offsets)
    for i, (row, column) in enumerate(offsets.T.tolist()):
        assert torch.equal(cropped[i], padded[i, :, row : row + h, column : column + w])


def test_mirror_exchanges_left_and_right_where_told():
    images, which = pictures(4), torch.tensor([0, 1, 1, 0])
    wanted = torch.stack([image.flip(2) if w else image for image, w in zip(images, which)])
    assert torch.equal(mirror(images, which), wanted)


def test_half_of_the_images_are_mirrored():
    images = pictures(4000, 1)
    result = augmented(images, DataConfig("mnist", flip=True), torch.Generator().manual_seed(1))
    mirrored = (result == images.flip(3)).flatten(1).all(1)
    same = (result == images).flatten(1).all(1)
    assert bool((mirrored ^ same).all())
    assert abs(float(mirrored.float().mean()) - 0.5) < 0.04  # five standard deviations


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_every_offset_is_drawn_equally_often(mode):
    """One image many times: what comes out is one of its 9 crops, each 1/9 of the time."""
    image, p, number = pictures(1), 1, 3600
    padded = pad(image, p, mode)[0]
    crops = [padded[:, i : i + 6, j : j + 5] for i in range(3) for j in range(3)]
    config = DataConfig("cifar10", crop_padding=p, crop_mode=mode)
    result = augmented(image.expand(number, -1, -1, -1), config, torch.Generator().manual_seed(2))
    counts = [int((result == c).flatten(1).all(1).sum()) for c in crops]
    assert sum(counts) == number
    assert all(abs(count - 400) < 95 for count in counts)  # five standard deviations


def test_nothing_is_drawn_without_augmentation():
    images, generator = pictures(3), torch.Generator().manual_seed(3)
    state = generator.get_state()
    assert torch.equal(augmented(images, DataConfig("cifar10"), generator), images)
    assert torch.equal(generator.get_state(), state)
