"""Data sets: where pictures come from, how they are split, cropped, flipped and normalised."""

import dataclasses
import hashlib
import importlib.util
import os
import pickle
import subprocess
import sys
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evo_subnets.data import (
    NAMES,
    Augmentation,
    Dataset,
    Images,
    batches,
    datasets,
    downloads,
    folders,
    load,
)
from evo_subnets.data.splits import stratified_order

needs_sklearn = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed"
)
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


def numbers(seed=0):
    return np.random.default_rng(seed)


def pictures(count=20, channels=3, size=8, classes=4, seed=0):
    pixels = numbers(seed).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return Images(torch.from_numpy(pixels), torch.arange(count) % classes)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def keys(images):
    """Each picture as bytes: pictures of random pixels are told apart by them."""
    return [picture.numpy().tobytes() for picture in images.pixels]


def same(one, other):
    return torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)


PARTS = ("train", "validation", "test")


def all_same(one, other):
    return all(same(getattr(one, part), getattr(other, part)) for part in PARTS)


# --- pictures


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.zeros(3, 8, 8, dtype=torch.uint8)}, r"uint8, got \(3, 8, 8\)"),
        ({"pixels": torch.zeros(3, 1, 8, 8)}, "uint8, got .* torch.float32"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels must be \(3,\) int64.* \(2,\)"),
        ({"labels": torch.zeros(3, dtype=torch.int32)}, "int64.* torch.int32"),
        ({"labels": torch.tensor([0, -2, 1])}, "at least 0, got -2"),
        ({"labels": torch.zeros(3, dtype=torch.int64, device="meta")}, "one device"),
    ],
)
def test_images_of_wrong_shapes_types_and_labels_are_refused(change, message):
    good = {"pixels": pictures(3).pixels, "labels": torch.tensor([0, 1, 2])}
    with pytest.raises(ValueError, match=message):
        Images(**{**good, **change})


def test_images_are_indexed_by_slices_and_tensors():
    images = pictures(10)
    assert len(images) == 10
    for index in (slice(2, 5), torch.tensor([2, 3, 4]), torch.arange(10).sub(3).abs() < 2):
        assert same(images[index], Images(images.pixels[2:5], images.labels[2:5]))
    assert same(images.to("cpu"), images)


def dataset(**changes):
    parts = {"train": pictures(12), "validation": pictures(4), "test": pictures(8)}
    return Dataset(**{"name": "toy", **parts, "classes": tuple("abcd"), **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": tuple("abc")}, "toy: labels must be below the number of classes, 3, got 3"),
        ({"test": pictures(8, size=9)}, r"one shape, got \(3, 8, 8\) in train and \(3, 9, 9\)"),
        ({"validation": pictures(4)[:0]}, "there are no validation pictures"),
    ],
)
def test_data_sets_that_do_not_fit_together_are_refused(change, message):
    assert all_same(dataset().to("cpu"), dataset())
    with pytest.raises(ValueError, match=message):
        dataset(**change)


def test_an_augmentation_belongs_to_its_pictures():
    other = Augmentation((0.5,) * 3, (0.2,) * 3)
    changed = dataset().augmented(other)
    for part in (changed.train, changed.validation, changed.test):
        assert part.augmentation == part[:2].augmentation == part.to("cpu").augmentation == other
    assert changed.augmentation == other
    with pytest.raises(ValueError, match="for 1 channels, the pictures have 3"):
        dataset().augmented(Augmentation((0.5,), (0.2,)))
    images = pictures(5)
    ((inputs, _),) = Images(images.pixels, images.labels).in_order(None)
    torch.testing.assert_close(inputs, images.pixels / 255, msg="without one: pixels in [0, 1]")


# --- augmentation

AUGMENTATION = Augmentation((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))


def slowly(pixels, augmentation, generator):
    """Crop, flip and normalise one picture after another, by the same draws."""
    p, (n, _, h, w) = augmentation.padding, pixels.shape
    top, left = torch.randint(2 * p + 1, (2, n), generator=generator).tolist()
    flip = torch.randint(2, (n,), generator=generator).tolist() if augmentation.flip else [0] * n
    out = []
    for i in range(n):
        padded = np.pad(pixels[i].numpy(), ((0, 0), (p, p), (p, p)))
        crop = padded[:, top[i] : top[i] + h, left[i] : left[i] + w]
        crop = crop[:, :, ::-1] if flip[i] else crop
        mean, std = np.array(augmentation.mean), np.array(augmentation.std)
        out.append((crop / 255 - mean[:, None, None]) / std[:, None, None])
    return torch.from_numpy(np.stack(out))


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_augmentation_is_that_of_a_slow_loop(count, channels, size, padding, flip, seed):
    pixels = numbers(seed).integers(0, 256, (count, channels, *size), dtype=np.uint8)
    pixels = torch.from_numpy(pixels)
    augmentation = Augmentation((0.5, 0.4, 0.3)[:channels], (0.2,) * channels, padding, flip)
    before = pixels.clone()
    fast = augmentation(pixels, generator(seed))
    assert fast.dtype == torch.float32
    torch.testing.assert_close(
        fast.double(), slowly(pixels, augmentation, generator(seed)), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(pixels, before)
    last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augmentation(last, generator(seed)), fast)
    assert torch.equal(augmentation.normalize(last), augmentation.normalize(pixels))


def test_every_crop_and_both_directions_are_equally_likely():
    """One bright pixel in the middle shows the place of each crop: 9 x 9 places."""
    pixels = torch.zeros(40_000, 1, 9, 9, dtype=torch.uint8)
    pixels[:, :, 4, 4] = 255
    out = Augmentation((0.0,), (1.0,), padding=4)(pixels, generator())
    share = out.mean(dim=(0, 1)) * 81
    assert out.sum() == 40_000
    assert (share - 1).abs().max() < 0.25  # five standard deviations are 0.225
    pixels = torch.zeros(10_000, 1, 1, 2, dtype=torch.uint8)
    pixels[..., 0] = 255
    flipped = Augmentation((0.0,), (1.0,), padding=0)(pixels, generator())[:, 0, 0, 1]
    assert flipped.mean() == pytest.approx(0.5, abs=0.025)


def test_normalisation_by_hand():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)[None, :, None, None]
    out = AUGMENTATION.normalize(pixels)
    assert out.flatten().tolist() == pytest.approx([-2.5, (0.2 - 0.4) / 0.3, 7.0], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), ()), "a mean and a std for each channel"),
        (((0.5,), (0.2, 0.2)), "a mean and a std for each channel"),
        (((0.5,), (0.0,)), "stds also above 0"),
        (((float("nan"),), (0.2,)), "means must be finite"),
        (((0.5,), (0.2,), -1), "padding must be at least 0 pixels, got -1"),
    ],
)
def test_bad_augmentations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(*arguments)


def test_pixels_of_other_channels_or_types_are_refused():
    for pixels in (pictures(2, channels=1).pixels, pictures(2).pixels.float()):
        with pytest.raises(ValueError, match=r"expected \(n, 3, height, width\) uint8 pixels, got"):
            AUGMENTATION.normalize(pixels)
        with pytest.raises(ValueError, match=r"expected \(n, 3, height, width\) uint8 pixels, got"):
            AUGMENTATION(pixels, generator())


def with_augmentation(images, augmentation=AUGMENTATION):
    return dataclasses.replace(images, augmentation=augmentation)


def test_batches_without_a_generator_are_in_order_and_normalised():
    images = pictures(10)
    inputs, labels = zip(*batches(with_augmentation(images), 4), strict=True)
    assert [len(x) for x in inputs] == [4, 4, 2]
    assert torch.equal(torch.cat(inputs), AUGMENTATION.normalize(images.pixels))
    assert torch.equal(torch.cat(labels), images.labels)


def test_batches_with_a_generator_are_shuffled_and_augmented():
    images = Images(pictures(50).pixels, torch.arange(50))
    plain = dataclasses.replace(AUGMENTATION, padding=0, flip=False)
    inputs, labels = map(
        torch.cat,
        zip(*batches(with_augmentation(images, plain), 8, generator=generator()), strict=True),
    )
    assert sorted(labels.tolist()) == list(range(50)) != labels.tolist()
    assert torch.equal(inputs, plain.normalize(images.pixels[labels]))

    def a_pass(seed):
        return torch.cat(
            [x for x, _ in batches(with_augmentation(images), 8, generator=generator(seed))]
        )

    assert torch.equal(a_pass(0), a_pass(0))
    assert not torch.equal(a_pass(0), a_pass(1))
    mixed = torch.cat([x for x, _ in batches(with_augmentation(images), 8, generator=generator())])
    assert (mixed[..., 0, :] == AUGMENTATION.normalize(images.pixels * 0)[:, :, 0]).all(2).any()
    one = generator()
    first, second = (list(batches(with_augmentation(images), 8, generator=one)) for _ in range(2))
    assert not torch.equal(first[0][1], second[0][1])


def test_drop_last_leaves_only_whole_batches():
    for drawn in (None, generator()):
        kept = list(batches(pictures(10), 4, generator=drawn, drop_last=True))
        assert [len(labels) for _, labels in kept] == [4, 4]


def test_bad_batch_sizes_are_refused_at_once():
    with pytest.raises(ValueError, match="at least one picture, got size=0"):
        batches(pictures(10), 0)
    with pytest.raises(ValueError, match="no batch is left: drop_last with size=11 and 10"):
        batches(pictures(10), 11, drop_last=True)


# --- splits


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 99), st.data())
def test_every_stretch_of_a_stratified_order_is_in_proportion(labels, seed, data):
    labels = torch.tensor(labels)
    order = stratified_order(labels, seed, purpose="train")
    assert sorted(order.tolist()) == list(range(len(labels)))
    start = data.draw(st.integers(0, len(labels)))
    end = data.draw(st.integers(start, len(labels)))
    counts = torch.bincount(labels[order[start:end]], minlength=5)
    expected = torch.bincount(labels, minlength=5) * ((end - start) / len(labels))
    assert ((counts - expected).abs() <= 2).all()
    if start == 0 and end == len(labels):
        assert torch.equal(counts, expected.long())


def test_a_stratified_order_depends_on_seed_and_purpose_alone():
    labels = torch.arange(100) % 7
    order = stratified_order(labels, 3, purpose="train")
    assert torch.equal(order, stratified_order(labels, 3, purpose="train"))
    assert not torch.equal(order, stratified_order(labels, 4, purpose="train"))
    assert not torch.equal(order, stratified_order(labels, 3, purpose="test"))
    # a saved parent must not meet its training pictures again as validation pictures
    assert order[:8].tolist() == [92, 42, 65, 48, 17, 54, 67, 21]


def write_pictures(folder, count, seed=0, size=(8, 8), suffix=".png", mode="RGB"):
    """`count` pictures of random pixels in a class folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = numbers(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:03d}{suffix}")


@pytest.fixture
def folder(tmp_path):
    """Class folders of train (50, 30) and test (10, 20)."""
    for i, (part, name, count) in enumerate(
        [("train", "cat", 50), ("train", "dog", 30), ("test", "cat", 10), ("test", "dog", 20)]
    ):
        write_pictures(tmp_path / "pets" / part / name, count, seed=i)
    return tmp_path / "pets"


@pytest.fixture
def pets(folder, tmp_path):
    """`load` of the folder."""

    def loaded(**arguments):
        return load(f"imagefolder:{folder}", **{"root": tmp_path / "root", **arguments})

    return loaded


def counts(images):
    return torch.bincount(images.labels).tolist()


def test_validation_from_the_training_set(pets):
    data = pets()
    assert [counts(getattr(data, part)) for part in PARTS] == [[45, 27], [5, 3], [10, 20]]
    assert data.classes == ("cat", "dog")
    everything = [key for part in PARTS for key in keys(getattr(data, part))]
    assert len(everything) == len(set(everything)) == 110
    half = pets(validation_fraction=0.5)
    assert [counts(getattr(half, part)) for part in PARTS] == [[25, 15], [25, 15], [10, 20]]
    assert same(half.test, data.test)


def test_validation_from_the_test_set(pets):
    data, other = pets(validation="test"), pets()
    assert [counts(getattr(data, part)) for part in PARTS] == [[50, 30], [5, 10], [5, 10]]
    assert not set(keys(data.validation)) & set(keys(data.test))
    assert set(keys(data.validation) + keys(data.test)) == set(keys(other.test))
    assert set(keys(data.train)) == set(keys(other.train) + keys(other.validation))


@pytest.mark.parametrize("validation", ["train", "test"])
def test_splits_are_the_same_for_a_seed(pets, validation):
    one, again, other = (pets(validation=validation, seed=seed) for seed in (1, 1, 2))
    assert all_same(one, again)
    assert set(keys(one.validation)) != set(keys(other.validation))
    assert one.augmentation == other.augmentation


@pytest.mark.parametrize("validation", ["train", "test"])
def test_limit_takes_some_of_each_part_and_of_each_class(pets, validation):
    few, whole = pets(validation=validation, limit=16), pets(validation=validation)
    assert [len(getattr(few, part)) for part in PARTS] == [16, 3, 3]
    assert counts(few.train) == [10, 6]
    for part in PARTS:
        assert set(keys(getattr(few, part))) <= set(keys(getattr(whole, part)))
    assert few.augmentation == whole.augmentation
    assert all_same(pets(validation=validation, limit=1000), whole)
    assert [len(getattr(pets(limit=1), part)) for part in PARTS] == [1, 1, 1]


def test_mean_and_std_are_those_of_the_training_set(pets):
    data = pets(validation="test")
    pixels = data.train.pixels.double() / 255
    assert data.augmentation.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), rel=1e-9)
    std = pixels.std(dim=(0, 2, 3), correction=0)
    assert data.augmentation.std == pytest.approx(std.tolist(), rel=1e-9)
    assert (data.augmentation.padding, data.augmentation.flip) == (4, True)
    normal = data.augmentation.normalize(data.train.pixels)
    torch.testing.assert_close(normal.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_pictures_of_one_colour_have_a_standard_deviation_to_divide_by():
    mean, std = datasets._statistics(torch.full((5, 2, 3, 3), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2, 0.2))
    assert std == (1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, "no data set 'cifar'; there are cifar10, .*, digits, imagefolder:PATH"),
        ({"name": "imagefolder:"}, "no data set 'imagefolder:'; there are"),
        ({"validation": "both"}, "from 'train' or 'test', got 'both'"),
        ({"validation_fraction": 0.0}, r"validation_fraction must be in \(0, 1\), got 0.0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \(0, 1\), got 1.0"),
        ({"limit": 0}, "limit must be at least 1 picture, got 0"),
        ({"seed": -1}, "a seed must be an int"),
        ({"image_size": 32}, "image_size is for imagefolder:PATH and at least 1 pixel, got 32 for"),
        ({"name": "imagefolder:here", "image_size": 0}, "at least 1 pixel, got 0"),
    ],
)
def test_bad_arguments_of_load_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(**{"name": "digits", "root": tmp_path, **arguments})


def test_a_split_that_leaves_nothing_is_refused(pets):
    with pytest.raises(ValueError, match="there are no validation pictures"):
        pets(validation_fraction=0.001)
    with pytest.raises(ValueError, match="there are no train pictures"):
        pets(validation_fraction=0.999)


# --- digits


@needs_sklearn
def test_digits_are_scikit_learns_enlarged_and_split(tmp_path):
    from sklearn.datasets import load_digits

    data, source = load("digits", tmp_path / "root"), load_digits()
    assert data.classes == tuple("0123456789")
    assert not data.augmentation.flip
    assert not (tmp_path / "root").exists()
    assert [len(getattr(data, part)) for part in PARTS] == [1294, 144, 359]
    grey = torch.cat([getattr(data, part).pixels for part in PARTS])
    assert grey.shape == (1797, 1, 32, 32)
    assert (grey.min(), grey.max()) == (0, 255)
    small = grey[:, 0, ::4, ::4]
    assert torch.equal(grey[:, 0], small.repeat_interleave(4, 1).repeat_interleave(4, 2))
    labels = torch.cat([getattr(data, part).labels for part in PARTS]).tolist()
    ours = sorted(
        (np.rint(picture.numpy() * (16 / 255)).astype(int).tolist(), label)
        for picture, label in zip(small, labels, strict=True)
    )
    theirs = zip(source.images.astype(int).tolist(), source.target.tolist(), strict=True)
    assert ours == sorted(theirs)
    other = load("digits", tmp_path, seed=5)
    assert same(other.test, data.test)
    assert not same(other.validation, data.validation)
    tested = torch.bincount(data.test.labels) / np.bincount(source.target)
    assert ((tested - 0.2).abs() < 0.01).all()


# --- image folders


def decoded(path):
    """(3, height, width)"""
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)


def test_an_image_folder_without_a_test_set_gives_a_fifth_of_it_away(tmp_path):
    for i, name in enumerate(["a", "b", "c"]):
        write_pictures(tmp_path / "flat" / name, 20, seed=i)
    name, root = f"imagefolder:{tmp_path / 'flat'}", tmp_path / "root"
    data, other = load(name, root), load(name, root, seed=9)
    assert (len(data.train), len(data.validation), counts(data.test)) == (43, 5, [4, 4, 4])
    assert same(other.test, data.test)
    assert not same(other.validation, data.validation)
    everything = [key for part in PARTS for key in keys(getattr(data, part))]
    assert len(everything) == len(set(everything)) == 60


def test_pictures_keep_their_pixels_and_their_class(folder, pets):
    data = pets(validation="test")
    files = sorted((folder / "train").rglob("*.png"))
    for file, pixels, label in zip(files, data.train.pixels, data.train.labels, strict=True):
        assert torch.equal(pixels, decoded(file))
        assert data.classes[label] == file.parent.name


def test_all_kinds_of_pictures_become_rgb_and_other_files_are_passed_over(tmp_path):
    kinds = [(".png", "RGBA"), (".png", "L"), (".png", "P"), (".JPG", "RGB"), (".jpeg", "CMYK")]
    kinds += [(".bmp", "RGB"), (".webp", "RGB"), (".png", "1")]
    for name in ("a", "b"):
        for i, (suffix, mode) in enumerate(kinds):
            write_pictures(tmp_path / "mix" / name / str(i), 1, i, suffix=suffix, mode=mode)
            (file,) = (tmp_path / "mix" / name / str(i)).iterdir()
            file.rename(tmp_path / "mix" / name / f"{i}{suffix}")
            file.parent.rmdir()
        transparent = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
        transparent.save(tmp_path / "mix" / name / "8.png", transparency=bytes(range(64)))
        (tmp_path / "mix" / name / "notes.txt").write_text("not a picture")
        (tmp_path / "mix" / name / "._0.png").write_text("not a picture")
    (tmp_path / "mix" / ".hidden").mkdir()
    (tmp_path / "mix" / "LICENSE").write_text("not a class")
    data = load(f"imagefolder:{tmp_path / 'mix'}", tmp_path / "root", validation="test")
    assert data.classes == ("a", "b")
    assert sum(len(getattr(data, part)) for part in PARTS) == 18
    assert data.train.pixels.shape[1:] == (3, 8, 8)


def test_pictures_of_different_sizes_need_an_image_size(folder, pets):
    write_pictures(folder / "train" / "dog", 1, seed=9, size=(12, 8))
    with pytest.raises(ValueError, match=r"dog/000.png has 12x8 pixels, .*cat/000.png has 8x8"):
        pets()
    with pytest.raises(ValueError, match="give image_size to resize them all"):
        pets()
    data = pets(validation="test", image_size=8)
    assert data.train.pixels.shape == (80, 3, 8, 8)
    # the centre of the wide one, and the others as they are
    assert torch.equal(data.train.pixels[0], decoded(folder / "train" / "cat" / "000.png"))
    assert torch.equal(
        data.train.pixels[50], decoded(folder / "train" / "dog" / "000.png")[:, :, 2:10]
    )
    assert pets(image_size=5).train.pixels.shape[1:] == (3, 5, 5)


def test_wide_pictures_of_one_size_keep_it(tmp_path):
    for name in ("a", "b"):
        write_pictures(tmp_path / "wide" / name, 10, size=(9, 5))
    data = load(f"imagefolder:{tmp_path / 'wide'}", tmp_path / "root")
    assert data.train.pixels.shape[1:] == (3, 5, 9)


def wrong_folders(folder, case):
    if case == "missing":
        return folder / "nowhere", r"nowhere: there is no such folder"
    if case == "one class":
        for part in ("train", "test"):
            for file in (folder / part / "dog").iterdir():
                file.unlink()
            (folder / part / "dog").rmdir()
        return folder, r"train: classification needs at least two class folders, got \['cat'\]"
    if case == "no class":
        (folder / "empty").mkdir()
        return folder / "empty", r"at least two class folders, got \[\]"
    if case == "empty class":
        (folder / "train" / "emu").mkdir()
        (folder / "train" / "emu" / "notes.txt").touch()
        return folder, r"emu: a class folder without pictures: expected .png, .*or remove it"
    if case == "other classes":
        (folder / "test" / "dog").rename(folder / "test" / "dogs")
        return folder, r"same classes; \['dog', 'dogs'\] are in one alone"
    if case == "no test":
        (folder / "test").rename(folder.parent / "away")
        return folder, r"pets/train has class folders, .*pets/test has none"
    if case == "no train":
        (folder / "train").rename(folder.parent / "away")
        return folder, r"pets/test has class folders, .*pets/train has none"
    file = folder / "train" / "dog" / "007.png"
    if case == "truncated":
        file.write_bytes(file.read_bytes()[:-60])
    elif case == "text":
        file.write_text("not a picture")
    elif case == "empty":
        file.write_bytes(b"")
    else:
        Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(file)
    return folder, r"dog/007.png is not a picture that can be read \(.*\): repair or remove it"


CASES = ["missing", "one class", "no class", "empty class", "other classes", "no test", "no train"]
CASES += ["truncated", "text", "empty", "sixteen bits"]


@pytest.mark.parametrize("case", CASES)
def test_wrong_folders_are_refused_in_one_line(folder, tmp_path, case):
    path, message = wrong_folders(folder, case)
    with pytest.raises(ValueError, match=message) as error:
        load(f"imagefolder:{path}", tmp_path / "root")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("root/**/*.safetensors"))


TREE = {
    "cat/z.png": {},
    "cat/a/deep/1.PNG": {},
    "cat/a/2.tif": {},
    "cat/a-b/3.TIFF": {"mode": "CMYK"},
    "cat/a.c/4.gif": {"mode": "P"},
    "cat/two words/5.webp": {"mode": "RGBA"},
    "cat/6.Bmp": {},
    "dog/sub.png/7.JPEG": {"mode": "L"},
    "dog/8.ppm": {},
    "dog/9.pgm": {"mode": "L"},
    "dog/10.png": {"mode": "LA"},
}


def write_tree(folder, tree=TREE):
    for i, (name, options) in enumerate(tree.items()):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        options = dict(options)
        picture = Image.fromarray(pixels).convert(options.pop("mode", "RGB"))
        picture.save(folder / name, **options)
    return folder


@needs_torchvision
@pytest.mark.parametrize("split", [True, False])
def test_nested_folders_are_read_as_torchvision_reads_them(tmp_path, split):
    datasets = downloads.import_torchvision().datasets
    parts = [tmp_path / "tree" / part for part in ("train", "test")] if split else [tmp_path / "a"]
    for part in parts:
        write_tree(part)
        os.symlink(part / "cat" / "a", part / "dog" / "linked")
    whole = folders.image_folder(parts[0].parent if split else parts[0], tmp_path, size=None)
    theirs = datasets.ImageFolder(parts[0], is_valid_file=lambda path: True)
    assert list(whole.classes) == theirs.classes
    expected = [np.asarray(picture) for picture, _ in theirs]
    images = [whole.train] if split else [whole.train, whole.test]
    found = [pixels.permute(1, 2, 0).numpy() for part in images for pixels in part.pixels]
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))
    if split:  # in the same order
        assert np.array_equal(found, expected)
        assert whole.train.labels.tolist() == theirs.targets
    default = datasets.ImageFolder(parts[0])
    assert {Path(file).suffix for file, _ in theirs.imgs} - {
        Path(file).suffix for file, _ in default.imgs
    } == {".gif"}


TURNED = {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}


def test_pictures_that_are_stored_turned_are_named_whenever_they_are_read(tmp_path, decodings):
    tree = {f"{name}/{i}.png": TURNED if i > 7 else {} for name in "ab" for i in range(10)}
    folder = write_tree(tmp_path / "turned", tree)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=r"a/8.png has an EXIF .* one of 4 such pictures"):
            whole = folders.image_folder(folder, tmp_path, size=None)
    assert decodings == [20]
    pixels = {bytes(picture.numpy()) for part in whole[:2] for picture in part.pixels}
    assert bytes(decoded(folder / "b" / "9.png").contiguous().numpy()) in pixels


def test_tiffs_are_turned_by_pillow_and_damaged_exif_is_passed_over(tmp_path):
    tree = {f"{name}/{i}.png": {"exif": b"Exif\0\0nothing"} for name in "ab" for i in range(5)}
    tree |= {f"{name}/{i}.tif": {"tiffinfo": {0x0112: 6}} for name in "ab" for i in range(5)}
    folder = write_tree(tmp_path / "tiffs", tree)
    whole = folders.image_folder(folder, tmp_path, size=None)
    pixels = {bytes(picture.numpy()) for part in whole[:2] for picture in part.pixels}
    assert bytes(decoded(folder / "b" / "4.tif").contiguous().numpy()) in pixels


def test_a_picture_file_with_several_gives_its_first(tmp_path):
    folder = write_tree(
        tmp_path / "film", {f"{name}/{i}.png": {} for name in "ab" for i in "12345"}
    )
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "tif", "png"):
        place = folder / "a" / f"film.{suffix}"
        frames[0].save(place, save_all=True, append_images=frames[1:])
    whole = folders.image_folder(folder, tmp_path, size=1)
    pixels = [tuple(picture.flatten().tolist()) for part in whole[:2] for picture in part.pixels]
    assert len(pixels) == 13
    assert pixels.count((255, 0, 0)) == 3


@pytest.mark.parametrize(
    "name", ["train/0.png", "0.JPG", "valid/cat/0.png", "train/cat/photo", "train/cat/.0.png"]
)
def test_a_picture_that_no_class_has_is_named(folder, pets, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / name, format="png")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match=f"pets/{name} is a picture that is left out"):
            pets()


def test_what_is_hidden_in_a_folder_is_passed_over(folder, pets):
    before = pets()
    write_pictures(folder / "train" / "cat" / ".ipynb_checkpoints", 2)
    write_pictures(folder / ".thumbnails", 2)
    assert all_same(pets(), before)


ODD = {
    "link to nothing": r"dog/x.png is a link to nothing \(No such file or directory\): mend or",
    "class that is a link to nothing": r"train/emu is a link to nothing: mend or remove it",
    "circle": r"cat/again/cat lies in itself, through a link: remove the link",
    "circle of two": r"cat/dogs/cats lies in itself, through a link: remove the link",
    "pipe": r"dog/x.png is neither a file nor a folder: remove it",
    "picture of no kind": r"dog/x.heic is not a picture that can be read \(cannot identify",
    "floats": r"dog/x.tiff is not a picture that can be read \(more than 8 bits a channel",
    "bomb": r"dog/x.png is not a picture that can be read \(Image size .* decompression bomb",
}


@pytest.mark.parametrize("case", ODD)
def test_odd_files_are_refused_in_one_line(folder, pets, monkeypatch, case):
    train = folder / "train"
    if case == "link to nothing":
        (train / "dog" / "x.png").symlink_to("nowhere.png")
    elif case == "class that is a link to nothing":
        (train / "emu").symlink_to("nowhere")
    elif case == "circle":
        (train / "cat" / "again").symlink_to(train)
    elif case == "circle of two":
        (train / "cat" / "dogs").symlink_to(train / "dog")
        (train / "dog" / "cats").symlink_to(train / "cat")
    elif case == "pipe":
        os.mkfifo(train / "dog" / "x.png")
    elif case == "picture of no kind":
        (train / "dog" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    elif case == "floats":
        Image.fromarray(np.ones((8, 8), np.float32)).save(train / "dog" / "x.tiff")
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        Image.new("L", (20, 20)).save(train / "dog" / "x.png")
    with pytest.raises(ValueError, match=ODD[case]) as error:
        pets()
    assert "\n" not in str(error.value)


def test_a_folder_that_may_not_be_read_is_named(folder, pets, monkeypatch):
    write_pictures(folder / "train" / "cat" / "secret", 1)
    scan = os.scandir

    def refusing(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(
        ValueError, match=r"cat/secret is a folder that cannot be read \(Permission"
    ):
        pets()


def test_names_that_are_no_text_are_read(tmp_path):
    for name in (b"a\xff", b"b"):
        write_pictures(Path(os.fsdecode(os.fsencode(tmp_path / "odd") + b"/" + name)), 10)
    load(f"imagefolder:{tmp_path / 'odd'}", tmp_path / "root")
    load(f"imagefolder:{tmp_path / 'odd'}", tmp_path / "root")


# --- the cache of decoded folders


@pytest.fixture
def decodings(monkeypatch):
    """How many pictures each decoding had."""
    done, decode = [], folders._decoded

    def counted(files, size):
        done.append(len(files))
        return decode(files, size)

    monkeypatch.setattr(folders, "_decoded", counted)
    return done


def cache_of(tmp_path):
    (file,) = (tmp_path / "root").rglob("*.safetensors")
    return file


def test_a_folder_is_decoded_once(pets, decodings, tmp_path):
    one = pets()
    assert all_same(pets(), one)
    assert pets(seed=4, limit=20).train.pixels.shape == (20, 3, 8, 8)
    assert decodings == [110]
    assert cache_of(tmp_path).stat().st_size > 110 * 3 * 64
    small = pets(image_size=4)
    assert decodings == [110, 110]
    assert small.train.pixels.shape[1:] == (3, 4, 4)
    assert all_same(pets(), one)
    assert all_same(pets(image_size=4), small)
    assert decodings == [110, 110]


def test_a_changed_folder_is_decoded_again_and_leaves_one_cache(folder, pets, decodings, tmp_path):
    before = pets(validation="test")
    write_pictures(folder / "test" / "cat", 12, seed=7)
    assert len(pets().test) == 32
    (folder / "train" / "cat" / "000.png").unlink()
    assert len(pets(validation="test").train) == 79
    file = folder / "train" / "dog" / "003.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file)
    assert not pets(validation="test").train.pixels[49 + 3].any()
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    pets()
    file.rename(file.with_name("999.png"))
    assert not pets(validation="test").train.pixels[-1].any()
    assert decodings == [110, 112, 111, 111, 111, 111]
    assert len(before.train) == 80
    cache_of(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "other kind"])
def test_a_damaged_cache_is_written_again(pets, decodings, tmp_path, damage):
    whole = pets()
    cache = cache_of(tmp_path)
    data = bytearray(cache.read_bytes())
    if damage == "flipped bit":
        data[-100] ^= 1
    elif damage == "other kind":
        data = data.replace(b"decoded pictures", b"encoded pictures")
    else:
        data = data[: len(data) // 2 if damage == "truncated" else 0]
    cache.write_bytes(data)
    assert all_same(pets(), whole)
    assert all_same(pets(), whole)
    assert decodings == [110, 110]


def test_a_cache_that_cannot_be_written_is_a_warning(pets, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "imagefolder").write_text("a file where a folder should be")
    with pytest.warns(RuntimeWarning, match="decoded pictures are not kept"):
        assert len(pets().train) == 72


def test_root_is_an_argument_or_the_environment(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EVO_SUBNETS_DATA", str(tmp_path / "environment"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for arguments in ({}, {"root": tmp_path / "argument"}):
        load(f"imagefolder:{folder}", **arguments)
    monkeypatch.delenv("EVO_SUBNETS_DATA")
    load(f"imagefolder:{folder}")
    for place in ("environment", "argument", "home/.cache/evo_subnets/data"):
        assert len(list((tmp_path / place).rglob("*.safetensors"))) == 1


# --- downloads: torchvision's classes played by fakes, since a test has no network


class Fake:
    """As torchvision's CIFAR10: one file, whole or refused; `behaviour` is how downloads go."""

    classes = [f"class {i}" for i in range(10)]
    downloads = 0
    behaviour = "whole"
    whole = b"all of it"

    def __init__(self, root, train, download):
        file = Path(root) / "batches"
        if download and not (file.exists() and file.read_bytes() == self.whole):
            type(self).downloads += 1
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(self.whole[:4])
            if self.behaviour == "no network":
                raise urllib.error.URLError("no route\nto host")
            if self.behaviour == "wrong checksum":
                raise RuntimeError("File not found or corrupted.")
            if self.behaviour == "interrupted":
                raise KeyboardInterrupt
            file.write_bytes(self.whole)
        if not file.exists() or file.read_bytes() != self.whole:
            raise RuntimeError("Dataset not found or corrupted.")
        count = 50 if train else 20
        rng = numbers(count)
        self.data = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets = [i % 10 for i in range(count)]


@pytest.fixture
def fake(monkeypatch):
    class Fresh(Fake):
        pass

    module = types.SimpleNamespace(datasets=types.SimpleNamespace(CIFAR10=Fresh))
    monkeypatch.setattr(downloads, "import_torchvision", lambda: module)
    return Fresh


def test_a_download_is_kept_and_read(fake, tmp_path):
    data = load("cifar10", tmp_path, validation="test")
    assert (fake.downloads, [path.name for path in tmp_path.iterdir()]) == (1, ["cifar10"])
    assert data.classes == tuple(fake.classes)
    source = fake(tmp_path / "cifar10", True, False)
    assert torch.equal(data.train.pixels, torch.from_numpy(source.data).permute(0, 3, 1, 2))
    assert data.train.labels.tolist() == source.targets
    assert data.train.pixels.is_contiguous(memory_format=torch.channels_last)
    assert data.augmentation.flip
    assert all_same(load("cifar10", tmp_path, validation="test"), data)
    assert fake.downloads == 1


@pytest.mark.parametrize("behaviour", ["no network", "wrong checksum"])
def test_a_download_that_fails_says_so_and_leaves_nothing(fake, tmp_path, behaviour):
    fake.behaviour = behaviour
    for _ in range(2):
        with pytest.raises(OSError, match=r"cifar10: the download into .* failed") as error:
            load("cifar10", tmp_path / "root")
        assert "\n" not in str(error.value)
        assert "check the network" in str(error.value)
        assert str(tmp_path / "root" / "cifar10") in str(error.value)
        assert not list((tmp_path / "root").iterdir())
    fake.behaviour = "whole"
    assert len(load("cifar10", tmp_path / "root").train) == 45
    assert fake.downloads == 3


def test_an_interrupted_download_is_not_taken_for_a_whole_one(fake, tmp_path, monkeypatch):
    fake.behaviour = "interrupted"
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", tmp_path)
    assert not list(tmp_path.iterdir())
    # as after a kill, which leaves no time to tidy up
    monkeypatch.setattr(downloads.shutil, "rmtree", lambda *arguments, **options: None)
    with pytest.raises(KeyboardInterrupt):
        load("cifar10", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    fake.behaviour = "whole"
    assert len(load("cifar10", tmp_path).train) == 45


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(fake, tmp_path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(OSError, match=r"cifar10: the download into .*root failed"):
        load("cifar10", tmp_path / "root")


def test_another_process_that_was_faster_is_no_error(fake, tmp_path, monkeypatch):
    rename = Path.rename

    def late(self, target):
        fake(target, True, True)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert len(load("cifar10", tmp_path).train) == 45
    assert [path.name for path in tmp_path.iterdir()] == ["cifar10"]


def test_files_that_were_damaged_later_are_named(fake, tmp_path):
    load("cifar10", tmp_path)
    (tmp_path / "cifar10" / "batches").write_bytes(b"al")
    with pytest.raises(ValueError, match=r"files in .*cifar10 are damaged .*remove that folder"):
        load("cifar10", tmp_path)


# --- torchvision's own classes, on small files of their formats


@pytest.fixture
def torchvision():
    return downloads.import_torchvision()


def idx(array):
    """The format of MNIST's files: a magic number, the sizes, the bytes."""
    head = [8 << 8 | array.ndim, *array.shape]
    return b"".join(n.to_bytes(4, "big") for n in head) + array.tobytes()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@needs_torchvision
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_files_are_read_and_padded(torchvision, tmp_path, name):
    source = getattr(torchvision.datasets, downloads.TORCHVISION[name])
    raw = tmp_path / name / source.__name__ / "raw"
    raw.mkdir(parents=True)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 20)):
        arrays[part] = numbers(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(arrays[part]))
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    data = load(name, tmp_path, validation="test")
    pixels = data.train.pixels
    assert pixels.shape == (40, 1, 32, 32)
    assert torch.equal(pixels[:, 0, 2:-2, 2:-2], torch.from_numpy(arrays["train"]))
    assert pixels.sum() == arrays["train"].sum(dtype=np.int64)
    assert data.train.labels.tolist() == [i % 10 for i in range(40)]
    assert data.augmentation.flip == (name == "fashion-mnist")
    assert data.classes[3] == {"mnist": "3", "fashion-mnist": "Dress"}[name]
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(arrays["t10k"])[:1000])
    with pytest.raises(ValueError, match=f"{name}: the files in .* are damaged or incomplete"):
        load(name, tmp_path)


@needs_torchvision
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_files_are_read(torchvision, tmp_path, name, monkeypatch):
    source = getattr(torchvision.datasets, downloads.TORCHVISION[name])
    folder = tmp_path / name / source.base_folder
    folder.mkdir(parents=True)
    rows = numbers().integers(0, 256, (30, 3072), dtype=np.uint8)
    key = "labels" if name == "cifar10" else "fine_labels"
    for file in ("training", "testing"):
        content = {"data": rows if file == "training" else rows[::-1], key: [0, 1, 2] * 10}
        (folder / file).write_bytes(pickle.dumps(content))
    meta = {"label_names": ["x", "y", "z"], "fine_label_names": ["x", "y", "z"]}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(meta))
    checked = md5(folder / source.meta["filename"])
    monkeypatch.setattr(source, "train_list", [["training", md5(folder / "training")]])
    monkeypatch.setattr(source, "test_list", [["testing", md5(folder / "testing")]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": checked})
    data = load(name, tmp_path, validation="test")
    assert torch.equal(data.train.pixels.flatten(1), torch.from_numpy(rows))
    assert data.train.labels.tolist() == [0, 1, 2] * 10
    assert (data.classes, data.augmentation.flip) == (("x", "y", "z"), True)


@needs_torchvision
def test_svhn_files_are_read_and_ten_is_zero(torchvision, tmp_path, monkeypatch):
    io = pytest.importorskip("scipy.io")
    (tmp_path / "svhn").mkdir()
    pixels, listed = numbers().integers(0, 256, (32, 32, 3, 20), dtype=np.uint8), {}
    for part in ("train", "test"):
        file = tmp_path / "svhn" / f"{part}_32x32.mat"
        io.savemat(file, {"X": pixels, "y": np.arange(20)[:, None] % 10 + 1})
        listed[part] = ["", file.name, md5(file)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", listed)
    data = load("svhn", tmp_path, validation="test")
    assert torch.equal(data.train.pixels, torch.from_numpy(pixels).permute(3, 2, 0, 1))
    assert data.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert (data.classes, data.augmentation.flip) == (tuple("0123456789"), False)


def test_torchvision_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        load("cifar10", tmp_path)


def test_names_are_documented_and_importing_brings_nothing_heavy():
    assert set(NAMES) == {*downloads.TORCHVISION, "digits", "imagefolder:PATH"}
    code = "import sys, evo_subnets.data; print(*sys.modules, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torchvision", "sklearn", "scipy", "PIL", "safetensors"}
    assert not set(run.stdout.split()) & heavy
