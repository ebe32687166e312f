"""Subnetwork ensembles: mutate one trained network into many, and keep the best as one model."""

from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import Child, Evolution, PopulationError, evaluate, evolve, select
from evo_subnets.mutation import Mutation, independent, materialize, materialize_siblings, quads
from evo_subnets.subnetworks import Params, Subnetwork, halves, parameters, parts
from evo_subnets.trust_region import TrustRegion, divergence, search_trust_region

__version__ = "0.1.0"

__all__ = [
    "Child",
    "Ensemble",
    "Evolution",
    "Mutation",
    "Params",
    "PopulationError",
    "Subnetwork",
    "TrustRegion",
    "divergence",
    "evaluate",
    "evolve",
    "halves",
    "independent",
    "materialize",
    "materialize_siblings",
    "parameters",
    "parts",
    "quads",
    "search_trust_region",
    "select",
]
