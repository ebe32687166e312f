"""The same children from this process and from others, whatever happens to the others."""

import asyncio
import math
import os
import pickle
import signal
import socket
import threading
import time
from dataclasses import replace

import pytest
import torch
from networks import all_same_bits, built, copied, mlp, normalised
from torch import nn

pytest.importorskip("evotorch", reason="EvoTorch is not installed")

import evotorch
import ray
from evotorch.logging import PandasLogger, StdOutLogger

from configs.images import ParentArgs
from configs.workers import WorkerArgs
from evo_subnets import (
    Evolution,
    Moving,
    Mutation,
    PopulationError,
    Search,
    evaluate,
    evolve,
    files,
    quads,
    select,
)
from evo_subnets.descendants import Descendant
from evo_subnets.evolution import Evaluator, gather
from evo_subnets.lineage import Lineage, Momentum
from evo_subnets.methods import Sparse
from evo_subnets.schedules import Constant
from evo_subnets.streams import derive_seed
from evo_subnets.tuning import Tuning
from evo_subnets.workers import Here, Ray
from evo_subnets.workers.crew import Cargo, Crew, connect
from evo_subnets.workers.evotorch import (
    MutationProblem,
    SubnetworkSearch,
    from_rows,
    to_rows,
)
from scripts import image_ensemble


@pytest.fixture(scope="module", autouse=True)
def ray_session():
    """Ray, started by the first test that needs it."""
    yield
    ray.shutdown()


def weight_sum(module):
    return sum(parameter.double().sum().item() for parameter in module.parameters())


def impala_sized():
    """The weights of the Impala network of Procgen, in one layer."""
    return built(lambda: nn.Sequential(nn.Linear(2048, 306), nn.Linear(306, 15)))


def watched(folder):
    """A fitness that leaves word of the process that computes it, and waits a moment."""

    def fitness(module):
        (folder / str(os.getpid())).touch()
        time.sleep(0.05)
        return weight_sum(module)

    return fitness


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the workers of `problem` leave word."""
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def problem(folder):
    """Two workers, started once. EvoTorch 0.6.1 crashes those of a problem with a seed."""
    with MutationProblem(normalised(), watched(folder), workers=Ray(2)) as problem:
        problem.manual_seed(1)
        yield problem


def kill_one(folder):
    """Kills the first worker that leaves word in the folder."""
    limit = time.monotonic() + 60
    while not (found := list(folder.iterdir())):
        assert time.monotonic() < limit
        time.sleep(0.01)
    os.kill(int(found[0].name), signal.SIGKILL)


def test_a_killed_worker_changes_nothing(problem, folder):
    """Here, on two workers, and on two one of which is killed: the same fitness table."""
    module, mutations = problem.module, quads(32, 0.1, density=0.3, seed=0)
    state = copied(module.state_dict())
    expected = evaluate(module, mutations, fitness=weight_sum)
    workers = []
    for killing in (False, True):
        for path in folder.iterdir():
            path.unlink()
        killer = threading.Thread(target=kill_one, args=(folder,))
        if killing:
            killer.start()
        problem.evaluate(batch := problem.batch(mutations))
        if killing:
            killer.join()
        assert problem.children == expected
        assert select(problem.children, 8) == select(expected, 8)
        assert batch.evals[:, 0].tolist() == [child.fitness for child in expected]
        workers.append({int(path.name) for path in folder.iterdir()})
    assert len(workers[0]) == 2
    assert len(workers[1] - workers[0]) == 1  # the one that took the place of the killed one
    assert os.getpid() not in workers[0] | workers[1]
    assert all_same_bits(copied(module.state_dict()), state)


class Harmful:
    """A fitness that harms some mutations' children, and else is the sum."""

    def __init__(self, module, harms):
        self.harms = {
            evaluate(module, [mutation], fitness=weight_sum)[0].fitness: harm
            for mutation, harm in harms.items()
        }

    def __call__(self, module):
        value = weight_sum(module)
        return self.harms[value]() if value in self.harms else value


def raise_error():
    raise RuntimeError("no more memory")


def no_number():
    return math.nan


def test_children_that_fail_do_so_alone():
    """Also one that kills every worker, in a piece of two and on the only worker."""
    module, mutations = mlp(), quads(16, 0.1, density=0.3, seed=0)
    expected = evaluate(module, mutations, fitness=weight_sum)
    harms = {2: lambda: os._exit(3), 7: raise_error, 12: no_number}
    fitness = Harmful(module, {mutations[index]: harm for index, harm in harms.items()})
    children = evaluate(module, mutations, fitness=fitness, workers=Ray(1))
    assert {i: child.reason for i, child in enumerate(children) if child.failed} == {
        2: "its worker died",
        7: "RuntimeError: no more memory",
        12: "fitness is NaN",
    }
    assert all(math.isnan(children[index].fitness) for index in harms)
    others = [index for index in range(16) if index not in harms]
    assert [children[index] for index in others] == [expected[index] for index in others]
    assert set(select(children, 13)) == {children[index] for index in others}


def failing(module):
    raise RuntimeError("the simulator\nis gone")


def test_children_that_are_done_are_not_sent():
    module, mutations = mlp(), quads(4, 0.1, density=0.3, seed=0)
    done = evaluate(module, mutations, fitness=weight_sum)
    assert evaluate(module, mutations, fitness=failing, done=done, workers=Ray(2)) == done


def test_what_cannot_travel_is_refused_in_one_line():
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"^this cannot be sent to other processes.*lock.*$"):
        evaluate(
            mlp(),
            quads(4, 0.1, density=0.3, seed=0),
            fitness=lambda module: bool(lock),
            workers=Ray(1),
        )


# any work


def tuned(seed):
    """The bits of a network after some steps of training."""
    module = mlp(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    x = torch.ones(4, 5)
    for _ in range(5):
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def picky(item):
    if item == 2:
        raise KeyError("two is not for me")
    if item == 3:
        raise SystemExit("enough")
    if item == 4:
        raise KeyboardInterrupt("enough")
    if item == 5:
        raise asyncio.CancelledError("enough")
    return item


def called(work):
    function, argument = work
    return function(argument)


@pytest.fixture(scope="module")
def crew(problem):
    """Two workers that call what they get, beside the two of `problem`, on any number of cores."""
    with Crew(called, 2) as crew:
        yield crew


def test_members_are_tuned_elsewhere_with_the_same_bits(crew):
    seeds = [3, 1, 4, 1, 5]
    expected = dict(Here().map(tuned, seeds))
    elsewhere = crew.results([(tuned, seed) for seed in seeds])
    for found in (dict(Ray(1).map(tuned, seeds)), dict(elsewhere)):
        assert set(found) == set(expected)
        for index in expected:
            assert all_same_bits(found[index], expected[index])


def test_the_script_has_its_members_trained_elsewhere(problem, tmp_path):
    """With the same results, but for when and by what command."""
    adam = Tuning(2, Constant(0.001), "adam")
    small = ParentArgs(
        "mlp-32", "digits", limit=150, parent_tuning=adam, method=Sparse(2, tuning=adam)
    )
    results = []
    for name, workers in (("alone", WorkerArgs()), ("workers", WorkerArgs(2))):
        image_ensemble.main(replace(small, out=tmp_path / name, workers=workers))
        found = files.read_json(tmp_path / name / "results.json")
        assert found.pop("provenance")
        results.append(found)
    assert results[0] == results[1]


def test_what_the_work_raises_is_raised_here(crew):
    with pytest.raises(KeyError, match="two is not for me"):
        list(crew.results([(picky, item) for item in range(3)]))
    for item, kind in ((3, SystemExit), (4, KeyboardInterrupt), (5, asyncio.CancelledError)):
        with pytest.raises(kind, match=r"^enough$"):  # as in this process
            list(crew.results([(picky, item)]))
    assert sorted(crew.results([(picky, 7), (picky, 6)])) == [(0, 7), (1, 6)]


def test_results_may_be_left_half_way(crew):
    items = [(picky, item) for item in range(10, 110)]
    next(crew.results(items))
    assert sorted(crew.results(items)) == list(enumerate(range(10, 110)))


def test_the_workers_of_a_crew_are_shared_by_its_batches(crew):
    before = crew.actors
    assert list(crew.results([])) == []
    assert dict(crew.results([(abs, -9)])) == {0: 9}
    assert crew.actors is before
    assert len(before) == 2


def test_more_than_half_that_fail_stop_a_generation_on_workers(crew):
    evaluator, seen = Evaluator(mlp(), failing), []

    def evaluated(mutations):
        return crew.results([(evaluator, mutation) for mutation in mutations])

    with pytest.raises(PopulationError, match=r"3 of 4 so far.*: the simulator is gone$"):
        gather(quads(4, 0.1, density=0.3, seed=0), evaluated, on_child=seen.append)
    assert len(seen) == 3


# rows


def test_rows_are_recipes_exactly():
    mutations = [
        Mutation(0, 0.1, 0.0, 1.0),
        Mutation(2**53 - 1, -1e-30, 1 / 3, 2 / 3),
        Mutation(derive_seed(7, "row"), math.pi, 0.3, 1.0),
    ]
    rows = to_rows(mutations)
    assert (rows.shape, rows.dtype) == ((3, 4), torch.float64)
    assert from_rows(rows) == mutations
    assert to_rows([]).shape == (0, 4)


def test_rows_that_are_no_recipes_are_refused():
    with pytest.raises(ValueError, match=rf"below 2\*\*53 exactly, got {2**53}"):
        to_rows([Mutation(2**53, 0.1, 0.0, 0.5)])
    for row, message in [
        ([0.5, 0.1, 0, 1], "must be an integer .* got 0.5"),
        ([-1, 0.1, 0, 1], "must be an integer"),
        ([2.0**53, 0.1, 0, 1], "must be an integer"),
        ([math.nan, 0.1, 0, 1], "must be an integer"),
        ([1, math.nan, 0, 1], "sigma must be finite"),
        ([1, 0.1, 0.0, 2.0], "high"),
        ([1, 0.1], "got shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_rows(torch.tensor([row], dtype=torch.float64))


# EvoTorch


def test_evotorch_evaluates_and_never_lets_a_failure_win():
    """EvoTorch 0.6.1: `take_best` prefers NaN, its statistics and one that raises stop it all."""
    module, mutations = mlp(), quads(8, 0.1, density=0.3, seed=0)
    expected = evaluate(module, mutations, fitness=weight_sum)
    seen = []
    for harm in (raise_error, no_number):
        seen.clear()
        fitness = Harmful(module, {mutations[0]: harm})
        problem = MutationProblem(module, fitness, on_child=seen.append)
        batch = problem.batch(mutations)
        problem.evaluate(batch)
        assert batch.evals[0].item() == -math.inf
        assert batch.evals[1:, 0].tolist() == [child.fitness for child in expected[1:]]
        best = select(expected[1:], 3)
        assert from_rows(batch.take_best(3).values) == [child.mutation for child in best]
        assert math.isnan(problem.children[0].fitness)
        assert problem.children[0].reason
        assert problem.children[1:] == expected[1:]
        assert seen == problem.children
        assert problem.actors is None


def test_evotorch_cannot_draw_recipes():
    with pytest.raises(ValueError, match="give batch"):
        MutationProblem(mlp(), weight_sum).generate_batch(4)


def test_the_pickled_problem_is_small_and_knows_that_it_is_no_more():
    """A large one cannot be restored where a worker died (ray issue 53727)."""
    module = impala_sized()
    assert sum(parameter.numel() for parameter in module.parameters()) > 600_000
    problem = MutationProblem(module, weight_sum, on_child=threading.Lock().release, workers=Ray(2))
    problem.children = evaluate(mlp(), quads(256, 0.1, density=0.3, seed=0), fitness=weight_sum)
    data = pickle.dumps(problem)
    assert len(data) < 100_000
    with pytest.raises(ValueError, match="make it anew"):
        list(pickle.loads(data).results([1]))
    mutations = quads(4, 0.1, density=0.3, seed=0)
    clone = MutationProblem(mlp(), weight_sum).clone()
    there = [child for _, child in clone.results([Descendant(Lineage(), one) for one in mutations])]
    assert there == evaluate(mlp(), mutations, fitness=weight_sum)


def test_a_worker_opens_only_what_it_was_told_of():
    connect()
    cargo = Cargo.packed(abs)
    assert cargo.opened()(-3) == 3
    with pytest.raises(ValueError, match="expected work with SHA-256 000"):
        replace(cargo, digest="0" * 64).opened()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_search_is_evolution_here_and_on_workers(workers, request, capsys):
    asked = Search(8, 3, 0.2, seed=4)
    if workers:
        problem = request.getfixturevalue("problem")
    else:
        problem = MutationProblem(normalised(), weight_sum)
    evolution = Evolution(problem.module, asked)
    for _ in range(2):
        evolution.tell(evaluate(problem.module, evolution.ask(), fitness=weight_sum))
    search = SubnetworkSearch(problem, asked)
    StdOutLogger(search)
    table = PandasLogger(search)
    search.run(2)
    assert len(problem.actors or []) == workers
    assert search.evolution.children == evolution.children
    assert search.evolution.elites == evolution.elites == search.status["elites"]
    assert len(search.evolution.ensemble.members) == 3
    frame = table.to_dataframe()
    best = [max(child.fitness for child in evolution.children[:n]) for n in (8, 16)]
    assert frame["best_fitness"].tolist() == best
    last = [child.fitness for child in evolution.children[8:]]
    assert frame["mean_fitness"].tolist()[1] == math.fsum(last) / 8
    assert frame["failed"].tolist() == [0, 0]
    assert "best_fitness" in capsys.readouterr().out


def test_evotorch_s_faults_are_still_there():
    """Without them, what goes around them could go."""

    class Plain(evotorch.Problem):
        pass

    plain = Plain("max", abs, solution_length=1, initial_bounds=(0, 1), num_actors=1)
    assert plain.num_actors == 0
    assert not hasattr(plain, "seed")
    batch = evotorch.SolutionBatch(plain, 2, empty=True)
    batch.set_evals(torch.tensor([1.0, math.nan]))
    assert batch.take_best(1).evals.isnan().all()


# addresses and arguments


@pytest.fixture
def no_session(monkeypatch):
    """As in a process that has not connected to Ray."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def listener(greeting):
    """The address of a server that says `greeting` and nothing else."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = server.accept()
        with connection, server:
            connection.sendall(greeting)
            connection.recv(100)

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("greeting", [None, b"SSH-2.0-OpenSSH_9.6\r\n"], ids=["none", "other"])
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_does_not_answer_is_one_line_at_once(no_session, greeting, scheme):
    address = scheme + (listener(greeting) if greeting else "127.0.0.1:1")
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"^no Ray answers at {address}: .*$"):
        evolve(mlp(), weight_sum, search=Search(4, 2, 0.1), workers=Ray(2, address=address))
    assert time.monotonic() - start < 30


def test_other_addresses_are_refused_too(no_session):
    with pytest.raises(ValueError, match="nonsense"):
        connect("nonsense")
    with pytest.raises(OSError, match=r"no Ray answers at nowhere\.invalid:6379"):
        connect("nowhere.invalid:6379")


def test_too_few_machines_are_an_error_that_counts_them():
    connect()
    for arguments, message in [
        ({"address": "auto"}, r"1000 workers need 1000 CPUs and 0 GPUs, Ray has \d"),
        ({"gpus_per_worker": 64}, r"1000 workers need 0 CPUs and 64000 GPUs, Ray has \d"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(Ray(1000, **arguments).map(abs, range(1000)))


class Likelihoods:
    """Fresh cases in every generation."""

    def __init__(self, seed=0):
        self.seed = seed

    @torch.no_grad()
    def __call__(self, model):
        inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(self.seed))
        return model(inputs).log_softmax(-1)[:, 0].tolist()

    def in_generation(self, number):
        return Likelihoods(1 + number)


GENERATIONS = {
    "search": Search(8, 3, density=1.0),
    "moving": Moving(rule=Momentum()),
    "inputs": torch.linspace(-2, 2, 160).reshape(32, 5),
}


def test_generations_under_evotorch_are_those_of_evolve():
    module = mlp()
    expected = evolve(module, Likelihoods(), generations=3, **GENERATIONS)
    problem = MutationProblem(module, Likelihoods())
    searcher = SubnetworkSearch(problem, **GENERATIONS)
    logger = PandasLogger(searcher)
    searcher.run(3)
    found = searcher.evolution
    assert found.lineage == expected.lineage
    assert found.children == expected.children
    assert all_same_bits(found.evolved.state_dict(), expected.evolved.state_dict())
    assert list(found.models()) == list(expected.models())
    frame = logger.to_dataframe()
    assert frame["divergence"].tolist() == [each.divergence for each in expected.history]
    assert frame["sigma"].tolist() == [each.sigma for each in expected.history]
    with pytest.raises(ValueError, match="inputs are for divergences"):
        SubnetworkSearch(problem, Search(8, 3, sigma=0.1), inputs=torch.ones(2, 5))


def test_workers_are_sent_lineages_and_stay_through_all_generations(tmp_path):
    module, seen = mlp(), tmp_path / "seen"
    seen.mkdir()

    class Watched(Likelihoods):
        def __call__(self, model):
            (seen / str(os.getpid())).touch()
            return super().__call__(model)

        def in_generation(self, number):
            return Watched(1 + number)

    here = evolve(module, Likelihoods(), generations=3, again=4, **GENERATIONS)
    elsewhere = evolve(module, Watched(), generations=3, again=4, workers=Ray(2), **GENERATIONS)
    assert elsewhere.lineage == here.lineage
    assert elsewhere.children == here.children
    assert elsewhere.confirmed == here.confirmed
    processes = {path.name for path in seen.iterdir()}
    assert len(processes) <= 2
    assert str(os.getpid()) not in processes
