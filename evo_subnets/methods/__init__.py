"""One file for each published method; `METHODS` lists them for whoever runs any of them."""

from evo_subnets.methods.independent import Bagging, Independent
from evo_subnets.methods.noisy import Noisy
from evo_subnets.methods.result import Build, Method, Result, with_seed
from evo_subnets.methods.sparse import Pruning, Sparse
from evo_subnets.methods.stochastic import Annealing, Stochastic

METHODS: dict[str, type[Method]] = {
    "noisy": Noisy,
    "sparse": Sparse,
    "stochastic": Stochastic,
    "independent": Independent,
    "bagging": Bagging,
}

__all__ = [
    "METHODS",
    "Annealing",
    "Bagging",
    "Build",
    "Independent",
    "Method",
    "Noisy",
    "Pruning",
    "Result",
    "Sparse",
    "Stochastic",
    "with_seed",
]
