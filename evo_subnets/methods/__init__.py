"""One file for each published method; `METHODS` lists them for whoever runs any of them."""

from evo_subnets.methods.distillation import Distillation, distil
from evo_subnets.methods.dst import DST, StaticSparse
from evo_subnets.methods.edst import EDST
from evo_subnets.methods.independent import Bagging, Independent
from evo_subnets.methods.noisy import Noisy
from evo_subnets.methods.pep import PEP
from evo_subnets.methods.result import Build, Method, Result, with_seed
from evo_subnets.methods.soup import Soup
from evo_subnets.methods.sparse import Pruning, Sparse
from evo_subnets.methods.stochastic import Annealing, Stochastic
from evo_subnets.methods.trajectory import SWA, FastGeometric, Snapshot

METHODS: dict[str, type[Method]] = {
    "noisy": Noisy,
    "sparse": Sparse,
    "stochastic": Stochastic,
    "independent": Independent,
    "bagging": Bagging,
    "static_sparse": StaticSparse,
    "dst": DST,
    "edst": EDST,
    "snapshot": Snapshot,
    "fast_geometric": FastGeometric,
    "swa": SWA,
    "soup": Soup,
    "pep": PEP,
    "distillation": Distillation,
}

__all__ = [
    "DST",
    "EDST",
    "METHODS",
    "PEP",
    "SWA",
    "Annealing",
    "Bagging",
    "Build",
    "Distillation",
    "FastGeometric",
    "Independent",
    "Method",
    "Noisy",
    "Pruning",
    "Result",
    "Snapshot",
    "Soup",
    "Sparse",
    "StaticSparse",
    "Stochastic",
    "distil",
    "with_seed",
]
