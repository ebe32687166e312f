"""evaluate, select, Evolution and evolve."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import all_same_bits, built, copied, mlp, noise, normalised, same_bits
from torch import nn

from evo_subnets import (
    Child,
    Ensemble,
    Evolution,
    Mutation,
    PopulationError,
    Search,
    evaluate,
    evolve,
    materialize,
    parameters,
    quads,
    select,
    singles,
)
from evo_subnets.evolution import check_strength, keep_child, kept_children
from evo_subnets.runs import Run


def blobs(count, seed):
    """Points around four centres, and the centre of each."""
    centres = noise(4, 8, seed=100)
    labels = torch.randint(4, (count,), generator=torch.Generator().manual_seed(seed))
    return centres[labels] + noise(count, 8, seed=seed + 1), labels, centres


def damaged():
    """The best linear classifier of the blobs, after an accident."""
    _, _, centres = blobs(1, 0)
    module = built(lambda: nn.Linear(8, 4))
    with torch.no_grad():
        module.weight.copy_(centres + 0.8 * noise(4, 8, seed=7))
        module.bias.copy_(-centres.square().sum(dim=1) / 2)
    return module


def accuracy_on(count, seed):
    points, labels, _ = blobs(count, seed)

    def accuracy(module):
        with torch.no_grad():
            return (module(points).argmax(dim=1) == labels).float().mean().item()

    return accuracy


def weight_sum(module):
    return sum(parameter.double().sum().item() for parameter in module.parameters())


def test_evaluate_gives_each_child_its_fitness_in_order():
    module, mutations = mlp(), quads(8, 0.1, density=0.5, seed=0)
    children = evaluate(module, mutations, fitness=weight_sum)
    assert [child.mutation for child in children] == mutations
    for child in children:
        params = materialize(parameters(module), child.mutation)
        expected = sum(tensor.double().sum().item() for tensor in params.values())
        assert child.fitness == expected
        assert child.reason is None


def test_evaluate_leaves_the_module_untouched():
    module = normalised().train()
    state = copied(module.state_dict())

    def vandal(child):
        assert child is not module
        with torch.no_grad():
            for tensor in child.state_dict().values():
                tensor.fill_(3)
        return 0.0

    evaluate(module, quads(4, 0.1, density=0.5, seed=0), fitness=vandal)
    assert all(part.training for part in module.modules())
    assert all_same_bits(copied(module.state_dict()), state)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_every_child_starts_from_the_parents_buffers_biases_and_mode():
    module = normalised().train()
    mutations = quads(4, 0.1, density=0.5, seed=0)
    expected = [materialize(parameters(module), mutation) for mutation in mutations]
    seen = []

    def fitness(child):
        assert not any(part.training for part in child.modules())
        seen.append(copied(child.state_dict()))
        child.train()(noise(16, 5))  # moves BatchNorm's statistics
        with torch.no_grad():
            for parameter in child.parameters():
                parameter.add_(1)
        return 0.0

    with torch.random.fork_rng(devices=[]):  # for Dropout
        evaluate(module, mutations, fitness=fitness)
    buffers = dict(module.named_buffers())
    for state, params in zip(seen, expected, strict=True):
        assert all_same_bits(state, {name: (params | buffers)[name] for name in state})


def test_memory_does_not_grow_with_the_population():
    seen = set()
    evaluate(
        mlp(), quads(8, 0.1, density=0.5, seed=0), fitness=lambda child: seen.add(id(child)) or 0.0
    )
    assert len(seen) == 1


def test_a_child_that_raises_fails_alone_with_its_reason():
    mutations = quads(4, 0.1, density=0.5, seed=0)
    values = iter([1.0, ValueError("no more memory"), 3.0, None])

    def fitness(child):
        value = next(values)
        if isinstance(value, Exception):
            raise value
        return value

    children = evaluate(mlp(), mutations, fitness=fitness)
    assert [child.fitness for child in children if child.reason is None] == [1.0, 3.0]
    assert math.isnan(children[1].fitness)
    assert children[1].reason == "ValueError: no more memory"
    assert math.isnan(children[3].fitness)
    assert children[3].reason.startswith("TypeError: ")


def test_a_fitness_that_is_nan_fails_with_its_reason():
    values = iter([1.0, math.nan, math.nan, 2.0])
    children = evaluate(
        mlp(), quads(4, 0.1, density=0.5, seed=0), fitness=lambda child: next(values)
    )
    assert [child.reason for child in children] == [None, "fitness is NaN", "fitness is NaN", None]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through(interrupt):
    def fitness(child):
        raise interrupt

    with pytest.raises(interrupt):
        evaluate(mlp(), quads(4, 0.1, density=0.5, seed=0), fitness=fitness)


def test_on_child_sees_every_child_at_once():
    seen = []
    counts = []

    def fitness(child):
        counts.append(len(seen))
        return 0.0

    children = evaluate(
        mlp(), quads(4, 0.1, density=0.5, seed=0), fitness=fitness, on_child=seen.append
    )
    assert seen == children
    assert counts == [0, 1, 2, 3]


def test_fitness_may_be_a_tensor_or_an_integer():
    for value in (torch.tensor(2.0), 2, True):
        (child,) = evaluate(mlp(), [Mutation(0, 0.1, 0, 1)], fitness=lambda _, value=value: value)
        assert type(child.fitness) is float
        assert child.fitness == float(value)


def children_of(*fitnesses):
    return [
        Child(Mutation(seed, 0.1, 0.0, 0.5), fitness, "failed" if math.isnan(fitness) else None)
        for seed, fitness in enumerate(fitnesses)
    ]


def chosen(children, k):
    return [child.mutation.seed for child in select(children, k)]


def test_select_takes_the_fittest_first_and_failures_last():
    children = children_of(math.nan, 1.0, math.nan, 3.0, -math.inf, math.inf, 2.0)
    found = chosen(children, 7)
    assert found[:5] == [5, 3, 6, 1, 4]
    assert set(found[5:]) == {0, 2}
    assert chosen(children, 3) == [5, 3, 6]


def test_select_counts_a_reason_as_failure_whatever_the_fitness():
    children = [
        Child(Mutation(0, 0.1, 0.0, 0.5), 9.0, "lied"),
        Child(Mutation(1, 0.1, 0.0, 0.5), math.nan),
        Child(Mutation(2, 0.1, 0.0, 0.5), -5.0),
    ]
    assert chosen(children, 1) == [2]


def test_equal_children_are_chosen_by_a_chance_that_recipes_and_seed_decide():
    children = children_of(*[1.0] * 12)
    assert chosen(children[::-1], 12) == chosen(children, 12)
    firsts = {select(children, 1, seed=seed)[0].mutation.seed for seed in range(40)}
    assert len(firsts) > 8


def test_of_a_mirrored_pair_one_is_chosen_while_there_are_others():
    quad = quads(4, 0.1, density=0.3, seed=0)
    children = [
        Child(mutation, fitness) for mutation, fitness in zip(quad, [4, 2, 3, 1], strict=True)
    ]
    assert [child.fitness for child in select(children, 4)] == [4, 2, 3, 1]
    assert [child.fitness for child in select(children, 2)] == [4, 2]
    children[3] = Child(quad[3], math.nan, "failed")
    assert [child.fitness for child in select(children, 3)] == [4, 2, 3]


def test_a_fitness_may_be_a_number_for_each_case():
    mutations = singles(3, 0.1, density=1.0, seed=0)
    for values in ([1, 2, 6], torch.tensor([1.0, 2.0, 6.0]), np.array([1.0, 2.0, 6.0])):
        child, *_ = evaluate(mlp(), mutations, fitness=lambda _, values=values: values)
        assert child.fitness == 3
        assert child.cases == (1.0, 2.0, 6.0)
    child, *_ = evaluate(mlp(), mutations[:1], fitness=lambda _: 1.0)
    assert child.cases == ()


def test_cases_are_kept_by_a_run(tmp_path):
    search = Search(2, 1, sigma=0.1, density=1.0, sampler=singles)
    with Run(tmp_path / "run") as run:
        first = evolve(mlp(), lambda _: [1.0, 0.1], search=search, run=run)
    with Run(tmp_path / "run") as run:
        again = evolve(mlp(), lambda _: pytest.fail("it was judged"), search=search, run=run)
    assert again.children == first.children
    assert first.children[0].cases == (1.0, 0.1)


def test_select_leaves_the_list_alone():
    children = children_of(1.0, 2.0)
    select(children, 1)
    assert [child.fitness for child in children] == [1.0, 2.0]


@pytest.mark.parametrize("k", [-1, 0, 4])
def test_select_refuses_k_out_of_bounds(k):
    with pytest.raises(ValueError, match=rf"k must be in 1\.\.3, .* got {k}"):
        select(children_of(1.0, 2.0, 3.0), k)


def test_generations_of_one_parent_differ_and_their_children_add_up():
    module = damaged()
    evolution = Evolution(module, Search(8, 4, 0.3, seed=5))
    generations = [evolution.ask() for _ in range(3)]
    assert len({mutation.seed for population in generations for mutation in population}) == 6
    assert generations[0] == quads(8, 0.3, density=0.5, seed=5)
    fitness = accuracy_on(200, 1)
    everyone = [evaluate(module, population, fitness=fitness) for population in generations]
    for children in everyone:
        evolution.tell(children)
    assert evolution.children == [child for children in everyone for child in children]
    assert evolution.elites == select(evolution.children, 4)
    assert [child.mutation for child in evolution.elites] == list(
        evolution.ensemble.recipe.mutations
    )


def test_asking_is_the_same_for_a_seed():
    one, other = (Evolution(mlp(), Search(8, sigma=0.1, seed=5)) for _ in range(2))
    assert [one.ask(), one.ask()] == [other.ask(), other.ask()]
    assert one.ask() != Evolution(mlp(), Search(8, sigma=0.1, seed=6)).ask()


def test_elites_are_never_failed_children():
    evolution = Evolution(mlp(), Search(sigma=0.1))
    evolution.tell(children_of(math.nan, 1.0, math.nan, 2.0))
    assert [child.fitness for child in evolution.elites] == [2.0, 1.0]
    assert len(evolution.ensemble.members) == 2


def test_all_failed_is_an_error_that_gives_the_reasons():
    evolution = Evolution(mlp(), Search(sigma=0.1))
    evolution.tell(children_of(math.nan, math.nan))
    with pytest.raises(ValueError, match=r"all 2 failed .*'failed'"):
        _ = evolution.elites
    with pytest.raises(ValueError, match="all 2 failed"):
        _ = evolution.ensemble


def test_a_generation_most_of_which_fails_is_stopped_as_soon_as_that_is_certain():
    module, mutations, seen = mlp(), quads(8, 0.1, density=0.5, seed=0), []
    errors = [None, ValueError("odd"), *[RuntimeError("the simulator\n is gone")] * 6]
    values = iter(errors)

    def fitness(child):
        if (error := next(values)) is not None:
            raise error
        return 1.0

    message = "more than half of the children failed, 5 of 8 so far, most often with: "
    with pytest.raises(PopulationError, match=f"^{message}RuntimeError: the simulator is gone$"):
        evaluate(module, mutations, fitness=fitness, on_child=seen.append)
    assert len(seen) == 6
    values = iter(errors)
    with pytest.raises(ValueError, match="3 of 4 so far"):
        evolve(module, fitness, search=Search(4, 2, 0.1))
    with pytest.raises(PopulationError, match="5 of 8 so far"):
        evaluate(module, mutations, fitness=pytest.fail, done=seen)


def test_half_of_a_generation_may_fail():
    values = iter([math.nan, math.nan, 1.0, 2.0])
    children = evaluate(
        mlp(), quads(4, 0.1, density=0.5, seed=0), fitness=lambda child: next(values)
    )
    assert [child.failed for child in children] == [True, True, False, False]


def test_children_that_are_done_are_not_evaluated_again():
    """They are seen first, and the result has the order of the mutations all the same."""
    module, mutations = mlp(), quads(8, 0.1, density=0.5, seed=0)
    expected = evaluate(module, mutations, fitness=weight_sum)
    others = [
        replace(child, fitness=0.0)
        for child in evaluate(module, mutations[4:6], fitness=weight_sum)
    ]
    elsewhere = Child(Mutation(9, 0.1, 0.0, 0.5), 9.0)
    seen, evaluated = [], []

    def fitness(child):
        evaluated.append(weight_sum(child))
        return evaluated[-1]

    children = evaluate(
        module,
        mutations,
        fitness=fitness,
        include=None,
        on_child=seen.append,
        done=[*others[::-1], elsewhere],
    )
    assert children == [*expected[:4], *others, *expected[6:]]
    assert seen == [*others, *expected[:4], *expected[6:]]
    assert len(evaluated) == 6
    assert evaluate(module, mutations, fitness=pytest.fail, done=expected) == expected


def test_evolving_mends_a_damaged_classifier():
    module, fitness = damaged(), accuracy_on(500, 1)
    evolution = evolve(module, fitness, search=Search(64, 8, 0.4))
    before = fitness(module)
    assert before < 0.9
    assert min(child.fitness for child in evolution.elites) > before
    assert fitness(evolution.ensemble) > before
    unseen = accuracy_on(2000, 11)
    assert unseen(evolution.ensemble) > unseen(module)


def test_evolve_is_the_same_for_a_seed_and_leaves_the_module_alone():
    module, fitness = damaged(), accuracy_on(200, 1)
    state = copied(module.state_dict())
    one, again, other = (
        evolve(module, fitness, search=Search(8, 4, 0.3, seed=seed)) for seed in (3, 3, 4)
    )
    assert one.children == again.children
    assert not {c.mutation for c in one.children} & {c.mutation for c in other.children}
    x = noise(20, 8)
    assert same_bits(one.ensemble(x), again.ensemble(x))
    assert not torch.equal(one.ensemble(x), other.ensemble(x))
    assert all_same_bits(copied(module.state_dict()), state)


def test_an_ensemble_of_one_is_the_best_child():
    module, fitness = damaged(), accuracy_on(200, 1)
    evolution = evolve(module, fitness, search=Search(8, 1, 0.3))
    (best,) = evolution.elites
    assert best.fitness == max(child.fitness for child in evolution.children)
    params = materialize(parameters(module), best.mutation)
    x = noise(20, 8)
    with torch.no_grad():
        expected = torch.func.functional_call(module, params, (x,)).log_softmax(dim=-1)
        assert same_bits(evolution.ensemble(x), expected)


def test_members_behave_as_they_did_when_they_were_evaluated():
    """Also with BatchNorm, whose statistics are the parent's in both."""
    module, x = normalised().train(), noise(20, 5)
    seen = {}

    def fitness(child):
        with torch.no_grad():
            seen[weight_sum(child)] = child(x)
        return weight_sum(child)

    evolution = evolve(module, fitness, search=Search(8, 3, 0.3))
    with torch.no_grad():
        for member, child in zip(evolution.ensemble.members, evolution.elites, strict=True):
            assert same_bits(member(x), seen[child.fitness])


def test_include_holds_from_the_search_to_the_ensemble():
    module = mlp()
    evolution = evolve(module, weight_sum, search=Search(4, 2, 0.3, include=["2.bias"]))
    for member in evolution.ensemble.members:
        assert same_bits(member[0].weight, module[0].weight)
        assert same_bits(member[2].weight, module[2].weight)
        assert not torch.equal(member[2].bias, module[2].bias)
    assert evolution.ensemble.recipe.include == ("2.bias",)


def test_singles_can_be_told_too():
    module = mlp()
    evolution = Evolution(module, Search(ensemble_size=2, sigma=0.1))
    evolution.tell(evaluate(module, singles(3, 0.1, density=0.5, seed=0), fitness=weight_sum))
    assert isinstance(evolution.ensemble, Ensemble)
    assert len(evolution.ensemble.members) == 2


def test_another_sampler_is_one_argument():
    search = Search(6, 6, 0.3, 0.2, seed=5, sampler=singles)
    evolution = evolve(mlp(), weight_sum, search=search)
    mutations = [child.mutation for child in evolution.children]
    assert mutations == singles(6, 0.3, density=0.2, seed=5)
    assert {mutation.density for mutation in mutations} == {0.2}


def own_sampler(population_size, sigma, *, density, seed):
    return [Mutation(seed + i, sigma, i / 10, i / 10 + density) for i in range(population_size)]


def test_a_sampler_may_be_ones_own():
    search = Search(3, 2, 0.3, 0.5, seed=5, sampler=own_sampler)
    assert [m.low for m in search.mutations()] == [0.0, 0.1, 0.2]
    assert search.about()["sampler"] == "own_sampler"
    with pytest.raises(ValueError, match="must give population_size mutations, 3, got 1"):
        Search(3, 2, sampler=lambda *_, **__: [Mutation(0, 0.1, 0, 1)])


def test_bad_arguments_are_refused_before_any_evaluation():
    for arguments, message in [
        ({"population_size": 6, "ensemble_size": 2}, "multiple of 4, got 6"),
        (
            {"population_size": 4, "ensemble_size": 8},
            r"must be in 1\.\.4 \(population_size\), got 8",
        ),
        ({"ensemble_size": 0}, r"must be in 1\.\.16 \(population_size\), got 0"),
        ({"population_size": 0, "ensemble_size": 0}, "population_size must be at least 1, got 0"),
        ({"density": 0.0}, r"density must be in \(0, 1\]"),
        ({"sigma": math.nan}, "sigma must be positive and finite, got nan"),
        ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"seed": -1}, "a seed must be an int"),
    ]:
        with pytest.raises(ValueError, match=message):
            Search(**arguments)
    with pytest.raises(ValueError, match=r"no parameters \['nope'\]"):
        evolve(mlp(), pytest.fail, search=Search(sigma=0.1, include=["nope"]))
    with pytest.raises(ValueError, match="this search has no sigma: take search_trust_region"):
        evolve(mlp(), pytest.fail, search=Search())


def test_a_call_that_was_stopped_goes_on_in_its_folder(tmp_path):
    module, search, judged = mlp(), Search(8, 3, 0.3), []

    def fitness(model):
        judged.append(1)
        if len(judged) == 4:
            raise KeyboardInterrupt
        return weight_sum(model)

    whole = evolve(module, weight_sum, search=search)
    with Run(tmp_path) as run, pytest.raises(KeyboardInterrupt):
        evolve(module, fitness, search=search, run=run)
    with Run(tmp_path) as run:
        again = evolve(module, fitness, search=search, run=run)
    assert len(judged) == 4 + 5
    assert again.elites == whole.elites
    with Run(tmp_path) as run, pytest.raises(ValueError, match=r"sigma 0\.3 \(now 0\.4\)"):
        evolve(module, fitness, search=replace(search, sigma=0.4), run=run)
    with Run(tmp_path) as run, pytest.raises(ValueError, match="parent"):
        evolve(mlp(1), fitness, search=search, run=run)


def test_failures_and_infinities_are_kept_as_they_are(tmp_path):
    children = children_of(math.nan, 1.5, -math.inf, math.inf)
    with Run(tmp_path) as run:
        run.ask("children", {})
        for child in children:
            keep_child(run, child)
    with Run(tmp_path) as run:
        run.ask("children", {})
        found = kept_children(run)
    assert [repr(child) for child in found] == [repr(child) for child in children]


def test_noise_that_leaves_nothing_of_the_parent_is_refused_with_its_number():
    """Before anything is evaluated, by everything that evaluates."""
    parent, asked = mlp(), []
    largest = max(weight.square().mean().sqrt().item() for weight in parent.parameters())
    for sigma in (1e30, 101 * largest):
        search = Search(4, 2, sigma=sigma)
        with pytest.raises(ValueError, match=r"^sigma .* times the root mean square of the parent"):
            evaluate(parent, search.mutations(), fitness=asked.append)
        with pytest.raises(ValueError, match=rf"^sigma {re.escape(f'{sigma:g}')} is "):
            evolve(parent, asked.append, search=search)
    assert not asked
    check_strength(parent, Search(4, 2, sigma=99 * largest).mutations())
    with torch.no_grad():
        for weight in parent.parameters():
            weight.zero_()
    check_strength(parent, Search(4, 2, sigma=1e30).mutations())  # nothing to compare with
