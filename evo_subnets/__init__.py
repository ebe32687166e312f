"""Subnetwork ensembles: mutate one trained network into many, and keep the best as one model."""

from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import Child, Evolution, PopulationError, evaluate, select
from evo_subnets.generations import evolve
from evo_subnets.lineage import Lineage
from evo_subnets.mutation import Mutation, materialize, materialize_siblings, quads, singles
from evo_subnets.outputs import Binary, Classes, Distribution, Values
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.subnetworks import Params, Subnetwork, halves, parameters, parts, spreads
from evo_subnets.task import Task
from evo_subnets.trust_region import TrustRegion, divergence, search_trust_region
from evo_subnets.views import shifted_views
from evo_subnets.walk import Moving
from evo_subnets.workers import Here, Ray

__version__ = "0.1.0"

__all__ = [
    "Binary",
    "Child",
    "Classes",
    "Distribution",
    "Ensemble",
    "Evolution",
    "Here",
    "Lineage",
    "Moving",
    "Mutation",
    "Params",
    "PopulationError",
    "Ray",
    "Run",
    "Search",
    "Subnetwork",
    "Task",
    "TrustRegion",
    "Values",
    "divergence",
    "evaluate",
    "evolve",
    "halves",
    "materialize",
    "materialize_siblings",
    "parameters",
    "parts",
    "quads",
    "search_trust_region",
    "select",
    "shifted_views",
    "singles",
    "spreads",
]
