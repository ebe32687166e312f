import copy
import gc
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import all_same_bits, built, mlp, noise
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from evo_subnets import (
    Ensemble,
    Moving,
    PopulationError,
    Run,
    Search,
    evolve,
    files,
    parameters,
    quads,
    search_trust_region,
    select,
)
from evo_subnets.lineage import Adam, Lineage, Momentum, Step, best_child, log_weights
from evo_subnets.outputs import CLASSES
from evo_subnets.trust_region import divergence, outputs_of
from evo_subnets.walk import Generation, Walk

TESTS = Path(__file__).parent
INPUTS = noise(64, 5, seed=1)
SEARCH = Search(16, 4, density=1.0, sampler=quads)


class Likelihood:
    """Log-likelihood of one class for each input of a batch: the cases are the inputs."""

    def __init__(self, inputs=INPUTS):
        self.inputs = inputs

    @torch.no_grad()
    def __call__(self, model):
        return model(self.inputs).log_softmax(-1)[:, 0].tolist()

    def in_generation(self, generation):
        return Likelihood(noise(64, 5, seed=100 + generation))


class Stopping(Likelihood):
    """Interrupted after so many children."""

    def __init__(self, inputs, left):
        super().__init__(inputs)
        self.left = left

    def __call__(self, model):
        if not self.left[0]:
            raise KeyboardInterrupt
        self.left[0] -= 1
        return super().__call__(model)

    def in_generation(self, generation):
        return Stopping(super().in_generation(generation).inputs, self.left)


def mean_likelihood(model):
    return sum(Likelihood(noise(512, 5, seed=7))(model)) / 512


@pytest.mark.parametrize(
    "moving",
    [
        Moving(),
        Moving(recombine=log_weights),
        Moving(recombine=best_child),
        Moving(rule=Momentum()),
        Moving(rule=Adam()),
        Moving(noise=None),
    ],
    ids=["ranks", "log", "best", "momentum", "adam", "sigma kept"],
)
def test_the_parent_gets_better_by_bounded_steps_and_its_lineage_replays(moving):
    module = mlp()
    before = copy.deepcopy(module.state_dict())
    search = Search(64, 4, density=1.0, sigma=0.1)
    result = evolve(
        module, Likelihood(), search=search, generations=6, moving=moving, inputs=INPUTS
    )
    assert mean_likelihood(result.evolved) > mean_likelihood(module) + 0.1
    for generation in result.history:
        assert generation.divergence == pytest.approx(0.06, rel=0.1)
    assert any(generation.spread.told_apart for generation in result.history)
    last = divergence(outputs_of(module, INPUTS), outputs_of(result.evolved, INPUTS))
    assert result.history[-1].drift == pytest.approx(last)
    assert all_same_bits(before, module.state_dict())
    assert len(result.lineage.steps) == 6
    replayed = result.lineage.replay(parameters(module))
    assert all_same_bits(replayed, parameters(result.evolved))


def test_one_generation_leaves_the_parent_alone_unless_it_is_to_move():
    search = Search(8, 4, sigma=0.1)
    stays = evolve(mlp(), Likelihood(), search=search)
    assert stays.lineage == Lineage()
    assert all_same_bits(parameters(stays.evolved), parameters(mlp()))
    moves = evolve(mlp(), Likelihood(), search=search, moving=Moving(noise=None), inputs=INPUTS)
    assert len(moves.lineage.steps) == 1
    assert moves.history[0].divergence == pytest.approx(0.06, rel=0.1)


@pytest.mark.whole_trust_regions
def test_sigma_follows_the_parent():
    rounds, logs = 9, []
    result = evolve(mlp(), Likelihood(), search=SEARCH, generations=rounds, inputs=INPUTS)
    for number in range(0, rounds, 4):
        module, generation = mlp(), result.history[number]
        parent = Lineage(result.lineage.steps[:number]).replay(parameters(mlp()))
        module.load_state_dict(parent, strict=False)
        search = Search(16, 4, density=1.0, sigma=generation.sigma)
        found = search_trust_region(module, INPUTS, search=search, target=0.3)
        logs.append(math.log(found.sigma / generation.sigma))
    assert abs(logs[0]) < 0.1
    assert max(map(abs, logs)) < 0.3
    assert abs(sum(logs) / len(logs)) < 0.15


def test_a_generation_asks_few_children_for_sigma(monkeypatch):
    asked = []

    def counted(*arguments, **options):
        found = search_trust_region(*arguments, **options)
        asked.append(sum(trial.children for trial in found.table))
        return found

    monkeypatch.setattr("evo_subnets.walk.search_trust_region", counted)
    evolve(mlp(), Likelihood(), search=SEARCH, generations=4, inputs=INPUTS)
    assert asked[0] > 8
    assert asked[1:] == [8, 8, 8]


def test_sigma_at_most_doubles_where_a_parent_is_sure_of_everything():
    """Its children's divergence vanishes, and with it the sense of a sigma that is made for one."""
    module = mlp()
    with torch.no_grad():
        module[-1].bias += torch.tensor([30.0, 0.0, 0.0])
    moving = Moving(noise=0.3, step=None)
    search = Search(8, 2, density=1.0, sigma=0.01)
    walk = Walk(module, moving, search=search, inputs=INPUTS, outputs=CLASSES)
    first = Generation(0.01, (0.0,), None, Step(()), 0.0, 0.0)
    walk.take(first)
    assert walk.search_of(1).sigma == pytest.approx(0.02)


def test_drift_is_bounded():
    moving = Moving(drift=0.1)
    result = evolve(mlp(), Likelihood(), search=SEARCH, generations=5, moving=moving, inputs=INPUTS)
    assert max(generation.drift for generation in result.history) <= 0.1
    free = evolve(mlp(), Likelihood(), search=SEARCH, generations=5, inputs=INPUTS)
    assert free.history[-1].drift > 0.1


def test_the_same_on_two_threads_and_with_another_seed_another():
    one = evolve(mlp(), Likelihood(), search=SEARCH, generations=2, inputs=INPUTS)
    torch.set_num_threads(2)
    try:
        two = evolve(mlp(), Likelihood(), search=SEARCH, generations=2, inputs=INPUTS)
    finally:
        torch.set_num_threads(1)
    assert one.lineage == two.lineage
    other = Search(16, 4, density=1.0, seed=1)
    assert evolve(mlp(), Likelihood(), search=other, generations=2, inputs=INPUTS).lineage != (
        one.lineage
    )


@pytest.mark.parametrize("moving", [Moving(), Moving(rule=Adam(), drift=0.2)])
def test_stopped_anywhere_it_goes_on_to_the_same_bits(tmp_path, moving):
    whole = evolve(mlp(), Likelihood(), search=SEARCH, generations=3, moving=moving, inputs=INPUTS)
    for stop in (0, 5, 15, 16, 17, 31, 40, 47):
        arguments = {"search": SEARCH, "generations": 3, "moving": moving, "inputs": INPUTS}
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt), Run(folder) as run:
            evolve(mlp(), Stopping(INPUTS, [stop]), run=run, **arguments)
        judged = []
        with Run(folder) as run:
            again = evolve(mlp(), Likelihood(), run=run, on_child=judged.append, **arguments)
        assert again.lineage == whole.lineage
        assert again.history == whole.history
        assert again.children == whole.children
        with Run(folder) as run:
            third = evolve(mlp(), pytest.fail, run=run, **arguments)
        assert third.lineage == whole.lineage
        assert third.elites == whole.elites


def test_a_journal_holds_no_more_than_one_generation(tmp_path):
    with Run(tmp_path / "run") as run:
        evolve(mlp(), Likelihood(), search=SEARCH, generations=4, inputs=INPUTS, run=run)
        assert [len(run.records(f"children of generation {number}")) for number in range(4)] == [
            0,
            0,
            0,
            16,
        ]


def test_the_soup_is_the_mean_of_the_elites_weights():
    result = evolve(mlp(), Likelihood(), search=SEARCH, generations=2, inputs=INPUTS)
    soup = parameters(result.soup())
    members = [parameters(member) for member in result.ensemble.members]
    assert len(members) == 4
    for name, weight in soup.items():
        mean = torch.stack([member[name] for member in members]).mean(0)
        torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)


def test_an_ensemble_around_the_evolved_parent():
    result = evolve(mlp(), Likelihood(), search=SEARCH, generations=2, inputs=INPUTS)
    around = result.around(4)
    assert len(around.members) == 4
    mean = torch.stack([parameters(member)["0.weight"] for member in around.members]).mean(0)
    torch.testing.assert_close(mean, parameters(result.evolved)["0.weight"], rtol=0, atol=1e-6)


def test_the_last_parents_are_an_ensemble_of_the_lineages_checkpoints():
    result = evolve(
        mlp(), Likelihood(), search=SEARCH, generations=3, inputs=INPUTS, moving=Moving(rule=Adam())
    )
    steps, rule, root = result.lineage.steps, result.lineage.rule, parameters(mlp())
    for count in (2, 5):
        members = [parameters(member) for member in result.passed(count).members]
        expected = [Lineage(steps[: i + 1], rule).replay(root) for i in range(3)][-count:]
        assert len(members) == min(count, 3)
        assert all(all_same_bits(*each) for each in zip(members, expected, strict=True))


def test_fitness_without_spread_moves_nothing_and_says_so():
    result = evolve(
        mlp(), lambda _: [1.0, 2.0], search=SEARCH, generations=3, inputs=INPUTS,
        moving=Moving(stop=True),
    )  # fmt: skip
    assert len(result.history) == 1
    assert result.history[0].step.mutations == ()
    assert "cannot be told apart" in str(result.history[0].spread)
    assert all_same_bits(parameters(result.evolved), parameters(mlp()))


def test_without_cases_there_is_no_spread():
    result = evolve(
        mlp(), mean_likelihood, search=SEARCH, moving=Moving(), generations=1, inputs=INPUTS
    )
    assert result.history[0].spread is None


def test_failed_children_weigh_nothing():
    calls = []

    def fitness(model):
        calls.append(None)
        if len(calls) % 3 == 0:
            raise ValueError("no")
        return Likelihood()(model)

    result = evolve(mlp(), fitness, search=SEARCH, generations=2, inputs=INPUTS)
    assert sum(math.isnan(value) for value in result.history[0].fitness) == 5
    assert select(result.children, 1)[0].reason is None


def test_a_generation_most_of_which_fails_stops():
    with pytest.raises(PopulationError, match="more than half of the children failed"):
        evolve(mlp(), lambda _: math.nan, search=SEARCH, generations=2, inputs=INPUTS)


def test_half_precision_parents_keep_what_is_too_small_to_see():
    module, inputs = mlp().bfloat16(), INPUTS.bfloat16()
    result = evolve(
        module, lambda model: Likelihood(inputs)(model.eval()), search=Search(8, 4, density=1.0),
        generations=4, inputs=inputs, moving=Moving(step=0.01),
    )  # fmt: skip
    assert all_same_bits(result.lineage.replay(parameters(module)), parameters(result.evolved))
    assert parameters(result.evolved)["0.weight"].dtype == torch.bfloat16


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="generations must be at least 1, got 0"):
        evolve(mlp(), Likelihood(), search=SEARCH, generations=0)
    with pytest.raises(ValueError, match="give inputs="):
        evolve(mlp(), Likelihood(), search=SEARCH, generations=2)
    with pytest.raises(ValueError, match="this search has no sigma"):
        evolve(mlp(), Likelihood(), search=SEARCH)
    with pytest.raises(ValueError, match=r"step is a divergence above 0, or None, got -1"):
        Moving(step=-1)
    with pytest.raises(ValueError, match="this search has no sigma"):
        evolve(
            mlp(), Likelihood(), search=SEARCH, generations=2, moving=Moving(noise=None),
            inputs=INPUTS,
        )  # fmt: skip


def test_memory_is_two_copies_however_many_generations():
    layers = [built(lambda: nn.Linear(256, 256, bias=False), seed) for seed in range(16)]
    module = nn.Sequential(*layers)
    copies = []
    size = sum(weight.nbytes for weight in module.parameters())

    def fitness(model):
        gc.collect()
        copies.append(_tensor_bytes() / size)
        return float(model(noise(4, 256)).sum())

    search = Search(4, 2, density=1.0)
    gc.collect()
    gc.freeze()  # what there is, the module too, is not counted, and not walked through either
    try:
        evolve(module, fitness, search=search, generations=4, inputs=noise(4, 256))
    finally:
        gc.unfreeze()
    assert max(copies) < 2.2  # the parent of now, and the child


def _tensor_bytes():
    seen = {}
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, nn.Parameter) and each.device.type == "cpu":
            storage = each.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def test_controls_are_the_same_noise_by_chance():
    search = Search(16, 4, density=1.0)
    result = evolve(mlp(), Likelihood(), search=search, generations=3, inputs=INPUTS)
    controls = result.controls()
    assert list(controls) == ["4 random children", "random walk"]
    found = set(controls["4 random children"].recipe.mutations)
    assert found <= {child.mutation for child in result.children}
    assert found != {child.mutation for child in result.elites}
    assert all(mutation.mirrored() not in found for mutation in found)
    # a walk as long as the evolved parent's, and not its way
    root, walked = parameters(result.root), parameters(controls["random walk"])
    evolved = parameters(result.evolved)

    def way(weights):
        return torch.cat([(weights[name] - root[name]).flatten() for name in root])

    ratio = way(walked).norm() / way(evolved).norm()
    assert 0.7 < ratio < 1.3
    assert torch.cosine_similarity(way(walked), way(evolved), dim=0) < 0.7
    again = result.controls()["random walk"]
    assert all_same_bits(parameters(again), walked)
    # selection is worth something, a walk at random is not
    before, after = mean_likelihood(result.root), mean_likelihood(result.evolved)
    assert after - before > 2 * abs(mean_likelihood(controls["random walk"]) - before)


def test_one_generation_has_random_children_alone_and_all_children_no_control():
    search = Search(8, 1, density=1.0, sigma=0.1)
    assert list(evolve(mlp(), Likelihood(), search=search).controls()) == ["random child"]
    everyone = Search(4, 4, density=1.0, sigma=0.1)
    assert evolve(mlp(), Likelihood(), search=everyone).controls() == {}


def test_a_mean_goes_all_the_way(tmp_path):
    """Through the trust region, generations, a run that goes on, and the ensemble's file."""
    search = Search(8, 3, density=0.5, mean=1.5)
    module = mlp()
    region = search_trust_region(module, INPUTS, search=search, target=0.1)
    without = search_trust_region(module, INPUTS, search=Search(8, 3, density=0.5), target=0.1)
    assert region.sigma < 0.9 * without.sigma, "the mean diverges as well"
    found = []
    for run in (Run(tmp_path / "run"), Run(tmp_path / "run")):
        with run:
            found.append(
                evolve(module, Likelihood(), search=search, generations=2, inputs=INPUTS, run=run)
            )
    assert {child.mutation.mean for child in found[0].children} == {1.5}
    assert found[0].children == found[1].children
    found[0].ensemble.save(tmp_path / "ensemble.safetensors")
    loaded = Ensemble.load(tmp_path / "ensemble.safetensors", found[0].module, restore=True)
    assert loaded.recipe.mutations == tuple(child.mutation for child in found[0].elites)
    with pytest.raises(ValueError, match="mean must be finite"):
        Search(mean=math.inf)


def test_the_fittest_are_judged_again_before_they_are_trusted(tmp_path):
    """By hand: the mean of a child's cases in its generation and in one that there was not."""
    search = Search(16, 4, density=1.0)
    for generations, moving in ((1, None), (2, Moving())):
        found = []
        for run in (Run(tmp_path / str(generations)), Run(tmp_path / str(generations))):
            with run:
                found.append(
                    evolve(
                        mlp(),
                        Likelihood(),
                        search=replace(search, sigma=0.3),
                        again=8,
                        run=run,
                        generations=generations,
                        moving=moving,
                        inputs=INPUTS if moving else None,
                    )
                )
        result, resumed = found
        once = select(result.children, 8, seed=0)
        assert [child.mutation for child in result.confirmed] == [each.mutation for each in once]
        new = Likelihood().in_generation(generations)
        for first, both in zip(once, result.confirmed, strict=True):
            assert both.cases == (*first.cases, *new(result.model(first)))
            assert both.fitness == pytest.approx(sum(both.cases) / len(both.cases))
        assert result.elites == select(result.confirmed, 4, seed=0)
        assert result.elites != once[:4], "a case in which it says nothing new tests nothing"
        assert result.ensemble.recipe.mutations == tuple(each.mutation for each in result.elites)
        assert resumed.elites == result.elites


def test_again_is_refused_where_it_says_nothing():
    search = Search(8, 4, density=1.0, sigma=0.1)
    for again in (3, 9, -1):
        with pytest.raises(ValueError, match="between ensemble_size and population_size, 4 and 8"):
            evolve(mlp(), Likelihood(), search=search, again=again)
    with pytest.raises(ValueError, match=r"would say the same.*in_generation"):
        evolve(mlp(), mean_likelihood, search=search, again=4)


def wide():
    """More than one piece of a step, so that threads share it out."""
    return built(
        lambda: nn.Sequential(
            nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 3)
        )
    )


ELSEWHERE = """
import sys, torch
from evo_subnets import Lineage, files, parameters
from test_generations import wide
torch.set_num_threads(int(sys.argv[2]))
module = wide()
lineage, names = Lineage.load(sys.argv[1], parameters(module))
lineage.replay(parameters(module), out=parameters(module), include=names)
print(len(lineage.steps), files.fingerprint(files.state_of(module)))
"""


def test_fifty_generations_are_rebuilt_in_another_process_with_other_threads(tmp_path):
    module = wide()
    search = Search(4, 1, density=1.0, sigma=0.01)
    moving = Moving(noise=None, step=None, rule=Adam())
    result = evolve(module, Likelihood(), search=search, generations=50, moving=moving)
    result.lineage.save(tmp_path / "lineage.json", parameters(module), include=None)
    expected = f"50 {files.fingerprint(files.state_of(result.evolved))}"
    assert expected != f"50 {files.fingerprint(files.state_of(module))}"
    for threads in (1, 3):
        found = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, tmp_path / "lineage.json", str(threads)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS)))},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert found.stdout.strip() == expected


def test_a_run_ends_with_a_picture_of_its_generations(tmp_path):
    with Run(tmp_path / "run") as run:
        evolve(mlp(), Likelihood(), search=SEARCH, generations=2, inputs=INPUTS, run=run)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (picture,) = events.Images("generations")
    assert picture.width > 1000
    assert [event.step for event in events.Scalars("generations/fitness_median")] == [0, 1]
