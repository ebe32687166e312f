"""What a run was asked, has found, shows and leaves behind. Children and networks are no words here."""

from evo_subnets.runs.run import Run

__all__ = ["Run"]
