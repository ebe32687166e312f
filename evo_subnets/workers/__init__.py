"""Where work runs: here, or in processes of Ray's. `workers` are processes."""

from evo_subnets.workers.here import Here, Workers
from evo_subnets.workers.ray import Ray

__all__ = ["Here", "Ray", "Workers"]
