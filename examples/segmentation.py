"""Segmentation: a small U-Net on discs and squares, a noisy ensemble of it and sparse halves.

python examples/segmentation.py

Outputs are (batch, classes, height, width): classes on axis 1. Every number is one of pixels.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from evo_subnets import Classes, Ensemble, Search, Task
from evo_subnets.methods import Noisy, Pruning, Sparse
from evo_subnets.prediction import predict_members
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning, tune

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it runs")
args = parser.parse_args()
EPOCHS, POPULATION, MEMBERS, PICTURES = (1, 4, 2, 16) if args.tiny else (8, 16, 6, 256)
SIZE = 32
PIXELS = Classes(axis=1)


def block(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class UNet(nn.Module):
    """(batch, 1, height, width) to (batch, 3, height, width): background, disc, square."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = block(1, 16), block(16, 32)
        self.up, self.join = nn.ConvTranspose2d(32, 16, 2, stride=2), block(32, 16)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(nn.functional.max_pool2d(fine, 2))
        logits: Tensor = self.head(self.join(torch.cat([fine, self.up(coarse)], dim=1)))
        return logits


def pictures(count: int, seed: int) -> TensorDataset:
    """Noisy pictures of a disc and a square, and the class of each pixel."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    for number in range(count):
        for label in (1, 2):
            y, x = torch.randint(6, SIZE - 6, (2,), generator=draw).tolist()
            radius = int(torch.randint(3, 7, (), generator=draw))
            far = torch.stack(((rows - y).abs(), (columns - x).abs())).float()
            distance = far.norm(dim=0) if label == 1 else far.amax(dim=0)
            labels[number][distance <= radius] = label
    noise = torch.randn(count, 1, SIZE, SIZE, generator=draw)
    return TensorDataset((labels[:, None] > 0) + 0.8 * noise, labels)


train, validation, test = (pictures(PICTURES, seed) for seed in (1, 2, 3))
torch.manual_seed(args.seed)
parent = UNet()
task = Task(DataLoader(train, 16, shuffle=True), DataLoader(validation, 32), outputs=PIXELS)
adam = Tuning(EPOCHS, Constant(3e-3), "adam")
tune(parent, task, tuning=adam, seed=args.seed)

noisy = Noisy(Search(POPULATION, MEMBERS, seed=args.seed), target_kl=0.005)(parent, task)
again = Tuning(max(1, EPOCHS // 2), Constant(3e-3), "adam")
halves = Sparse(MEMBERS, Pruning("halves", classifier=True), again, args.seed)(parent, task)
models = {
    "parent": Ensemble([parent], outputs=PIXELS),
    "noisy ensemble": noisy.ensemble,
    "sparse halves": halves.ensemble,
}

labels = test.tensors[1]
print(f"{len(labels)} test pictures of {SIZE}x{SIZE} pixels, {MEMBERS} members")
print("model           accuracy, %  NLL, nats  shapes found, %")
for name, model in models.items():
    said = model.combined(predict_members(model, DataLoader(test, 32)))
    shapes = 100 * (said.argmax(1) == labels)[labels > 0].double().mean()
    right, nll = 100 * PIXELS.metric(said, labels), PIXELS.loss(said, labels)
    print(f"{name:16}{right:11.2f}{nll:11.4f}{shapes:17.2f}")
