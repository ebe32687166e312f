"""Whether children can be told apart: how much of their fitness is theirs, how much is noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIGNIFICANT = 0.05
"""Children are told apart where so large a spread would be seen by chance less often than this."""


@dataclass(frozen=True)
class Spread:
    """What the fitness of children on common cases says (standard deviations, fitness' unit)."""

    children: float
    """Of the children's true means, what noise alone explains taken off; zero where it explains
    all."""
    error: float
    """Of a child's measured mean, over other draws of what is random within a case."""
    cases: int
    """That every child was judged on."""
    chance: float
    """The probability of a spread as large as the one measured, of children that are all equal."""

    @property
    def told_apart(self) -> bool:
        """Whether the children differ by more than chance explains."""
        return self.chance < SIGNIFICANT

    @property
    def cases_needed(self) -> float:
        """Of so many common cases the true spread would be as large as its error; infinite where
        nothing of it is seen."""
        if self.children == 0:
            return math.inf
        return math.ceil(self.cases * (self.error / self.children) ** 2)

    def __str__(self) -> str:
        """One line for a report."""
        found = f"true spread {self.children:.3g}, error {self.error:.3g} on {self.cases} cases"
        if self.told_apart:
            return found
        needed = self.cases_needed
        more = "none was seen" if math.isinf(needed) else f"about {needed:.0f} cases would show it"
        return f"{found}: the children cannot be told apart ({more})"


def spread_of(fitness: Sequence[Sequence[float]]) -> Spread:
    """The spread of (children, cases) fitness: entry i, j is child i's on case j, the same for all.

    A two-way analysis of variance without replication (Fisher 1925): what is common to a case, an
    easy level or a hard one, is neither a difference between children nor noise. Children with a
    NaN are left out. A ValueError for fewer than two children or two cases.
    """
    lengths = {len(row) for row in fitness}
    if len(lengths) > 1:
        raise ValueError(f"children are compared on common cases, got {sorted(lengths)} cases")
    values = np.asarray(fitness, dtype=np.float64).reshape(len(fitness), -1)
    values = values[~np.isnan(values).any(axis=1)]
    children, cases = values.shape
    if children < 2 or cases < 2:
        raise ValueError(
            f"a spread needs two children and two cases, got {children} children that did not fail "
            f"and {cases} cases"
        )
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns + values.mean()
    error = (rest**2).sum() / ((children - 1) * (cases - 1))
    between = cases * rows.var(ddof=1)
    true = max(0.0, (between - error) / cases)
    chance = _chance(between, error, children - 1, (children - 1) * (cases - 1))
    return Spread(math.sqrt(true), math.sqrt(error / cases), cases, chance)


def _chance(between: float, error: float, first: int, second: int) -> float:
    """The upper tail of Fisher's F with so many degrees of freedom, nearly (Paulson 1942)."""
    tiny = 1e-24 * max(between, 1e-300)  # rounding of sums that are zero
    if between <= tiny:
        return 1.0
    if error <= tiny:
        return 0.0
    root = (between / error) ** (1 / 3)
    a, b = 2 / (9 * first), 2 / (9 * second)
    z = ((1 - b) * root - (1 - a)) / math.sqrt(b * root**2 + a)
    return 0.5 * math.erfc(z / math.sqrt(2))
