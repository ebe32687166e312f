"""Corruptions against plain references, Pillow and their own definitions; the published files."""

import colorsys
import itertools
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from networks import noise
from PIL import Image
from scipy import ndimage
from torch.nn.functional import interpolate

from evo_subnets.data.corruptions import CORRUPTIONS, SEVERITIES, cifar_c, cifar_c_names, corrupt
from evo_subnets.data.digital import elastic_transform
from evo_subnets.data.noise_and_blur import (
    defocus_blur,
    gaussian_filter,
    glass_blur,
    grey_levels,
    motion_blur,
    zoom_blur,
)
from evo_subnets.data.weather import _distances, _relief, edges, fog, plasma, snow, spatter
from evo_subnets.files import StorageError

RANDOM = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur"),
    *("motion_blur", "snow", "fog", "elastic_transform", "spatter"),
}


def smooth(n, channels=3, side=32, seed=0):
    """uint8 images of a few soft blobs."""
    u = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
    large = interpolate(u, (side, side), mode="bicubic", align_corners=True)
    return large.clamp(0, 1).mul(255).byte()


def flat(n, value, channels=3):
    """Images of one grey, all but a pixel that tells them apart."""
    images = torch.full((n, channels, 32, 32), value, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(n, dtype=torch.uint8)
    return images


def generators(n):
    return [np.random.Generator(np.random.PCG64(i)) for i in range(n)]


def real(n, **arguments):
    return smooth(n, **arguments).numpy() / 255.0


def test_names_are_in_the_order_of_the_paper():
    assert len(CORRUPTIONS) == len(set(CORRUPTIONS)) == 18
    assert "frost" not in CORRUPTIONS
    assert CORRUPTIONS[:3] == ("gaussian_noise", "shot_noise", "impulse_noise")
    assert CORRUPTIONS[-4:] == ("speckle_noise", "gaussian_blur", "spatter", "saturate")


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 32), (3, 8), (1, 28), (3, 45)])
def test_shapes_and_types_stay(name, channels, side):
    images = smooth(3, channels, side)
    before = images.clone()
    for severity in SEVERITIES:
        result = corrupt(images, name, severity=severity)
        assert result.shape == images.shape
        assert result.dtype == torch.uint8
    assert torch.equal(images, before)
    if (channels, side) == (3, 32):
        assert not torch.equal(result, images)
    assert corrupt(images[:0], name, severity=1).shape == (0, channels, side, side)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_seed_says_everything_and_other_images_nothing(name):
    images = smooth(260)  # more than are worked on at a time
    result = corrupt(images, name, severity=4, seed=3)
    assert torch.equal(corrupt(images, name, severity=4, seed=3), result)
    for i in (0, 5, 259):
        assert torch.equal(corrupt(images[i : i + 1], name, severity=4, seed=3)[0], result[i])
    strided = images[:5].contiguous(memory_format=torch.channels_last)
    assert torch.equal(corrupt(strided, name, severity=4, seed=3), result[:5])
    differs = not torch.equal(corrupt(images[:5], name, severity=4, seed=4), result[:5])
    assert differs == (name in RANDOM)


# the constants themselves do not rise: motion 3 and 4 differ in a kernel's faint end alone; glass
# passes once (1 to 3) or twice over images where its filter hardly counts; elastic trades a global
# for a local change; spatter is water, then mud; saturation is taken away, then added
RISING = {
    "motion_blur": [(1, 2, 3, 5), (4, 5)],
    "glass_blur": [(1, 4), (3, 5)],
    "elastic_transform": [],
    "spatter": [(1, 2, 3), (4, 5)],
    "saturate": [(1, 2), (3, 4, 5)],
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_change_grows_with_severity(name):
    images = smooth(100)
    changes = [
        (corrupt(images, name, severity=severity).float() - images.float()).abs().mean().item()
        for severity in SEVERITIES
    ]
    assert min(changes) > 0.1
    for group in RISING.get(name, [SEVERITIES]):
        run = [changes[severity - 1] for severity in group]
        assert all(a < b for a, b in itertools.pairwise(run)), changes


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (5, 0.10)])
def test_gaussian_noise_has_the_constants_deviation(severity, sigma):
    change = corrupt(flat(40, 128), "gaussian_noise", severity=severity)[:, :, 1:].double() - 128
    assert change.std().item() == pytest.approx(255 * sigma, rel=0.01)
    assert change.mean().item() == pytest.approx(-0.5, abs=0.3)  # rounded down


@pytest.mark.parametrize(
    ("name", "severity", "variance"),
    [("shot_noise", 5, 100 / 255 / 50), ("speckle_noise", 5, (0.2 * 100 / 255) ** 2)],
)
def test_noise_that_grows_with_the_value(name, severity, variance):
    change = corrupt(flat(40, 100), name, severity=severity)[:, :, 1:].double() - 100
    assert change.std().item() == pytest.approx(255 * math.sqrt(variance), rel=0.015)
    assert not corrupt(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), name, severity=severity).any()


@pytest.mark.parametrize(("severity", "amount"), [(1, 0.01), (5, 0.07)])
def test_impulse_noise_hits_its_fraction_half_black_half_white(severity, amount):
    result = corrupt(flat(100, 128), "impulse_noise", severity=severity)[:, :, 1:]
    assert set(result.unique().tolist()) == {0, 128, 255}
    for extreme in (0, 255):
        fraction = (result == extreme).double().mean().item()
        assert fraction == pytest.approx(amount / 2, rel=0.06)


def through_hsv(images, change):
    """Pixel by pixel, with the standard library's HSV."""
    result = torch.empty_like(images)
    for i, image in enumerate(images.tolist()):
        for y, x in np.ndindex(images.shape[2:]):
            hsv = colorsys.rgb_to_hsv(*(image[c][y][x] / 255 for c in range(3)))
            rgb = colorsys.hsv_to_rgb(*change(*hsv))
            result[i, :, y, x] = torch.tensor([int(255 * v + 1e-6) for v in rgb])
    return result


def with_corners(images):
    """Black, white, grey and pure red among the pixels."""
    images[:, :, 0, 0], images[:, :, 0, 1], images[:, :, 0, 2] = 0, 255, 77
    images[:, :, 0, 3] = torch.tensor([255, 0, 0])
    return images


@pytest.mark.parametrize(("severity", "added"), [(1, 0.05), (5, 0.3)])
def test_brightness_is_that_of_a_plain_reference(severity, added):
    images = with_corners(smooth(2))
    expected = through_hsv(images, lambda h, s, v: (h, s, min(v + added, 1)))
    assert torch.equal(corrupt(images, "brightness", severity=severity), expected)
    grey = smooth(1, channels=1)
    expected = (grey.double() / 255 + added).clamp(max=1).mul(255).add(1e-6).byte()
    assert torch.equal(corrupt(grey, "brightness", severity=severity), expected)


@pytest.mark.parametrize(("severity", "factor", "added"), [(2, 0.1, 0), (3, 1.5, 0), (5, 2.5, 0.2)])
def test_saturate_is_that_of_a_plain_reference(severity, factor, added):
    images = with_corners(smooth(2))
    expected = through_hsv(images, lambda h, s, v: (h, min(s * factor + added, 1), v))
    assert torch.equal(corrupt(images, "saturate", severity=severity), expected)
    grey = smooth(1, channels=1)
    assert torch.equal(corrupt(grey, "saturate", severity=severity), grey)


@pytest.mark.parametrize(("severity", "factor"), [(1, 0.75), (5, 0.15)])
def test_contrast_is_that_of_a_plain_reference(severity, factor):
    images = smooth(2, side=9)
    expected = torch.empty_like(images)
    for i, image in enumerate(images.tolist()):
        for c, channel in enumerate(image):
            mean = sum(v / 255 for row in channel for v in row) / 81
            for y, x in np.ndindex(9, 9):
                value = (channel[y][x] / 255 - mean) * factor + mean
                expected[i, c, y, x] = int(value * 255 + 1e-6)
    assert torch.equal(corrupt(images, "contrast", severity=severity), expected)


def with_pillow(images, change):
    result = []
    for image in images.permute(0, 2, 3, 1).numpy():
        picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
        changed = np.array(change(picture)).reshape(image.shape)
        result.append(torch.from_numpy(changed).permute(2, 0, 1))
    return torch.stack(result)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("severity", "quality", "small"), [(1, 80, 30), (5, 40, 20)])
def test_jpeg_and_pixelate_are_pillows(channels, severity, quality, small):
    images = smooth(4, channels)

    def jpeg(picture):
        stream = BytesIO()
        picture.save(stream, format="JPEG", quality=quality)
        return Image.open(stream)

    def pixels(picture):
        return picture.resize((small, small), Image.BOX).resize((32, 32), Image.BOX)

    expected = with_pillow(images, jpeg)
    assert torch.equal(corrupt(images, "jpeg_compression", severity=severity), expected)
    assert torch.equal(corrupt(images, "pixelate", severity=severity), with_pillow(images, pixels))


@pytest.mark.parametrize(("radius", "softness"), [(0.3, 0.4), (1, 0.2), (1.5, 0.1)])
def test_defocus_is_the_convolution_with_the_whole_kernel(radius, softness):
    grid = np.arange(-8, 9)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(float)
    soft = [math.exp(-0.5 * (i / softness) ** 2) for i in (-1, 0, 1)]
    soft = np.outer(soft, soft) / sum(soft) ** 2
    kernel = ndimage.convolve(disk / disk.sum(), soft, mode="constant")
    images = real(2)
    result = defocus_blur(images, generators(2), radius=radius, softness=softness)
    for image, out in zip(images.reshape(6, 32, 32), result.reshape(6, 32, 32), strict=True):
        np.testing.assert_allclose(out, ndimage.convolve(image, kernel, mode="mirror"))


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name.endswith("_blur")])
def test_blurs_leave_one_colour_alone(name):
    images = torch.tensor([200, 30, 117], dtype=torch.uint8)[:, None, None].expand(1, 3, 32, 32)
    for severity in SEVERITIES:
        assert torch.equal(corrupt(images, name, severity=severity), images)


def test_gaussian_filter_does_not_mix_images_or_channels():
    images = real(2)
    result = gaussian_filter(images, 0.8)
    expected = ndimage.gaussian_filter(images[1, 2], 0.8, mode="nearest")
    np.testing.assert_allclose(result[1, 2], expected)


@pytest.mark.parametrize("iterations", [1, 2])
def test_glass_takes_colours_as_a_loop_over_pixels_does(iterations):
    side, generator = 12, generators(1)[0]
    image = grey_levels(gaussian_filter(real(1, side=side), 0.4))[0]
    for _ in range(iterations):
        shifts = generator.integers(-1, 1, (2, side - 2, side - 2))
        for y in range(side - 1, 1, -1):
            for x in range(side - 1, 1, -1):
                down, right = shifts[:, y - 2, x - 2]
                image[:, y, x] = image[:, y + down, x + right]
    expected = gaussian_filter(image[None] / 255.0, 0.4)
    result = glass_blur(real(1, side=side), generators(1), sigma=0.4, iterations=iterations)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("angles", [(-45, 45), (-135, -45)])
def test_motion_is_a_weighted_mean_along_a_line(angles):
    images, radius, sigma = real(2, side=16), 3, 1.5
    result = motion_blur(images, generators(2), radius=radius, sigma=sigma, angles=angles)
    weights = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(7)]
    for image, out, generator in zip(images, result, generators(2), strict=True):
        angle = math.radians(generator.uniform(*angles))
        for y, x in np.ndindex(16, 16):
            total = 0.0
            for k, weight in enumerate(weights):
                row = y + math.ceil(k * math.sin(angle) - 0.5)
                column = x + math.ceil(k * math.cos(angle) - 0.5)
                inside = [min(max(place, 0), 15) for place in (row, column)]
                total += weight / sum(weights) * image[:, inside[0], inside[1]]
            np.testing.assert_allclose(out[:, y, x], np.rint(255 * total) / 255)


@pytest.mark.parametrize("side", [32, 28])
def test_zoom_is_scipys(side):
    image = real(1, side=side)[0].transpose(1, 2, 0)
    layers = [image]
    for factor in np.arange(1, 1.16, 0.01):
        crop = int(np.ceil(side / factor))
        top = (side - crop) // 2
        middle = image[top : top + crop, top : top + crop]
        large = ndimage.zoom(middle, (factor, factor, 1), order=1)
        trim = (len(large) - side) // 2
        layers.append(large[trim : trim + side, trim : trim + side])
    result = zoom_blur(image.transpose(2, 0, 1)[None], generators(1), stop=1.16)
    np.testing.assert_allclose(result[0].transpose(1, 2, 0), np.mean(layers, axis=0))


def test_snow_without_flakes_whitens():
    images = real(2)
    red, green, blue = images.transpose(1, 0, 2, 3)
    white = (0.299 * red + 0.587 * green + 0.114 * blue) * 1.5 + 0.5
    expected = 0.8 * images + 0.2 * np.maximum(images, white[:, None])
    result = snow(
        images,
        generators(2),
        mean=0.3,
        scale=0.3,
        zoom=1.25,
        threshold=10,
        radius=14,
        sigma=12,
        kept=0.8,
    )
    np.testing.assert_allclose(result, expected)
    flakes = (
        snow(
            images,
            generators(2),
            mean=0.3,
            scale=0.3,
            zoom=1.25,
            threshold=0.65,
            radius=14,
            sigma=12,
            kept=0.8,
        )
        - expected
    )
    np.testing.assert_allclose(flakes, flakes[:, :, ::-1, ::-1], atol=1e-12)
    assert flakes.min() >= -1e-12
    assert flakes.max() > 0.1


def test_fog_of_one_grey_reaches_from_clear_to_its_brightest():
    result = fog(np.full((3, 3, 32, 32), 0.6), generators(3), strength=0.5, decay=3)
    np.testing.assert_allclose(result.max(axis=(1, 2, 3)), 0.6)
    np.testing.assert_allclose(result.min(axis=(1, 2, 3)), 0.6 * 0.6 / 1.1)
    np.testing.assert_allclose(result[:, 0], result[:, 2])


def test_plasma_is_that_of_a_plain_reference():
    side, decay = 16, 1.75
    noise_of = np.random.Generator(np.random.PCG64(0)).uniform(-1, 1, (2, side**2 - 1))
    for bumps, result in zip(noise_of, plasma(noise_of, side, decay=decay), strict=True):
        heights, rest, step, reach = {(0, 0): 0.0}, iter(bumps), side, 100.0

        def mean(*places, heights=heights):
            return sum(heights[y % side, x % side] for y, x in places) / 4

        while step >= 2:
            half, corners = step // 2, range(0, side, step)
            for y in corners:
                for x in corners:
                    around = (y, x), (y + step, x), (y, x + step), (y + step, x + step)
                    heights[y + half, x + half] = mean(*around) + reach**2 * next(rest)
            for y0, x0 in ((0, half), (half, 0)):
                for y in range(y0, side, step):
                    for x in range(x0, side, step):
                        around = (y - half, x), (y + half, x), (y, x - half), (y, x + half)
                        heights[y, x] = mean(*around) + reach**2 * next(rest)
            step, reach = half, reach / decay
        plain = np.array([[heights[y, x] for x in range(side)] for y in range(side)])
        np.testing.assert_allclose(result, (plain - plain.min()) / np.ptp(plain), atol=1e-12)


def test_water_adds_its_colour_and_mud_covers():
    images = np.full((5, 3, 32, 32), 0.3)
    water = (
        spatter(
            images,
            generators(5),
            mean=0.65,
            scale=0.3,
            sigma=1,
            threshold=0.69,
            last=0.5,
            mud=False,
        )
        - images
    )
    np.testing.assert_allclose(water[:, 1], water[:, 2])
    np.testing.assert_allclose(water[:, 0] * 238, water[:, 1] * 175)
    np.testing.assert_allclose(water.max(axis=(1, 2, 3)), 0.5 * 238 / 255)
    assert water.min() == 0
    mud = spatter(
        images, generators(5), mean=0.7, scale=0.1, sigma=0.5, threshold=0.68, last=0.6, mud=True
    )
    brown = np.array([63, 42, 20])[:, None, None] / 255
    cover = ((mud - images) / (brown - images)).mean(axis=1)
    np.testing.assert_allclose(mud, images + cover[:, None] * (brown - images))
    assert ((cover == 0) | (cover > 0.799)).all()
    assert cover.max() > 0.999
    none = spatter(
        images, generators(5), mean=0, scale=0.1, sigma=1, threshold=0.7, last=0.5, mud=False
    )
    np.testing.assert_array_equal(none, images)


def test_edges_are_those_of_a_plain_canny():
    generator = np.random.Generator(np.random.PCG64(5))
    field = ndimage.gaussian_filter(generator.normal(0, 300, (4, 24, 24)), (0, 1.5, 1.5))
    for levels, found in zip(
        np.clip(field + 90, 0, 255).astype(int),
        edges(np.clip(field + 90, 0, 255).astype(int), 50, high=150),
        strict=True,
    ):
        dx = ndimage.sobel(levels, axis=1, mode="nearest")
        dy = ndimage.sobel(levels, axis=0, mode="nearest")
        size = np.pad(abs(dx) + abs(dy), 1)
        expected = np.zeros((24, 24), dtype=bool)
        for y, x in np.ndindex(24, 24):
            here = size[y + 1, x + 1]
            angle = math.degrees(math.atan2(dy[y, x], dx[y, x])) % 180
            step = [(0, 1), (1, 1), (1, 0), (1, -1)][round(angle / 45) % 4]
            before = size[y + 1 - step[0], x + 1 - step[1]]
            after = size[y + 1 + step[0], x + 1 + step[1]]
            if 0 in step:  # on diagonals neither neighbour may be as great
                after = after - 1
            expected[y, x] = here > max(50, before, after)
        strong, grown = expected & (size[1:-1, 1:-1] > 150), None
        while grown is None or (grown != strong).any():
            grown = strong
            strong = expected & ndimage.binary_dilation(strong, np.ones((3, 3)))
        assert 10 < grown.sum() < expected.sum()
        np.testing.assert_array_equal(found, grown)


def test_distances_are_the_cheapest_paths():
    lines = np.zeros((2, 20, 20), dtype=bool)
    lines[0, 7, 4] = True
    result = _distances(lines, 15.0)
    for y, x in np.ndindex(20, 20):
        far, near = max(abs(y - 7), abs(x - 4)), min(abs(y - 7), abs(x - 4))
        knights = min(near, far - near)
        rest = far - 2 * near if far >= 2 * near else 1.4 * (2 * near - far)
        assert result[0, y, x] == pytest.approx(min(2.1969 * knights + rest, 15))
    assert (result[1] == 15).all()


def test_shading_is_that_of_a_plain_reference():
    lines = np.random.Generator(np.random.PCG64(1)).random((3, 16, 16)) < 0.02
    lines[2] = False

    def box(image):
        padded = np.pad(image, 1, mode="reflect")
        return np.array(
            [[padded[y : y + 3, x : x + 3].mean() for x in range(16)] for y in range(16)]
        )

    for distances, result in zip(_distances(lines, 20.0), _relief(lines), strict=True):
        near = (box(distances) + 1e-6).astype(int)
        below = np.array([[(near <= value).sum() for value in row] for row in near])
        others = (near > near.min()).sum()
        if others:
            near = np.rint((below - (near == near.min()).sum()) * 255 / others)
        padded = np.pad(near, 1, mode="reflect")
        raised = padded[1:-1, 1:-1] + padded[1:-1, 2:] + padded[2:, 1:-1] + 2 * padded[2:, 2:]
        raised = raised - padded[1:-1, :-2] - padded[:-2, 1:-1] - 2 * padded[:-2, :-2]
        np.testing.assert_array_equal(result, np.rint(box(np.clip(raised, 0, 255))))


def test_elastic_is_an_affine_map_and_a_displacement():
    images = real(2)
    np.testing.assert_allclose(
        elastic_transform(images, generators(2), amplitude=0, sigma=0, corner=0), images
    )
    ramp = np.broadcast_to(np.arange(32) / 31, (2, 1, 32, 32))
    mapped = elastic_transform(ramp, generators(2), amplitude=0, sigma=0, corner=0.05)[
        :, 0, 12:20, 12:20
    ]
    for axis in (1, 2):
        np.testing.assert_allclose(np.diff(mapped, 2, axis=axis), 0, atol=1e-12)
    slope = np.diff(mapped, axis=2)[:, 0, 0] * 31
    assert (abs(slope - 1) < 0.5).all()
    assert (abs(slope - 1) > 1e-3).all()
    change = elastic_transform(ramp, generators(2), amplitude=0.08, sigma=0.06, corner=0) - ramp
    assert 1e-3 < abs(change[:, 0, 4:28, 4:28]).max() < 0.08 * 32 / 31


def test_wrong_arguments_are_refused():
    images = smooth(2)
    with pytest.raises(ValueError, match="no corruption 'gausian_noise'; there are gaussian_noise"):
        corrupt(images, "gausian_noise", severity=1)
    with pytest.raises(ValueError, match=r"'frost' \(frost needs photographs"):
        corrupt(images, "frost", severity=1)
    for severity in (0, 6, -1, "3"):
        with pytest.raises(ValueError, match="a severity is one of 1, 2, 3, 4, 5, got "):
            corrupt(images, "fog", severity=severity)
    wrong = [images.float(), images[0], images[:, :2], images[:, :, :20], images[:, :, :7, :7]]
    for other in wrong:
        with pytest.raises(ValueError, match=r"must be uint8 \(n, 1 or 3, side, side\) on the CPU"):
            corrupt(other, "fog", severity=1)
    with pytest.raises(ValueError, match="a seed must be an int"):
        corrupt(images, "fog", severity=1, seed=-1)


@pytest.fixture
def published(tmp_path):
    """Ten images in five blocks of two, as in CIFAR-10-C."""
    pixels = (noise(10, 32, 32, 3) * 50 + 128).clamp(0, 255).byte().numpy()
    for name in ("fog", "frost"):
        np.save(tmp_path / f"{name}.npy", pixels)
    np.save(tmp_path / "labels.npy", np.arange(10, dtype=np.uint8))
    return tmp_path, pixels


def test_published_files_are_read_block_by_block(published):
    folder, pixels = published
    for name in ("fog", "frost"):
        for severity in SEVERITIES:
            images, labels = cifar_c(folder, name, severity=severity)
            block = pixels[2 * severity - 2 : 2 * severity]
            assert images.dtype == torch.uint8
            assert images.is_contiguous()
            np.testing.assert_array_equal(images.numpy(), block.transpose(0, 3, 1, 2))
            assert labels.tolist() == [2 * severity - 2, 2 * severity - 1]
            assert labels.dtype == torch.int64
    assert cifar_c_names(folder) == ("fog", "frost")
    with pytest.raises(ValueError, match=r"expected the \.npy files of CIFAR-10-C"):
        cifar_c_names(folder / "elsewhere")
    images.zero_()  # a copy: the file stays
    np.testing.assert_array_equal(np.load(folder / "frost.npy"), pixels)


def test_published_files_that_are_not_what_they_should_be_are_refused(published):
    folder, pixels = published
    with pytest.raises(ValueError, match=r"no corruption 'rain'; there are .*, frost"):
        cifar_c(folder, "rain", severity=1)
    with pytest.raises(ValueError, match="a severity is one of 1, 2, 3, 4, 5, got 6"):
        cifar_c(folder, "fog", severity=6)
    with pytest.raises(StorageError, match=r"snow.npy: there is no such file"):
        cifar_c(folder, "snow", severity=1)
    shapes = pixels[:9], pixels[:, :, :, 0], pixels[:0], pixels[0, 0, 0, 0]
    for wrong in (*shapes, pixels.astype(float)):
        np.save(folder / "snow.npy", wrong)
        with pytest.raises(StorageError, match=r"snow.npy: expected uint8 \(n, 32, 32, 3\)"):
            cifar_c(folder, "snow", severity=1)
    for content in (b"", b"not numpy's"):
        (folder / "snow.npy").write_bytes(content)
        with pytest.raises(StorageError, match=r"snow.npy: not an array in numpy's format"):
            cifar_c(folder, "snow", severity=1)
    np.save(folder / "snow.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(StorageError, match=r"snow.npy: not an array in numpy's format"):
        cifar_c(folder, "snow", severity=1)
    with (folder / "snow.npy").open("wb") as file:
        np.savez(file, pixels)
    with pytest.raises(StorageError, match=r"snow.npy: expected one array, got an archive"):
        cifar_c(folder, "snow", severity=1)
    np.save(folder / "labels.npy", np.arange(9))
    with pytest.raises(StorageError, match=r"labels.npy: expected 10 integers"):
        cifar_c(folder, "fog", severity=1)
    (folder / "labels.npy").unlink()
    with pytest.raises(StorageError, match=r"labels.npy: there is no such file"):
        cifar_c(folder, "fog", severity=1)
