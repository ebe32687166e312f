"""Members side by side, networks without silent neurons or zeros: faster, and the same outputs."""

import copy
import pickle
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from networks import all_same_bits, built, impala, lenet, mlp, noise, normalised, same_bits, tied
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evo_subnets import Ensemble, engines, quads
from evo_subnets.engines import side_by_side
from evo_subnets.methods import Pruning
from evo_subnets.models import build
from evo_subnets.pruning import Pruned
from evo_subnets.structure.compaction import compacted
from evo_subnets.structure.sparse_linear import SparseLinear, sparse_linear

SHAPES = {lenet: (1, 28, 28), impala: (3, 16, 16), mlp: (5,), normalised: (5,), tied: (5,)}


@pytest.fixture
def threads(monkeypatch):
    """Two torch threads, and no work too small for them."""
    monkeypatch.setattr(side_by_side, "rows_that_pay", lambda members: range(1, 10**9))
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


class Seen(nn.Module):
    """A layer that says which threads ran it."""

    def __init__(self, names: set[str], seed: int = 0) -> None:
        super().__init__()
        self.layer = built(lambda: nn.Linear(5, 3), seed)
        self.tell = names.add

    def forward(self, x):
        self.tell(threading.current_thread().name)
        return self.layer(x)


def beside_each_other(members):
    return Ensemble(members, side_by_side=True)


def seen(count=2):
    """An ensemble, and the names of the threads that ran its members."""
    names: set[str] = set()
    return beside_each_other([Seen(names, seed) for seed in range(count)]), names


def in_turn(ensemble, *inputs):
    with torch.no_grad():
        return torch.stack([member(*inputs) for member in ensemble.members])


def beside(ensemble, x):
    """What members say side by side; fails where they do not run so."""
    with torch.no_grad():
        assert engines.ask_members(ensemble.members, (x,)) is not None
        return ensemble.member_outputs(x)


@pytest.mark.parametrize("rows", [1, 2, 32, 33, 70])
@pytest.mark.parametrize("make", SHAPES)
def test_members_side_by_side_say_what_they_say_in_turn(make, rows, threads):
    ensemble = beside_each_other([make(seed) for seed in range(4)])
    x = noise(rows, *SHAPES[make], seed=9)
    first = beside(ensemble, x)
    torch.testing.assert_close(first, in_turn(ensemble, x), rtol=1e-5, atol=1e-5)
    assert same_bits(beside(ensemble, x), first)
    with torch.no_grad():
        expected = ensemble.combined(in_turn(ensemble, x))
        torch.testing.assert_close(ensemble(x), expected, rtol=1e-5, atol=1e-5)


def test_members_run_on_threads_of_their_own(threads):
    ensemble, names = seen()
    beside(ensemble, noise(100, 5))
    assert names
    assert all(name.startswith("member") for name in names)


def test_one_torch_thread_has_the_plain_loop():
    ensemble, names = seen()
    with torch.no_grad():
        ensemble(noise(100, 5))
    assert names == {"MainThread"}


def test_little_work_has_the_plain_loop(threads, monkeypatch):
    monkeypatch.setattr(side_by_side, "rows_that_pay", lambda members: range(50, 60))
    ensemble, names = seen()
    for rows, expected in ((49, True), (50, False), (59, False), (60, True)):
        names.clear()
        with torch.no_grad():
            ensemble(noise(rows, 5))
        assert ("MainThread" in names) == expected


def test_what_is_worth_it_depends_on_rows_weights_and_convolutions():
    def rows(make):
        return side_by_side.rows_that_pay(nn.ModuleList(make() for _ in range(8)))

    assert rows(mlp) == range(0)
    assert rows(lambda: build("mlp-1024-512", seed=0)) == range(1, 5)
    assert 1 not in rows(lenet)
    assert 64 in rows(lenet)
    assert 1 in rows(lambda: build("lenet-s", seed=0))


def test_who_did_not_ask_for_it_has_the_plain_loop(threads):
    """Hooks, and what torch keeps for each thread."""
    names: set[str] = set()
    ensemble, called = Ensemble([Seen(names, seed) for seed in range(2)]), []
    ensemble.members[1].layer.register_forward_hook(lambda *_: called.append(1))
    x = noise(100, 5)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            ensemble(x)
        assert counter.get_total_flops() == 2 * 2 * 100 * 5 * 3
        with torch.device("cpu"):
            ensemble(x)
        torch.vmap(ensemble)(x[:, None])
    assert names == {"MainThread"}
    assert len(called) == 3


def test_the_choice_is_the_constructors_and_not_kept_in_files(threads, tmp_path):
    ensemble = Ensemble.from_mutations(mlp(), quads(4, 0.1, density=0.5, seed=0), side_by_side=True)
    assert ensemble.side_by_side
    ensemble.save(tmp_path / "ensemble")
    assert not Ensemble.load(tmp_path / "ensemble", mlp()).side_by_side


def test_layers_that_train_have_the_plain_loop(threads):
    ensemble, names = seen()
    beside(ensemble, noise(9, 5))
    ensemble.members[0].layer.train()
    names.clear()
    with torch.no_grad():
        ensemble(noise(9, 5))
    assert names == {"MainThread"}


def test_what_torch_says_of_itself_has_the_plain_loop(threads):
    ensemble, names = seen()
    x = noise(9, 5)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert ensemble.member_outputs(x).dtype == torch.bfloat16
        torch.jit.trace(ensemble, x, check_trace=False)
        ensemble.to("meta")(x.to("meta"))
    assert names == {"MainThread"}


def test_the_switch_has_the_plain_loop(threads, monkeypatch):
    ensemble, names = seen()
    monkeypatch.setenv(engines.SWITCH, "off")
    with torch.no_grad():
        ensemble(noise(9, 5))
    assert names == {"MainThread"}


def test_gradients_flow_as_through_the_plain_loop(threads):
    ensemble, names = seen()
    x = noise(9, 5).requires_grad_()
    ensemble(x).square().sum().backward()
    assert names == {"MainThread"}
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in ensemble.parameters())


def test_inference_mode_is_the_callers(threads):
    ensemble, _ = seen()
    with torch.inference_mode():
        assert ensemble.member_outputs(noise(9, 5)).is_inference()
    assert not beside(ensemble, noise(9, 5)).is_inference()


class Viewing(nn.Module):
    """Takes its convolution's memory for contiguous."""

    def __init__(self):
        super().__init__()
        self.convolution = built(lambda: nn.Conv2d(3, 4, 3))

    def forward(self, x):
        return self.convolution(x).view(len(x), -1)


def test_what_fails_on_threads_has_the_plain_loop(threads):
    ensemble = beside_each_other([Viewing() for _ in range(2)])
    x = noise(140, 3, 5, 5)
    with torch.no_grad():
        assert same_bits(ensemble.member_outputs(x), in_turn(ensemble, x))


class Busy(nn.Module):
    """Fails where two calls overlap."""

    def __init__(self):
        super().__init__()
        lock = threading.Lock()
        self.acquire, self.release = lock.acquire, lock.release

    def forward(self, x):
        assert self.acquire(blocking=False)
        product = x @ x.new_ones(400, 400)
        self.release()
        return product


def test_a_member_is_never_on_two_threads(threads):
    ensemble = beside_each_other([Busy() for _ in range(8)])
    for _ in range(20):
        beside(ensemble, noise(300, 400))


def test_errors_are_those_of_the_plain_loop(threads):
    ensemble, _ = seen()
    beside(ensemble, noise(9, 5))
    with torch.no_grad():
        for wrong in (noise(9, 6), noise(5, 0)):
            with pytest.raises(RuntimeError) as expected:
                in_turn(ensemble, wrong)
            with pytest.raises(RuntimeError) as found:
                ensemble(wrong)
            assert str(found.value) == str(expected.value)
        double = noise(9, 5).double()  # inputs come in the weights' precision where they must
        assert torch.equal(ensemble(double), ensemble(double.float()))
        ensemble.members[1].layer = built(lambda: nn.Linear(6, 3))
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            ensemble(noise(9, 5))


def test_several_inputs_and_none_that_fit(threads):
    class Adding(nn.Module):
        def forward(self, x, y):
            return x + y

    ensemble = beside_each_other([Adding(), Adding()])
    for y in (noise(140, 3), noise(1, 3), noise(3), torch.tensor(2.0)):
        with torch.no_grad():
            found = ensemble.member_outputs(noise(140, 3), y)
        assert same_bits(found, in_turn(ensemble, noise(140, 3), y))


def test_the_number_of_torch_threads_stays_everywhere(threads, monkeypatch):
    monkeypatch.setattr("evo_subnets.engines.threads._pools", pools := {})

    def elsewhere():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = torch.get_num_threads(), elsewhere()
    ensemble, _ = seen()
    beside(ensemble, noise(9, 5))
    assert (torch.get_num_threads(), elsewhere()) == before
    assert pools
    for pool in pools.values():
        assert pool.submit(torch.get_num_threads).result() == 1


def test_ensembles_nest_copy_and_pickle(threads):
    ensemble = beside_each_other([lenet(seed) for seed in range(2)])
    x = noise(40, 1, 28, 28)
    expected = beside(ensemble, x)
    for again in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert same_bits(beside(again, x), expected)
        assert all_same_bits(again.state_dict(), ensemble.state_dict())
    nested = beside_each_other([ensemble, copy.deepcopy(ensemble)])
    with torch.no_grad():
        torch.testing.assert_close(nested(x), ensemble(x))
        assert len(in_turn(nested, x)) == len(beside(nested, x))


def test_a_forked_process_which_has_no_threads_has_the_plain_loop(threads, monkeypatch):
    ensemble, names = seen()
    beside(ensemble, noise(9, 5))
    names.clear()
    monkeypatch.setattr(side_by_side, "_PROCESS", -1)
    with torch.no_grad():
        ensemble(noise(9, 5))
    assert names == {"MainThread"}


@pytest.mark.parametrize("name", ["lenet-s", "vgg-11", "resnet-20", "mlp"])
def test_compacted_children_are_found_from_their_zeros(name):
    child = build(name, seed=0)
    inputs = noise(4, 3, 32, 32)
    child.train()(inputs)
    pruning = Pruning("random", 0.5, "neurons")
    Pruned(child, pruning.masks(child, pruning.subnetworks(1, 0)[0]))
    small = compacted(child.eval())
    torch.testing.assert_close(small(inputs), child(inputs), rtol=1e-5, atol=1e-5)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (small, child)]
    assert sizes[0] < 0.8 * sizes[1]
    again = compacted(small)
    assert sum(p.numel() for p in again.parameters()) == sizes[0], "nothing is left to remove"


def test_networks_whose_neurons_are_all_read_stay_whole():
    module = build("lenet-s", seed=0).eval()
    assert all_same_bits(compacted(module).state_dict(), module.state_dict())


def zeroed(layer, sparsity, seed=0):
    with torch.no_grad():
        draws = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
        layer.weight.mul_(draws >= sparsity)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 30), (7, 30), (2, 3, 30), (30,), (0, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_layers_are_linear_layers(shape, bias, dtype):
    layer = zeroed(built(lambda: nn.Linear(30, 20, bias)), 0.9).to(dtype)
    sparse = SparseLinear(layer)
    x = noise(*shape).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), layer(x), rtol=1e-5, atol=1e-5)
    assert sparse.values.numel() == int(layer.weight.count_nonzero())


def test_the_sparsest_layers_alone_become_sparse(threads, monkeypatch):
    assert type(sparse_linear(zeroed(built(lambda: nn.Linear(30, 40)), 0.99))) is nn.Linear
    monkeypatch.setattr("evo_subnets.structure.sparse_linear.LEAST_WEIGHTS", 1000)
    module = built(lambda: nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 50),
                                         nn.Sequential(nn.ReLU(), nn.Linear(50, 3))))  # fmt: skip
    zeroed(module[2], 0.99)
    zeroed(module[0], 0.6)
    before = copy.deepcopy(module.state_dict())
    sparse = sparse_linear(module)
    kinds = [type(layer) for layer in (sparse[0], sparse[2], sparse[3][1])]
    assert kinds == [nn.Linear, SparseLinear, nn.Linear]
    assert type(sparse_linear(module, least_sparsity=0.5)[0]) is SparseLinear
    assert type(sparse_linear(module.bfloat16())[2]) is nn.Linear
    module.float()
    module.load_state_dict(before)
    x = noise(40, 30)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x), module(x), rtol=1e-5, atol=1e-5)
    ensemble = beside_each_other([sparse, copy.deepcopy(sparse)])
    torch.testing.assert_close(beside(ensemble, x), in_turn(ensemble, x))
    assert type(sparse_linear(module[2])) is SparseLinear


def ran(server, script, *options):
    """What a benchmark prints."""
    return server.printed(f"benchmarks/{script}", "--threads", "1", *options)


def test_the_inference_benchmark_runs_to_its_end(server):
    text = ran(server, "inference", "--models", "lenet-s", "--batches", "1", "40", "--members", "2",
               "--rounds", "1", "--seconds", "0.01")  # fmt: skip
    assert len(re.findall(r"^lenet-s, (?:1|40) +Ensemble  .*\[[\d.]+, [\d.]+\]$", text, re.M)) == 2


def test_the_compaction_benchmark_runs_to_its_end(server):
    text = ran(server, "compaction", "--models", "lenet-s", "--batch", "2", "--rounds", "1")
    assert re.search(r"^lenet-s, 2 +compacted +[\d,]+ +[\d.]+ \[", text, re.M)


def test_packed_files_are_as_small_as_they_should_be(server):
    text = ran(server, "storage", "--model", "lenet-m", "--rounds", "1")
    smaller = re.findall(r"^\d0 % +[\d,]+ +[\d,]+ +([\d.]+)", text, re.M)
    assert [float(one) for one in smaller] == pytest.approx([1.88, 4.3, 7.6], abs=0.1)


def test_the_sparse_linear_benchmark_runs_to_its_end(server):
    text = ran(server, "sparse_linear", "--shapes", "30", "20", "--batches", "1", "3", "--rounds",
               "1", "--sparsities", "0.9")  # fmt: skip
    assert len(re.findall(r"^30 to 20, [13] +[\d.]+ \[", text, re.M)) == 2
