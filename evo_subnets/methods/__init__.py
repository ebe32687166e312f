"""One file for each published method; each gives an ensemble and what it cost."""

from evo_subnets.methods.independent import bagging, independent
from evo_subnets.methods.noisy import noisy
from evo_subnets.methods.sparse import Pruning, sparse
from evo_subnets.methods.stochastic import Annealing, stochastic
from evo_subnets.methods.trained import Trained

__all__ = [
    "Annealing",
    "Pruning",
    "Trained",
    "bagging",
    "independent",
    "noisy",
    "sparse",
    "stochastic",
]
