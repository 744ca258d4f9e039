"""Splits and batches: what they must hold whatever the data set."""

import typing

import pytest
import torch

from pipeline import data, data_sets
from pipeline.data import evaluation_batches, load_split, num_batches, training_batches
from pipeline.data_config import DATA_SIZES, DataConfig
from pipeline.streams import stratified, stream

NUMBER, NUM_TEST = 1000, 100


@pytest.fixture
def numbered(monkeypatch):
    """A data set `mnist` of 2 x 2 images that hold their own number, in classes of unequal size."""

    def read(config, part, root):
        n = torch.arange(NUMBER) if part == "train" else torch.arange(NUMBER, NUMBER + NUM_TEST)
        images = torch.stack((n // 256, n % 256, n // 256, n % 256), 1).to(torch.uint8)
        return images.view(-1, 1, 2, 2), n.sqrt().long() % 10

    monkeypatch.setitem(data_sets.READERS, "mnist", read)
    monkeypatch.setitem(DATA_SIZES, "mnist", (NUMBER, NUM_TEST))


def numbers(images: torch.Tensor) -> list[int]:
    """The numbers of such images, from bytes or from floats in [0, 1]."""
    values = images if images.dtype == torch.uint8 else (images * 255).round()
    return (values[:, 0, 0, 0].long() * 256 + values[:, 0, 0, 1].long()).tolist()


def test_every_data_set_that_a_job_may_name_has_a_reader():
    assert list(data_sets.READERS) == list(typing.get_args(typing.get_type_hints(DataConfig)["name"]))


def test_streams_differ_by_seed_and_names_and_repeat():
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", "1"), (0, "ab", "c"), (0, "a", "bc")]
    draws = [tuple(torch.rand(4, generator=stream(*name)).tolist()) for name in names]
    assert len(set(draws)) == len(names)
    assert draws == [tuple(torch.rand(4, generator=stream(*name)).tolist()) for name in names]


@pytest.mark.parametrize("count", [0, 1, 7, 33, 99, 100])
def test_a_stratified_choice_is_exact_and_each_class_within_one_of_its_share(count):
    labels = torch.tensor([0] * 50 + [1] * 31 + [3] * 17 + [4] * 2)[torch.randperm(100, generator=stream(0, "x"))]
    chosen, rest = stratified(labels, count, stream(0, "choice"))
    assert len(chosen) == count
    assert sorted(chosen.tolist() + rest.tolist()) == list(range(100))
    sizes = labels.bincount(minlength=5)
    assert bool(((labels[chosen].bincount(minlength=5) - sizes * count / 100).abs() < 1).all())


def chosen_class_by_class(labels: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """`stratified` in its plain form, with a pass over all labels for each class."""
    sizes = labels.bincount().tolist()
    shares = [size * count // len(labels) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda label: -(sizes[label] * count % len(labels)))
    for label in by_remainder[: count - sum(shares)]:
        shares[label] += 1
    shuffled = torch.randperm(len(labels), generator=generator)
    chosen = [shuffled[labels[shuffled] == label][:share] for label, share in enumerate(shares)]
    return sorted(torch.cat(chosen).tolist())


@pytest.mark.parametrize("classes", [1, 3, 50, 700])
def test_a_stratified_choice_is_that_of_its_plain_form(classes):
    """Classes without a sample among them. Who trained on a split finds it again."""
    labels = torch.randint(classes, (600,), generator=stream(0, "labels", classes)).square() // classes
    for count in (0, 1, 100, 599, 600):
        wanted = chosen_class_by_class(labels, count, stream(1, "choice", count))
        assert stratified(labels, count, stream(1, "choice", count))[0].tolist() == wanted


@pytest.mark.parametrize("num_validation", [0, 100, 333])
@pytest.mark.parametrize("num_train", [None, 1, 250])
@pytest.mark.usefixtures("numbered")
def test_splits_are_disjoint_whole_and_stratified(num_validation, num_train):
    config = DataConfig("mnist", num_validation=num_validation, num_train=num_train)
    train, validation, test = (load_split(config, s, "") for s in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (config.train_size, num_validation, NUM_TEST)
    seen = numbers(train.images) + numbers(validation.images) + numbers(test.images)
    assert len(set(seen)) == len(seen)
    assert num_train is not None or set(seen) == set(range(NUMBER + NUM_TEST))
    sizes = data_sets.READERS["mnist"](config, "train", "")[1].bincount(minlength=10) / NUMBER
    for split, slack in ((validation, 1), (train, 2)):  # the rest of a rounded choice, rounded again
        assert split.labels.tolist() == [int(n**0.5) % 10 for n in numbers(split.images)]
        assert bool(((split.labels.bincount(minlength=10) - len(split) * sizes).abs() < slack).all())


def test_a_split_is_no_copy_of_the_images(monkeypatch):
    """They may be mapped from a file that is larger than the memory."""
    images, labels = torch.arange(40).to(torch.uint8).view(10, 1, 2, 2), torch.arange(10) % 2
    monkeypatch.setitem(data_sets.READERS, "imagefolder", lambda config, part, root: (images, labels))
    config = DataConfig("imagefolder", folder="x", image_size=2, num_classes=2, num_validation=4, num_train=3)
    for name in ("train", "validation", "test"):
        split = load_split(config, name, "")
        assert split.near(torch.device("cpu")).source is images
        assert torch.equal(split.images[:, 0, 0, 0] // 4 % 2, split.labels)


def test_a_small_split_is_carried_to_the_device_and_a_large_one_in_batches():
    device = torch.device("meta")
    split = data.Split(torch.zeros(10, 1, 2, 2), torch.zeros(3).long(), torch.tensor([1, 4, 5]))
    near = split.near(device)
    assert (near.source.device, near.labels.device, near.source.shape) == (device, device, (3, 1, 2, 2))
    assert near.places is None
    half = torch.zeros((), dtype=torch.uint8).expand(2, 1, 2**15, 2**15)  # 1 GiB each
    large = data.Split(half, torch.zeros(2).long())
    assert large.near(device) is large
    assert data.Split(half, torch.zeros(1).long(), torch.tensor([1])).near(device).source.device == device


@pytest.mark.usefixtures("numbered")
def test_validation_images_depend_on_the_split_seed_alone():
    def validation(**changes):
        return numbers(load_split(DataConfig("mnist", num_validation=100, **changes), "validation", "").images)

    assert validation(num_train=50, flip=True) == validation()
    assert validation(split_seed=1) != validation()


@pytest.mark.usefixtures("numbered")
def test_more_images_than_there_are_is_an_error(monkeypatch):
    config = DataConfig("mnist", num_validation=900, num_train=100)
    assert len(load_split(config, "train", "")) == 100
    monkeypatch.setitem(DATA_SIZES, "mnist", (2000, 100))  # a folder's size is not known to the config
    with pytest.raises(ValueError, match="num_train is 1001, but there are 1000"):
        load_split(DataConfig("mnist", num_validation=900, num_train=101), "validation", "")


def test_digits_are_those_of_scikit_learn_as_sixteenths():
    from sklearn.datasets import load_digits

    config = DataConfig("digits")
    train, test = load_split(config, "train", ""), load_split(config, "test", "")
    assert (len(train), len(test)) == DATA_SIZES["digits"]
    assert bool(((test.labels.bincount() - train.labels.bincount() / 1437 * 360).abs() < 1.5).all())
    batches = [b for s in (train, test) for b in evaluation_batches(s, config, batch_size=500, device="cpu")]
    found = sorted((int(y), x.flatten().tolist()) for xs, ys in batches for x, y in zip(xs, ys))
    pixels, labels = load_digits(return_X_y=True)
    assert found == sorted((int(y), (x / 16).tolist()) for x, y in zip(pixels, labels))
    other = load_split(DataConfig("digits", split_seed=1, num_validation=100), "test", "")
    assert torch.equal(other.images, test.images)


@pytest.mark.parametrize("d", [2, 10, 900])
def test_spheres_fill_three_shells(d):
    """A quarter, a half and a quarter; within a shell ((r - r_min) / (r_max - r_min))^d is uniform."""
    config = DataConfig("spheres", dimension=d)
    for part, size in zip(("train", "test"), DATA_SIZES["spheres"]):
        split = load_split(config, part, "")
        assert split.images.shape == (size, 1, d)
        assert split.images.dtype == torch.float32
        radius = split.images[:, 0].double().norm(dim=1)
        u = []
        for (low, high), label, share in zip(data_sets.SHELLS, (0, 1, 0), (4, 2, 4)):
            inside = (radius > low - 1e-6) & (radius < high + 1e-6)
            assert int(inside.sum()) == size // share
            assert bool((split.labels[inside] == label).all())
            u.append(((radius[inside] - low) / (high - low)) ** d)
        assert float(torch.cat(u).mean()) == pytest.approx(0.5, abs=0.05)  # five standard deviations for 1,000 points
        direction = split.images[:, 0] / radius[:, None]
        assert float(direction.mean(0).norm()) < 0.1  # about 1 / sqrt(size)
        assert split.labels[:40].float().std() > 0  # mixed


def test_spheres_are_drawn_anew_for_each_part_and_split_seed():
    splits = [
        load_split(DataConfig("spheres", dimension=2, split_seed=seed), part, "").images[:1000]
        for seed in (0, 1)
        for part in ("train", "test")
    ]
    assert all(not torch.isin(a, b).any() for i, a in enumerate(splits) for b in splits[:i])
    assert torch.equal(splits[0], load_split(DataConfig("spheres", dimension=2), "train", "").images[:1000])


def epoch_of(config, split, **changes):
    chosen = {"seed": 3, "epoch": 2, "batch_size": 64, "drop_last": False, "device": "cpu"} | changes
    return list(training_batches(split, config, **chosen))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.usefixtures("numbered")
def test_an_epoch_holds_each_image_once_with_its_label(drop_last):
    config = DataConfig("mnist")
    batches = epoch_of(config, load_split(config, "train", ""), drop_last=drop_last)
    assert len(batches) == num_batches(NUMBER, 64, drop_last) == (15 if drop_last else 16)
    seen = numbers(torch.cat([images for images, _ in batches]))
    assert len(set(seen)) == len(seen) == (15 * 64 if drop_last else NUMBER)
    assert seen != sorted(seen)
    assert torch.cat([labels for _, labels in batches]).tolist() == [int(n**0.5) % 10 for n in seen]


@pytest.mark.usefixtures("numbered")
def test_the_order_repeats_for_seed_and_epoch_and_differs_otherwise():
    config = DataConfig("mnist")
    split = load_split(config, "train", "")
    changes = [{}, {"seed": 4}, {"epoch": 3}]
    orders = [[n for images, _ in epoch_of(config, split, **c) for n in numbers(images)] for c in changes + changes]
    assert orders[:3] == orders[3:]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_resumed_epoch_equals_the_uninterrupted_one_bit_by_bit():
    config = DataConfig("digits", crop_padding=2, flip=True, mean=(0.3,), std=(0.4,))
    split = load_split(config, "train", "")
    whole = epoch_of(config, split)
    for first in (1, len(whole) - 1, len(whole)):
        rest = epoch_of(config, split, first=first)
        assert len(rest) == len(whole) - first
        assert all(torch.equal(a, b) for x, y in zip(rest, whole[first:]) for a, b in zip(x, y))


def test_augmentation_repeats_for_seed_epoch_and_batch_and_differs_otherwise():
    config = DataConfig("digits", crop_padding=3)
    split = load_split(config, "train", "")
    one = data.Split(split.images[:1].expand(128, -1, -1, -1), split.labels[:1].expand(128))  # no order to be seen
    changes = [{}, {"seed": 4}, {"epoch": 3}]
    batches = [images for c in changes + changes for images, _ in epoch_of(config, one, **c)]
    assert all(map(torch.equal, batches[:6], batches[6:]))
    assert not any(torch.equal(a, b) for i, a in enumerate(batches[:6]) for b in batches[:i])


def test_pixels_are_scaled_then_standardised_per_channel():
    config = DataConfig("cifar10", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    pixels = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "pixels"))
    split = data.Split(pixels, torch.arange(7))
    batches = list(evaluation_batches(split, config, batch_size=3, device="cpu"))
    assert [labels.tolist() for _, labels in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    for channel, (mean, std) in enumerate(zip(config.mean, config.std)):
        found = torch.cat([images for images, _ in batches])[:, channel]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), (pixels[:, channel].double() / 255 - mean) / std)
    assert torch.equal(split.images, pixels)


def test_points_are_batched_unchanged_and_an_empty_split_has_no_batch():
    config = DataConfig("spheres", dimension=3)
    split = load_split(config, "test", "")
    points = split.images.clone()
    batches = list(evaluation_batches(split, config, batch_size=300, device="cpu"))
    assert torch.equal(torch.cat([images for images, _ in batches]), points)
    empty = load_split(config, "validation", "")
    assert list(evaluation_batches(empty, config, batch_size=300, device="cpu")) == []
