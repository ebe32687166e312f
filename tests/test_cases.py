"""What users bring, and the right answer: modules, inputs and files as one table.

A case is a function; it stands under the kind of fault that it is an example of, and its first line
says what a user expects. Every case runs with one torch thread and with two, where members and
batches may go side by side.
"""

from collections.abc import Callable

import pytest
import torch

CASES: list[Callable[[], None]] = []


def case(check: Callable[[], None]) -> Callable[[], None]:
    """Adds a row to the table."""
    assert check.__doc__, f"{check.__name__} does not say what is expected"
    CASES.append(check)
    return check


# --- Outputs and inputs -------------------------------------------------------------------------


# --- An ensemble is its members; a child is the parent plus its mutation ------------------------


# --- What is a weight ---------------------------------------------------------------------------


# --- Simulators, agents, folders of pictures, devices, seeds ------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_what_users_expect(check, threads):
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(1)
