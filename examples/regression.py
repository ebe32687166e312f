"""Regression: a parent, a noisy ensemble and sparse halves on scikit-learn's diabetes data.

python examples/regression.py

Each seed is another split of the data and another parent. Targets are standardised: the error of
their mean is 1. "Tuned on": the parent, trained for as long as the halves are. Members know nothing
of the noise in the targets, so intervals of their spread alone hold few; the last column adds the
noise that validation data shows.
"""

import argparse
from statistics import fmean, stdev

import torch
from scipy.stats import t as students
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evo_subnets import Ensemble, Search, Task, Values
from evo_subnets.methods import Noisy, Pruning, Sparse
from evo_subnets.metrics import ValueReport, unexplained, value_report
from evo_subnets.prediction import predict_members
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning, tune

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seeds", type=int, default=10, help="splits of the data, a parent each")
parser.add_argument("--tiny", action="store_true", help="a few seconds, to see that it runs")
args = parser.parse_args()
SEEDS, EPOCHS, POPULATION, MEMBERS = (2, 2, 4, 2) if args.tiny else (args.seeds, 40, 64, 8)
INPUTS, TARGETS = (torch.tensor(part).float() for part in load_diabetes(return_X_y=True))


def trained(task: Task, seed: int, *, epochs: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(64, 1),
    )  # fmt: skip
    tune(network, task, tuning=Tuning(epochs, Constant(1e-3), "adam"), seed=seed)
    return network


def reports(seed: int) -> dict[str, tuple[ValueReport, ValueReport]]:
    """Of each model on test data: of the spread alone, and with the noise of the targets."""
    order = torch.randperm(len(INPUTS), generator=torch.Generator().manual_seed(seed))
    rows = order[:282], order[282:362], order[362:]  # train, validation, test
    inputs = (INPUTS - INPUTS[rows[0]].mean(0)) / INPUTS[rows[0]].std(0)
    targets = (TARGETS - TARGETS[rows[0]].mean()) / TARGETS[rows[0]].std()
    train, validation, test = (TensorDataset(inputs[some], targets[some]) for some in rows)
    task = Task(DataLoader(train, 32, shuffle=True), DataLoader(validation, 80), outputs=Values())

    parent, more = trained(task, seed, epochs=EPOCHS), max(1, EPOCHS // 4)
    search, again = Search(POPULATION, MEMBERS, seed=seed), Tuning(more, Constant(1e-3), "adam")
    models = {
        "parent": Ensemble([parent], outputs=Values()),
        "tuned on": Ensemble([trained(task, seed, epochs=EPOCHS + more)], outputs=Values()),
        "noisy": Noisy(search, target_kl=0.1)(parent, task).ensemble,
        "sparse halves": Sparse(MEMBERS, Pruning("halves"), again, seed)(parent, task).ensemble,
    }
    found = {}
    for name, model in models.items():
        noise = unexplained(predict_members(model, DataLoader(validation, 80)), targets[rows[1]])
        said, wanted = predict_members(model, DataLoader(test, 80)), targets[rows[2]]
        found[name] = value_report(said, wanted), value_report(said, wanted, noise=noise)
    return found


def interval(numbers: list[float]) -> str:
    """The mean and its 95 % interval over seeds."""
    mean, error = fmean(numbers), stdev(numbers) / len(numbers) ** 0.5
    width = students.ppf(0.975, len(numbers) - 1) * error
    return f"{mean:+.3f} [{mean - width:+.3f}, {mean + width:+.3f}]"


def shares(some: tuple[ValueReport, ...]) -> str:
    return " ".join(
        f"{100 * fmean(one.coverage[of] for one in some):3.0f}" for of in (0.5, 0.8, 0.95)
    )


runs = [reports(seed) for seed in range(SEEDS)]
print(f"{SEEDS} seeds, {MEMBERS} members, 80 test samples: means, 95 % intervals over seeds;")
print("targets in central intervals of 50, 80 and 95 %, of the spread and with the targets' noise")
print("model            MSE     R2   MSE against parent       spread   corr     NLL", end="")
print("   %, spread   %, noise")
for name in runs[0]:
    alone, noisy = zip(*(run[name] for run in runs), strict=True)
    apart = [run[name][0].mse - run["parent"][0].mse for run in runs]
    mse, r2, spread, correlation = (
        fmean(getattr(one, key) for one in alone) for key in ("mse", "r2", "spread", "correlation")
    )
    row = f"{name:14}{mse:6.3f}{r2:7.3f}  {interval(apart)}{spread:8.3f}{correlation:7.2f}"
    print(row.replace("nan", "  -"), end="")  # one network has no spread
    print(f"{fmean(one.nll for one in noisy):8.3f} {shares(alone)} {shares(noisy)}")
