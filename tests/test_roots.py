"""The root search lands on curves that rise in many ways, or says why not."""

import math

import pytest

from evo_subnets.roots import MAX_TRIALS, SECANTS, find_root

CURVES = {
    "square": lambda sigma: 3.0 * sigma**2,
    "linear": lambda sigma: 0.2 * sigma,
    "steep": lambda sigma: 50.0 * sigma**6,
    "saturating": lambda sigma: 1.5 * (1 - math.exp(-4 * sigma**2)),
    "nan above one": lambda sigma: sigma**2 if sigma < 1 else math.nan,
    "infinite above one": lambda sigma: sigma**2 if sigma < 1 else math.inf,
    "flat, then square": lambda sigma: max(sigma - 0.01, 0.0) ** 2,
    "square, then steep": lambda sigma: sigma**2 + 1e4 * sigma**8,
}


@pytest.mark.parametrize("start", [1e-3, 0.1, 20.0])
@pytest.mark.parametrize("target", [1e-3, 0.02, 0.2])
@pytest.mark.parametrize("curve", CURVES)
def test_find_root_of_synthetic_curves(curve, target, start):
    tried = []

    def measure(sigma):
        tried.append(sigma)
        return CURVES[curve](sigma)

    sigma = find_root(measure, target, sigma=start)
    assert abs(CURVES[curve](sigma) - target) <= 0.1 * target
    assert len(tried) <= SECANTS
    assert tried[-1] == sigma
    assert all(0 < s < math.inf for s in tried)


NO_ROOTS = {
    "nothing": (lambda sigma: 0.0, "no sigma reaches a divergence of 0.02, the largest is 0 "),
    "too little": (
        lambda sigma: 1e-9,
        "no sigma reaches a divergence of 0.02, the largest is 1e-09",
    ),
    "too much": (lambda sigma: 5.0, r"even sigma \S+ gives a divergence of 5, above 0.02"),
    "NaN": (lambda sigma: math.nan, "no sigma gave a finite divergence"),
    "infinite": (lambda sigma: math.inf, "no sigma gave a finite divergence"),
    "a jump": (
        lambda sigma: 5.0 if sigma > 0.3 else 1e-3,
        r"it is 0.001 at sigma \S+ and 5 at 0.3",
    ),
    "a plateau": (lambda sigma: min(sigma, 0.01), "no sigma reaches .* the largest is 0.01"),
}


@pytest.mark.parametrize("curve", NO_ROOTS)
def test_find_root_says_why_there_is_no_root(curve):
    tried = []
    measured, why = NO_ROOTS[curve]
    with pytest.raises(ValueError, match=why):
        find_root(lambda sigma: (tried.append(sigma), measured(sigma))[1], 0.02, sigma=0.1)
    assert len(tried) <= MAX_TRIALS
    assert all(0 < s < math.inf for s in tried)


HARD = {
    "very steep": lambda sigma: 1e30 * sigma**40,
    "up, down and up": lambda sigma: sigma**2 * (1 + 0.8 * math.sin(9 * sigma)) + sigma**8,
    "NaN in the middle": lambda sigma: math.nan if 0.05 < sigma < 0.07 else sigma**2,
    "a cliff with a foothold": lambda sigma: (
        1e-6 + 1 / (1 + math.exp(min(-1500 * (sigma - 0.37), 600)))
    ),
}


@pytest.mark.parametrize("start", [1e-3, 0.1, 20.0])
@pytest.mark.parametrize("curve", HARD)
def test_find_root_bisects_where_secants_fail(curve, start):
    sigma = find_root(HARD[curve], 0.02, sigma=start)
    assert abs(HARD[curve](sigma) - 0.02) <= 0.002
