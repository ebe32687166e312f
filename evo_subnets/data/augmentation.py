"""Pictures as uint8 on the training device; random crops, flips and normalisation in batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from evo_subnets.streams import derive_seed

BATCH_SIZE = 128
"""Pictures of a batch where none is asked for."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled pictures: (n, channels, height, width) uint8 pixels and (n,) int64 labels.

    They are a task's data as they are: `augmentation` makes inputs of them (None: pixels in [0, 1],
    nothing else). In memory the channels lie side by side (torch.channels_last): a training step of
    LeNet or ResNet-20 takes a tenth to a fifth less time so on two CPU cores.
    """

    pixels: Tensor
    labels: Tensor
    augmentation: "Augmentation | None" = None

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        if pixels.ndim != 4 or pixels.dtype != torch.uint8:
            raise ValueError(
                "pixels must be (n, channels, height, width) uint8, got "
                f"{tuple(pixels.shape)} {pixels.dtype}"
            )
        if labels.shape != pixels.shape[:1] or labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be ({len(pixels)},) int64, one for each picture, got "
                f"{tuple(labels.shape)} {labels.dtype}"
            )
        if labels.device != pixels.device:
            raise ValueError(
                f"pixels and labels must be on one device, got {pixels.device} and {labels.device}"
            )
        if len(labels) and labels.min() < 0:
            raise ValueError(f"labels must be at least 0, got {int(labels.min())}")
        channels = pixels.shape[1]
        if self.augmentation is not None and len(self.augmentation.mean) != channels:
            raise ValueError(
                f"the augmentation is for {len(self.augmentation.mean)} channels, the pictures "
                f"have {channels}"
            )
        if self.augmentation is None:
            plain = Augmentation((0.0,) * channels, (1.0,) * channels, 0, False)
            object.__setattr__(self, "augmentation", plain)
        side_by_side = pixels.contiguous(memory_format=torch.channels_last)
        object.__setattr__(self, "pixels", side_by_side)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Images":
        """The pictures that a slice, an int64 or a bool tensor chooses."""
        return Images(self.pixels[index], self.labels[index], self.augmentation)

    def to(self, device: torch.device | str) -> "Images":
        """The same pictures on a device."""
        return Images(self.pixels.to(device), self.labels.to(device), self.augmentation)

    @property
    def input_bytes(self) -> int:
        """Of all inputs as networks take them, in float32."""
        return 4 * self.pixels.numel()

    def steps(self, batch_size: int | None) -> int:
        """Batches of a pass."""
        return -(-len(self) // (batch_size or BATCH_SIZE))

    def training(
        self, batch_size: int | None, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """A pass in a new order, augmented."""
        return batches(self, batch_size or BATCH_SIZE, generator=generator)

    def in_order(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """A pass in the pictures' order, only normalised."""
        return batches(self, batch_size or BATCH_SIZE)

    def bag(self, fraction: float, seed: int) -> "Images":
        """round(fraction n) of the pictures, drawn without replacement, in their order."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "bag"))
        count = max(1, round(fraction * len(self)))
        chosen = torch.randperm(len(self), generator=generator)[:count].sort().values
        return self[chosen.to(self.labels.device)]


@dataclass(frozen=True)
class Augmentation:
    """Random crops, flips and normalisation of uint8 batches, on the device where they are.

    `mean` and `std` are per channel, of pixels in [0, 1]. `padding` is the number of black pixels
    on every side from which crops of the old size are taken; with `flip`, half of the pictures are
    mirrored left to right.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(
                f"a mean and a std for each channel are needed, got {self.mean} and {self.std}"
            )
        if not all(map(math.isfinite, self.mean)) or not all(0 < s < math.inf for s in self.std):
            raise ValueError(
                f"means must be finite and stds also above 0, got {self.mean} and {self.std}"
            )
        if self.padding < 0:
            raise ValueError(f"padding must be at least 0 pixels, got {self.padding}")

    def normalize(self, pixels: Tensor) -> Tensor:
        """(n, channels, height, width) float32, channels last: (pixels / 255 - mean) / std."""
        self._check(pixels)
        corner = torch.zeros(len(pixels), dtype=torch.int64)
        return self._crops(pixels.permute(0, 2, 3, 1), corner, corner, corner, 0)

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """(n, channels, height, width) float32, channels last: cropped and flipped at random,
        normalised.

        `generator` is one of the CPU, whatever the device of `pixels`: a seed means the same crops
        on every device. As torchvision's RandomCrop(padding), RandomHorizontalFlip and Normalize.
        """
        self._check(pixels)
        if not self.padding and not self.flip:
            return self.normalize(pixels)
        count = len(pixels)
        top, left = torch.randint(2 * self.padding + 1, (2, count), generator=generator)
        mirrored = torch.zeros(count, dtype=torch.int64)
        if self.flip:
            mirrored = torch.randint(2, (count,), generator=generator)
        return self._crops(pixels.permute(0, 2, 3, 1), top, left, mirrored, self.padding)

    def _crops(
        self, pixels: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, padding: int
    ) -> Tensor:
        """Crops of (n, height, width, channels) pixels with a black border, normalised."""
        count, height, width, channels = pixels.shape
        # a whole row at once: loops over three channels are slow
        scale, shift = self._scale_and_shift.repeat(1, width).to(pixels.device)
        rows = pixels
        if padding or mirrored.any():
            rows = _cut(pixels, top, left, mirrored, padding)
        rows = rows.reshape(count * height, width * channels).float().mul_(scale).add_(shift)
        return rows.view(pixels.shape).permute(0, 3, 1, 2)

    @cached_property
    def _scale_and_shift(self) -> Tensor:
        # a multiplication and an addition instead of two divisions and a subtraction
        mean = torch.tensor(self.mean, dtype=torch.float64)
        std = torch.tensor(self.std, dtype=torch.float64)
        return torch.stack((1 / (255 * std), -mean / std)).float()

    def _check(self, pixels: Tensor) -> None:
        channels = len(self.mean)
        if pixels.ndim != 4 or pixels.dtype != torch.uint8 or pixels.shape[1] != channels:
            raise ValueError(
                f"expected (n, {channels}, height, width) uint8 pixels, got "
                f"{tuple(pixels.shape)} {pixels.dtype}"
            )


def _cut(pixels: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    """The crops of (n, height, width, channels) pixels in plain torch, as they are."""
    count, height, width, channels = pixels.shape
    # a crop that is mirrored is a crop of the mirrored picture, as far from its other side
    left = torch.where(mirrored == 1, 2 * padding - left, left)
    padded = pad(pixels, (0, 0, *(padding,) * 4))
    padded = torch.cat((padded, padded.flip(2)))
    # each row of a crop is a run of bytes, so an index for each row is enough: where it starts
    tall, wide = padded.shape[1:3]
    picture = torch.arange(count) + count * mirrored
    corner = (picture * tall + top) * wide + left
    starts = (corner[:, None] + torch.arange(height) * wide) * channels
    runs = padded.reshape(-1).unfold(0, width * channels, 1)  # overlapping, at every byte
    # not runs[starts], which copies byte by byte
    return runs.index_select(0, starts.view(-1).to(pixels.device))


def batches(
    images: Images,
    size: int,
    *,
    generator: torch.Generator | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over the pictures: (inputs, labels) of `size` pictures, on the pictures' device.

    With a generator (of the CPU) shuffled and augmented, for training; without, in order and only
    normalised. `drop_last` leaves out a last batch of fewer than `size`.
    """
    if size < 1:
        raise ValueError(f"a batch has at least one picture, got size={size}")
    if drop_last and size > len(images):
        raise ValueError(
            f"no batch is left: drop_last with size={size} and {len(images)} pictures; "
            "make batches smaller"
        )
    return _batches(images, size, generator, drop_last)


def _batches(
    images: Images,
    size: int,
    generator: torch.Generator | None,
    drop_last: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    augmentation = images.augmentation
    assert augmentation is not None
    end = len(images) // size * size if drop_last else len(images)
    if generator is None:
        for start in range(0, end, size):
            chosen = slice(start, min(start + size, end))
            yield augmentation.normalize(images.pixels[chosen]), images.labels[chosen]
        return
    order = torch.randperm(len(images), generator=generator).to(images.pixels.device)
    for start in range(0, end, size):
        index = order[start : start + size]
        rows = images.pixels.permute(0, 2, 3, 1).index_select(0, index)
        # much faster on a CPU than images.pixels[index]
        yield augmentation(rows.permute(0, 3, 1, 2), generator), images.labels[index]
