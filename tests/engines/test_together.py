"""Networks asked together: the outputs of one after the other, whatever is fastest."""

import contextlib
import copy
import pickle

import pytest
import torch
from networks import PLAIN, built, pictures
from networks import small_classifier as network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from agents.impala import COBBE_WIDTHS
from agents.policies import impala_actor
from evo_subnets import Ensemble, evaluate, quads
from evo_subnets.engines import together
from evo_subnets.engines.together import InTurn, Replayed, Stacked, Together, fastest
from evo_subnets.methods.noisy import Accuracy
from evo_subnets.models import build

INPUTS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def members(name, count=3):
    if name == "impala":
        return [built(lambda: impala_actor(COBBE_WIDTHS, 2), seed=i).eval() for i in range(count)]
    return [build(name, seed=i).eval() for i in range(count)]


def inputs_of(name):
    if name != "impala":
        return INPUTS
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 6, 64, 64), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", ["lenet-s", "resnet-20", "mlp-32-16", "impala"])
@torch.no_grad()
def test_stacked_networks_have_the_outputs_of_one_after_the_other(name):
    networks, inputs = members(name), inputs_of(name)
    ask, expected = Stacked(networks), InTurn(networks)
    torch.testing.assert_close(ask(inputs), expected(inputs), atol=1e-5, rtol=1e-5)
    before = expected(inputs)
    next(networks[1].parameters()).mul_(1.5)
    torch.testing.assert_close(ask(inputs), expected(inputs), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, ask(inputs), atol=1e-4), "new weights in the same place"
    networks[2].load_state_dict(networks[0].state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(ask(inputs), expected(inputs), atol=1e-5, rtol=1e-5)
    for buffer in networks[0].buffers():
        if buffer.is_floating_point():
            buffer.mul_(0.5)
    torch.testing.assert_close(ask(inputs), expected(inputs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weights_are_stacked_once_while_they_stay(monkeypatch):
    stacked = []
    whole = together.stack_module_state
    monkeypatch.setattr(
        together, "stack_module_state", lambda modules: stacked.append(1) or whole(modules)
    )
    networks = members("mlp-32-16")
    ask = Stacked(networks)
    for _ in range(3):
        ask(INPUTS)
    assert len(stacked) == 1
    networks[0][5].weight.data = torch.zeros(10, 16)
    ask(INPUTS)
    assert len(stacked) == 2


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_an_ensemble_takes_a_backend_but_not_where_gradients_are_wanted(backend):
    networks = members("lenet-s")
    ensemble = Ensemble(networks, backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(
            ensemble.member_logits(INPUTS), InTurn(networks)(INPUTS), atol=1e-5, rtol=1e-5
        )
    ensemble.member_logits(INPUTS).sum().backward()
    assert all(parameter.grad is not None for parameter in ensemble.parameters())
    ensemble.train()
    with torch.no_grad():
        assert ensemble.member_logits(INPUTS).shape == (3, 5, 10)  # as vmap would refuse
    with pytest.raises(ValueError, match="backend must be one of"):
        Ensemble(networks, backend="gpu")
    with pytest.raises(ValueError, match="backend must be one of"):
        evaluate(networks[0], quads(4, 0.1, 0.5, 0), lambda model: 0.0, backend="gpu")


def child_fitness(backend, norm_images=None, count=12):
    fitness = Accuracy(pictures(60), PLAIN, norm_images)
    module = network(0).eval()
    return [
        (child.mutation, child.fitness)
        for child in evaluate(module, quads(count, 0.3, 0.5, 0), fitness, backend=backend)
    ]


@pytest.mark.parametrize("norms", [False, True])
def test_children_judged_together_have_the_fitness_of_one_by_one(norms):
    images = pictures(40) if norms else None
    expected = child_fitness("loop", images)
    assert len({fitness for _, fitness in expected}) > 3
    assert child_fitness("auto", images) == expected, "one by one on a CPU"
    found = child_fitness("vmap", images)
    assert [mutation for mutation, _ in found] == [mutation for mutation, _ in expected]
    assert [fitness for _, fitness in found] == pytest.approx(
        [fitness for _, fitness in expected], abs=1.5 / 60
    )


def test_a_group_that_cannot_be_judged_together_is_judged_one_by_one():
    class Halting:
        asked = 0

        def __call__(self, model):
            return float(next(model.parameters()).detach().sum())

        def together(self, children):
            self.asked += 1
            if self.asked == 1:
                raise RuntimeError("no memory")
            return [self(child) for child in children.members]

    module, mutations, fitness = network(0), quads(12, 0.3, 0.5, 0), Halting()
    found = evaluate(module, mutations, fitness, backend="vmap")
    assert fitness.asked == 2
    assert found == evaluate(module, mutations, Halting().__call__)


def test_children_that_are_judged_nan_together_fail_as_one_by_one():
    class Nan:
        def __call__(self, model):
            return float("nan") if next(model.parameters()).sum() > 0 else 1.0

        def together(self, children):
            return [self(child) for child in children.members]

    module, mutations = network(0), quads(16, 3.0, 0.5, 0)
    found = evaluate(module, mutations, Nan(), backend="vmap")
    reasons = [child.reason for child in found]
    assert reasons == [child.reason for child in evaluate(module, mutations, Nan())]
    assert 0 < reasons.count("fitness is NaN") <= 8


def slow(way):
    def ask(*inputs):
        outputs = way(*inputs)
        for _ in range(200):
            torch.ones(100, 100) @ torch.ones(100, 100)
        return outputs

    return ask


@torch.no_grad()
def test_the_fastest_way_that_is_right_is_taken():
    networks = members("mlp-32-16")
    quick, right = InTurn(networks), slow(InTurn(networks))

    def failing(*inputs):
        raise NotImplementedError("no batching rule")

    assert fastest([right, quick], [INPUTS]) is quick
    assert fastest([quick, right], [INPUTS]) is quick
    assert fastest([right, failing], [INPUTS]) is right
    with pytest.warns(UserWarning, match="is wrong by"):
        assert fastest([right, InTurn(members("mlp-32-16")[::-1])], [INPUTS]) is right


@torch.no_grad()
def test_ways_are_compared_at_the_third_call_of_a_shape(monkeypatch):
    networks, compared = members("mlp-32-16"), []

    def last(ways, inputs):
        compared.append((len(inputs[0]), [type(way).__name__ for way in ways]))
        return ways[1]

    monkeypatch.setattr(together, "fastest", last)
    monkeypatch.setattr(together, "SHAPES", 2)
    ask = Together(networks)
    for _ in range(4):
        for rows in (5, 4):
            ask(INPUTS[:rows])
    names = ["InTurn", "Stacked", "Replayed"]
    assert compared == [(5, names), (4, names)]
    first, second = ask.chosen.values()
    assert first is second, "one copy of the weights serves all shapes"
    for _ in range(4):
        ask(INPUTS[:3])
    assert len(compared) == 2, "the others stay with the loop"
    for again in (copy.deepcopy(ask), pickle.loads(pickle.dumps(ask))):
        assert not again.chosen
        assert again.networks is not networks
        torch.testing.assert_close(again(INPUTS), InTurn(networks)(INPUTS))
    ensemble = copy.deepcopy(Ensemble(networks))
    assert ensemble.together.networks is ensemble.members


class Recorder(TorchDispatchMode):
    """Keeps every operation with its results, to be done again in the same memory."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.steps.append((operation, args, kwargs or {}, result))
        return result


class Graph:
    def __init__(self):
        self.steps, self.replays = [], 0

    def replay(self):
        self.replays += 1
        for operation, args, keywords, result in self.steps:
            again = operation(*args, **keywords)
            if torch.is_tensor(result) and again.data_ptr() != result.data_ptr():
                result.copy_(again)


class Stream:
    def wait_stream(self, other):
        pass


class Cuda:
    """What `Replayed` asks of torch.cuda, on a CPU."""

    CUDAGraph, Stream = Graph, Stream

    def current_stream(self):
        return Stream()

    def stream(self, stream):
        return contextlib.nullcontext()

    def graph(self, graph):
        return Recorder(graph.steps)


@torch.no_grad()
def test_a_recorded_pass_is_done_again_with_new_inputs_and_weights():
    networks = [built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU()), seed=i)
                for i in range(3)]  # fmt: skip
    ask, expected = Replayed(networks, Cuda()), InTurn(networks)
    pixels = INPUTS[:, :, :2, :2].repeat(2, 1, 1, 1)[:6]
    first = ask(pixels)
    kept = first.clone()
    assert torch.equal(first, expected(pixels))
    assert torch.equal(ask(-pixels), expected(-pixels))
    assert torch.equal(first, kept), "an earlier answer stays"
    networks[0][1].weight.mul_(2)
    assert torch.equal(ask(pixels), expected(pixels)), "new weights in the same place"
    ((graph, *_),) = ask.recorded.values()
    assert graph.replays == 3
    assert torch.equal(ask(pixels[:2]), expected(pixels[:2]))
    assert len(ask.recorded) == 2
    networks[0][1].weight.data = torch.zeros(4, 12)
    with torch.inference_mode():
        assert torch.equal(ask(pixels), expected(pixels))
    assert len(ask.recorded) == 1, "networks that moved are recorded again"
    assert torch.equal(ask(-pixels), expected(-pixels)), "recorded in inference mode, used outside"
