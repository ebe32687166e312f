"""What a run was asked, has found, shows and leaves behind. Nothing here knows of children."""

from evo_subnets.runs.run import Run

__all__ = ["Run"]
