"""Regression: a parent, a noisy ensemble and sparse halves on scikit-learn's diabetes data.

python examples/regression.py

Targets are standardised: a squared error of 1 is that of the mean. The members' spread knows
nothing of the noise in the targets: the last columns add what is left of the validation error.
"""

import argparse

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from evo_subnets import Ensemble, Search, Task, Values
from evo_subnets.methods import Noisy, Pruning, Sparse
from evo_subnets.metrics import gaussian_nll, mean_squared_error, within_spreads
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning, tune

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it runs")
args = parser.parse_args()
EPOCHS, POPULATION, MEMBERS = (2, 4, 2) if args.tiny else (40, 64, 8)

inputs, targets = (torch.tensor(part).float() for part in load_diabetes(return_X_y=True))
order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(args.seed))
train, validation, test = order[:282], order[282:362], order[362:]
inputs = (inputs - inputs[train].mean(0)) / inputs[train].std(0)
targets = (targets - targets[train].mean()) / targets[train].std()

torch.manual_seed(args.seed)
parent = nn.Sequential(
    nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1)
)


def batches(rows: Tensor, *, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(inputs[rows], targets[rows]), batch_size=32, shuffle=shuffle)


task = Task(batches(train, shuffle=True), batches(validation), outputs=Values())
tune(parent, task, tuning=Tuning(EPOCHS, Constant(1e-3), "adam"), seed=args.seed)

noisy = Noisy(Search(POPULATION, MEMBERS, seed=args.seed), target_kl=0.1)(parent, task)
halves = Sparse(
    MEMBERS, Pruning("halves"), Tuning(max(1, EPOCHS // 4), Constant(1e-3), "adam"), args.seed
)(parent, task)  # fmt: skip
models = {
    "parent": Ensemble([parent], outputs=Values()),
    "noisy ensemble": noisy.ensemble,
    "sparse halves": halves.ensemble,
}

print(f"{len(test)} test samples, {MEMBERS} members; calibrated: 68 % within one deviation")
print("model              MSE  spread  within   with noise: deviation  within    NLL")
for name, model in models.items():
    with torch.no_grad():
        found, apart = model.spread(inputs[validation])
        left = mean_squared_error(found, targets[validation]) - apart.square().mean()
        values, spread = model.spread(inputs[test])
    mse = mean_squared_error(values, targets[test])
    noise = (spread.square() + left.clamp(min=0)).sqrt()
    inside = [within_spreads(values, one, targets=targets[test]) for one in (spread, noise)]
    nll = gaussian_nll(values, noise, targets=targets[test])
    print(
        f"{name:16}{mse:6.3f}{spread.mean():8.3f}{100 * inside[0]:6.0f} %{noise.mean():24.3f}"
        f"{100 * inside[1]:6.0f} %{nll:7.3f}"
    )
