"""What users bring, and the right answer: modules, inputs and files as one table.

A case is a function; it stands under the kind of fault that it is an example of, and its first line
says what a user expects. Every case runs with one torch thread and with two, where members and
batches may go side by side.
"""

import copy
import functools
import tempfile
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from networks import all_same_bits, built, copied, mlp, noise, normalised, tied
from torch import nn
from torch.nn.utils import prune

from evo_subnets import (
    Ensemble,
    Search,
    engines,
    evaluate,
    evolve,
    quads,
    search_trust_region,
    singles,
)
from evo_subnets.prediction import predict_members

CASES: list[Callable[[], None]] = []


def case(check: Callable[[], None]) -> Callable[[], None]:
    """Adds a row to the table."""
    assert check.__doc__, f"{check.__name__} does not say what is expected"
    CASES.append(check)
    return check


# --- Outputs and inputs ---------------------------------------------------------------------------


# --- An ensemble is its members; a child is the parent plus its mutation --------------------------


class Remembering(nn.Module):
    """A GRU policy that goes on where the last call stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)
        self.hidden = None

    def forward(self, x):
        out, self.hidden = self.gru(x[:, None], self.hidden)
        return self.head(out[:, 0])


QUADS = quads(4, 0.1, density=0.5, seed=0)


def fitness_in_both_orders(module, fitness, mutations=QUADS):
    """The fitness of each child, evaluated in this order; fails where the order matters."""
    one = evaluate(module, mutations, fitness=fitness)
    other = evaluate(module, mutations[::-1], fitness=fitness)[::-1]
    assert [child.fitness for child in one] == [child.fitness for child in other]
    return one


def summed(model):
    with torch.no_grad():
        return model(noise(6, 4)).double().sum().item()


@case
def a_policy_that_remembers_has_children_that_begin_where_the_parent_is():
    """Fitness does not depend on the order of the children; sigma 1e-9 moves nothing."""
    module = built(Remembering)
    module(noise(6, 4, seed=1))  # has seen something, with gradients
    fitness_in_both_orders(module, summed)
    region = search_trust_region(module, noise(6, 4), search=Search(4, 2), sigmas=[1e-9])
    assert region.divergence < 1e-9
    ensemble = Ensemble.from_mutations(module, QUADS, resident=False)
    first = ensemble.member_logits(noise(6, 4))
    assert torch.equal(ensemble.member_logits(noise(6, 4)), first)


def spoilt(model, number):
    """Does one of many things that a fitness should not do, and comes back."""
    with torch.no_grad():
        match number % 14:
            case 0:
                model[0] = nn.Identity()
            case 1:
                model[0].bias = None
            case 2:
                model[0].register_forward_hook(lambda *_: torch.zeros(6, 3))
            case 3:
                model.half()
            case 4:
                model.register_buffer("more", torch.ones(1))
            case 5:
                model[1].running_mean = torch.ones(5)
            case 6:
                model.train().requires_grad_(False)
            case 7:
                model[0].forward = lambda x: x.new_zeros(6, 3)
            case 8:
                del model[1]
            case 9:
                model[0].__class__ = nn.Identity
            case 10:
                model[1].running_var.data = torch.ones(3).double()
            case 11:
                model.double()[0].weight.data.zero_()
            case 12:
                model.train()(noise(6, 4))  # moves the statistics


@case
def a_fitness_that_changes_its_model_changes_no_other_child():
    """Replaced layers, hooks, buffers, types, modes and attributes are one child's own."""
    module = built(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    ).eval()
    mutations = singles(15, 0.1, density=0.5, seed=0)
    expected = [child.fitness for child in evaluate(module, mutations, fitness=summed)]
    before = copied(module.state_dict())
    done = []

    def fitness(model):
        value = summed(model)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in
                   model.parameters())  # fmt: skip
        model(noise(6, 4)).sum().backward()
        done.append(None)
        spoilt(model, len(done))
        if len(done) % 3 == 0:
            raise RuntimeError("and fails")
        return value

    children = evaluate(module, mutations, fitness=fitness)
    for number, (child, value) in enumerate(zip(children, expected, strict=True), start=1):
        assert (child.reason, child.fitness) == (None, value) or number % 3 == 0
    assert sum(child.failed for child in children) == 5
    assert all_same_bits(copied(module.state_dict()), before)


class Growing(nn.Module):
    """Has another buffer, a longer one and a count after every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(0))
        self.calls, self.kept = 0, [torch.zeros(3)]

    def forward(self, x):
        out = self.layer(x) * (1 + self.calls) + self.seen.sum() + self.kept[0]
        if not hasattr(self, "first"):
            self.register_buffer("first", out.detach())
        self.calls += 1
        self.kept[0] += 1
        self.kept.append(out)
        self.seen = torch.cat([self.seen, out.detach().mean()[None]])
        return out


@case
def buffers_that_appear_or_grow_do_not_end_a_generation():
    """Each child starts without them, and so does the trust region."""
    module = built(Growing)
    children = fitness_in_both_orders(module, summed)
    assert not any(child.failed for child in children)
    assert search_trust_region(module, noise(6, 4), search=Search(4, 2)).sigma > 0
    module(noise(6, 4))
    fitness_in_both_orders(module, summed)


def reestimated(module):
    with torch.random.fork_rng(devices=[]):  # Dropout draws
        torch.optim.swa_utils.update_bn([noise(9, 5)], module)


@case
def members_that_were_changed_are_saved_as_they_are():
    """Norms re-estimated, weights edited through `.data`, loaded, tuned; the weights buffer too."""
    changes = [
        lambda e: reestimated(e.members[1]),
        lambda e: e.members[0][0].weight.data.mul_(2),
        lambda e: e.members[2].load_state_dict(normalised(3).state_dict()),
        lambda e: e.members[3][0].bias.data.fill_(1),
        lambda e: e.members[1][1].num_batches_tracked.add_(1),
        lambda e: e.weights.copy_(torch.tensor([0.1, 0.7, 0.3, 0.0])),
        lambda e: e.members.__setitem__(0, normalised(5).eval()),
        lambda e: e.half().float(),
    ]
    for change in changes:
        ensemble = Ensemble.from_mutations(normalised(), QUADS)
        change(ensemble)
        ensemble.eval()
        loaded = saved_and_loaded(ensemble, normalised())
        assert all_same_bits(loaded.state_dict(), ensemble.state_dict())
        assert torch.equal(loaded(noise(6, 5)), ensemble(noise(6, 5)))
    plain = Ensemble.from_mutations(normalised(), QUADS)
    assert saved_and_loaded(plain, normalised()).recipe is not None
    changes[0](plain)
    with pytest.raises(ValueError, match="were changed since: they can only be saved with all"):
        plain.save("nowhere", parent_weights=False)


def saved_and_loaded(ensemble, module, **options):
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/e")
        return Ensemble.load(f"{folder}/e", module, **options)


def act(kind):
    return built(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), kind(), nn.Flatten(),
                                       nn.Linear(512, 16)))  # fmt: skip


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body, self.scale = act(nn.ReLU), scale

    def forward(self, x):
        return self.scale * self.body(x)


def same_as_in_turn(members, x):
    """Side by side what they say in turn, more than once."""
    ensemble = Ensemble(members, side_by_side=True)
    for _ in range(2):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = torch.stack([member(x) for member in copy.deepcopy(ensemble).members])
            torch.manual_seed(0)
            torch.testing.assert_close(ensemble.member_logits(x), expected, rtol=1e-4, atol=1e-4)


@case
def members_that_may_go_side_by_side_do():
    """Where there are two threads: of torch's layers, and of code that was tried."""
    x = noise(64, 3, 8, 8)
    for members in ([act(nn.ReLU) for _ in range(4)], [Scaled(2.0) for _ in range(4)]):
        ensemble = Ensemble(members, side_by_side=True)
        with torch.no_grad():
            found = engines.ask_members(ensemble.members, (x,))
        assert (found is not None) == (torch.get_num_threads() > 1 and engines.turned_on())


@case
def members_of_other_code_or_attributes_say_what_they_say():
    """Each member's own activation and its own plain attribute, side by side."""
    x = noise(64, 3, 8, 8)
    same_as_in_turn([act(nn.ReLU), act(nn.Tanh), act(nn.GELU), act(nn.Sigmoid)], x)
    same_as_in_turn([Scaled(scale) for scale in (1.0, 2.0, -1.0, 0.0)], x)


@case
def weights_edited_through_data_answer_at_once():
    """After a first call, side by side and as recipes; replaced layers and new hooks as well."""
    x = noise(64, 3, 8, 8)
    members = [act(nn.ReLU) for _ in range(4)]
    same_as_in_turn(members, x)
    members[0][0].weight.data.mul_(2)
    same_as_in_turn(members, x)
    ensemble = Ensemble(members, side_by_side=True)
    with torch.no_grad():
        for change in (
            lambda: members[1].__setitem__(1, nn.Softmax(dim=0)),
            lambda: members[1].__setitem__(1, nn.ReLU()),
            lambda: members[2].register_forward_hook(lambda module, inputs, out: out + out.mean(0)),
        ):
            ensemble(x)
            change()
            expected = torch.stack([member(x) for member in members])
            torch.testing.assert_close(ensemble.member_logits(x), expected)


@case
def tied_weights_stay_tied_everywhere():
    """In members, kept or resident, in files, and side by side."""
    for resident in (True, False):
        ensemble = Ensemble.from_mutations(tied(), QUADS, resident=resident)
        loaded = saved_and_loaded(ensemble, tied(3), restore=True, resident=resident)
        assert torch.equal(loaded(noise(6, 5)), ensemble(noise(6, 5)))
    whole = saved_and_loaded(Ensemble([tied(0), tied(1)]), tied(3))
    assert all(member.second.weight is member.first.weight for member in whole.members)
    apart = tied(1)
    apart.second.weight = nn.Parameter(noise(5, 5))
    with pytest.raises(ValueError, match=r"two weights for first\.weight and second"):
        saved_and_loaded(Ensemble([apart]), tied())


@case
@torch.no_grad()
def parametrized_convolutions_have_children():
    """weight_norm and spectral_norm, of today and of before, and torch.nn.utils.prune."""
    new, old = nn.utils.parametrizations, nn.utils
    x = noise(40, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for wrap in (
            new.weight_norm, new.spectral_norm, old.weight_norm, old.spectral_norm,
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        ):  # fmt: skip
            module = built(lambda wrap=wrap: nn.Sequential(
                wrap(nn.Conv2d(3, 32, 3)), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(1152, 3))
            ))  # fmt: skip
            with torch.random.fork_rng(devices=[]):
                torch.enable_grad()(module)(x)  # leaves tensors with a history
            module.eval()
            ensemble = Ensemble.from_mutations(module, QUADS)
            assert (ensemble.member_logits(x) != module(x)).any(dim=-1).all()
            kept = Ensemble.from_mutations(module, QUADS, resident=False)
            assert torch.equal(kept(x), ensemble(x))
            loaded = saved_and_loaded(ensemble, module)
            assert torch.equal(loaded(x), ensemble(x))
            same_as_in_turn(list(ensemble.members), x)
            assert search_trust_region(module, x, search=Search(4, 2)).sigma > 0


class WithState(nn.Module):
    def __init__(self, state) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(4, 3), state

    def forward(self, x):
        return self.layer(x)

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


@case
def extra_state_is_kept_or_named():
    """JSON and tensors go through files; what is neither is named, and needs no file."""
    for state in ({"version": 2, "names": ["a"]}, torch.ones(3), None, "text"):
        module = built(lambda state=state: WithState(state))
        loaded = saved_and_loaded(Ensemble.from_mutations(module, QUADS), module)
        assert (loaded.members[0].state == state) is not False
        whole = saved_and_loaded(Ensemble([module]), built(lambda: WithState({})))
        assert whole.members[0].state == state if not torch.is_tensor(state) else True
        assert len(evolve(module, summed, search=Search(4, 2, 0.1)).elites) == 2
    odd = built(lambda: WithState({1, 2}))
    ensemble = Ensemble.from_mutations(odd, QUADS)
    with pytest.raises(ValueError, match="_extra_state is neither a tensor nor JSON"):
        ensemble.save("nowhere")


class Holding(nn.Module):
    def __init__(self, held) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(4, 3), held

    def forward(self, x):
        return self.layer(x)


@case
def what_cannot_be_copied_is_named():
    """A lock, a file, a generator function, a closure over the module, sparse or lazy weights."""
    closure = built(lambda: Holding(None))
    closure.held = lambda: closure.layer.weight
    cached, hooked = built(lambda: Holding(None)), built(lambda: Holding([]))
    cached.held = functools.lru_cache(lambda: cached.layer.weight.sum())
    hooked.layer.register_forward_hook(lambda layer, inputs, out: hooked.held.append(out))
    sparse = built(lambda: Holding(None))
    sparse.layer.weight = nn.Parameter(sparse.layer.weight.detach().to_sparse())
    with open(__file__) as file:
        for inner, message in [
            (built(lambda: Holding(threading.Lock())), "held of layer 1 .Holding., a lock, cannot"),
            (built(lambda: Holding({"log": [file]})), "held of layer 1 .Holding., a dict, cannot"),
            (built(lambda: Holding(iter(x for x in ()))), "a generator, cannot be copied"),
            (closure, "held of layer 1 .Holding. is or has a function that holds the"),
            (cached, "held of layer 1 .Holding. is or has a function that holds the module"),
            (hooked, "_forward_hooks of layer 1.layer .Linear. is or has a function"),
            (sparse, r"weight of layer 1.layer .Linear. is torch.sparse_coo.*to_dense"),
            (nn.LazyLinear(3), "layer 1 .LazyLinear. does not know its shape yet"),
        ]:
            module = nn.Sequential(built(lambda: nn.Linear(4, 4)), inner)
            refused_everywhere(module, message, include=["0.weight"])


def refused_everywhere(module, message, include=None):
    with pytest.raises(ValueError, match=message):
        Ensemble.from_mutations(module, QUADS, include=include)
    with pytest.raises(ValueError, match=message):
        Ensemble.from_mutations(module, QUADS, include=include, resident=False)
    with pytest.raises(ValueError, match=message):
        evaluate(module, QUADS, fitness=summed, include=include)
    with pytest.raises(ValueError, match=message):
        search_trust_region(module, noise(6, 4), search=Search(4, 2, include=include))


@case
def weights_without_values_or_precision_are_named():
    """Quantized layers, the meta device, float8, and weights that are not finite."""
    for value in (torch.inf, -torch.inf, torch.nan):
        module = built(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))
        module[1].weight.data[1, 2] = value
        refused_everywhere(module, "1.weight of the parent is not finite")
    refused_everywhere(nn.Linear(4, 3, device="meta"), "weight of the Linear is on the meta device")
    coarse = built(lambda: nn.Linear(4, 3)).requires_grad_(False)
    coarse.weight.data = coarse.weight.data.to(torch.float8_e4m3fn)
    refused_everywhere(coarse, "weight is torch.float8_e4m3fn, which is too coarse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(
            built(lambda: nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 3, 1))), {nn.Linear}
        )
    refused_everywhere(quantized, "layer 0 .Linear. is quantized")


@case
def files_go_from_one_precision_to_another():
    """Members are rounded to the module's types; without restore the type is named."""
    ensemble = Ensemble.from_mutations(mlp(), QUADS)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        loaded = saved_and_loaded(ensemble, mlp(3).to(dtype), restore=True)
        for member, original in zip(loaded.members, ensemble.members, strict=True):
            rounded = copy.deepcopy(original).to(dtype)
            assert all_same_bits(member.state_dict(), rounded.state_dict())
        again = saved_and_loaded(loaded, mlp().to(dtype))
        assert all_same_bits(again.state_dict(), loaded.state_dict())
        whole = saved_and_loaded(Ensemble([mlp(1).to(dtype)]), mlp(2))
        assert all_same_bits(whole.members[0].state_dict(), mlp(1).to(dtype).float().state_dict())
        with pytest.raises(ValueError, match=f"weight is torch.float32 there and {dtype} in this"):
            saved_and_loaded(ensemble, mlp().to(dtype))
        with pytest.raises(ValueError, match=rf"torch.float32 there and {dtype}.*resident=True"):
            saved_and_loaded(ensemble, mlp().to(dtype), restore=True, resident=False)


@case
def members_of_several_architectures_save_and_load():
    """One module for each member; another number, or one for all, is said in a sentence."""
    wide = built(lambda: nn.Linear(5, 3), 1)
    ensemble = Ensemble([mlp(), wide, normalised()], weights=[1, 2, 3])
    loaded = saved_and_loaded(ensemble, [mlp(1), copy.deepcopy(wide), normalised(2)])
    assert torch.equal(loaded(noise(6, 5)), ensemble(noise(6, 5)))
    with pytest.raises(ValueError, match=r"member 2; members of several need a module for each"):
        saved_and_loaded(ensemble, mlp())
    with pytest.raises(ValueError, match="holds 3 members: give one module for all, or one for"):
        saved_and_loaded(ensemble, [mlp(), wide])
    with pytest.raises(ValueError, match=r"another architecture.*member 1"):
        saved_and_loaded(ensemble, [wide, mlp(), normalised()])
    with pytest.raises(ValueError, match="mutations of one parent: give that one module, got 2"):
        saved_and_loaded(Ensemble.from_mutations(mlp(), QUADS), [mlp(), mlp()])
    with pytest.raises(ValueError, match="holds members with all their weights, no recipes"):
        saved_and_loaded(ensemble, mlp(), resident=False)


@case
def interrupts_pass_through():
    """KeyboardInterrupt and its kin end an evaluation; on workers: tests/workers."""
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):

        def fitness(model, kind=kind):
            raise kind("enough")

        with pytest.raises(kind, match="enough"):
            evaluate(mlp(), QUADS, fitness=fitness)


class Rows(nn.Module):
    """Any code over a convolution, so that members are worth a thread each."""

    def __init__(self, then) -> None:
        super().__init__()
        self.convolution, self.then = nn.Conv2d(3, 8, 3), then
        self.more = nn.Parameter(torch.zeros(10_000))  # to be worth threads

    def forward(self, x):
        return self.then(self.convolution(x).flatten(1)[:, :40])


class Code(nn.Module):
    def __init__(self, code) -> None:
        super().__init__()
        self.code, self.count, self.last = code, 0, None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        return self.code(self, x)


def counting(self, x):
    self.count += 1
    return x + self.count


def buffering(self, x):
    self.calls += 1
    return x + self.calls


def remembering(self, x):
    last, self.last = self.last, x
    return x if last is None else x + last.mean()


def time_first(make):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make()

        def forward(self, x):
            x = x.reshape(len(x), 4, 10)
            out = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else (
                self.layer(x))  # fmt: skip
            return out[0] if isinstance(out, tuple) else out

    return Last


MIXING = [
    lambda: nn.BatchNorm1d(40, track_running_stats=False),
    lambda: nn.Softmax(dim=0),
    lambda: nn.Sequential(
        nn.Unflatten(1, (10, 2, 2)), nn.BatchNorm2d(10, track_running_stats=False)
    ),
    *(time_first(lambda make=make: make(10, 10)) for make in (nn.LSTM, nn.GRU, nn.RNN)),
    time_first(lambda: nn.MultiheadAttention(10, 2)),
    time_first(lambda: nn.TransformerEncoderLayer(10, 2, 16)),
    time_first(lambda: nn.LSTM(10, 10, batch_first=True)),
    time_first(lambda: nn.TransformerEncoderLayer(10, 2, 16, batch_first=True)),
    *(
        lambda code=code: Code(code)
        for code in (
            lambda self, x: x - x.mean(0),
            lambda self, x: x * len(x),
            lambda self, x: x.flip(0),
            lambda self, x: x.cumsum(0),
            lambda self, x: x + torch.randn(40),
            lambda self, x: nn.functional.dropout(x, 0.5),
            lambda self, x: x.softmax(-1) @ self.calls.new_ones(40, 3),
            lambda self, x: x if len(x) == 64 else -x,
            counting, buffering, remembering,
        )
    ),
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(40, 3)),
]  # fmt: skip


def keeping(self, x):
    self.last = x
    return x


@case
def members_that_keep_what_they_see_keep_all_of_it():
    """Features in an attribute are those of the whole batch, as in turn."""
    members = [built(lambda: Rows(Code(keeping)), seed) for seed in range(4)]
    ensemble = Ensemble(members, side_by_side=True)
    with torch.no_grad():
        ensemble(noise(64, 3, 8, 8))
    assert all(member.then.last.shape == (64, 40) for member in members)


@case
def members_say_side_by_side_what_they_say_in_turn():
    """Whatever they are: batch statistics, time-first layers, state, random numbers, own code."""
    x = noise(64, 3, 8, 8)
    for make in MIXING:
        members = [built(lambda make=make: Rows(make()), seed).eval() for seed in range(4)]
        same_as_in_turn(members, x)
        data = [(batch, torch.zeros(16)) for batch in x.split(16)]
        with torch.random.fork_rng(devices=[]):
            ensembles = [Ensemble(copy.deepcopy(members)) for _ in range(2)]
            torch.manual_seed(0)
            expected = predict_members(ensembles[0], data)
            torch.manual_seed(0)
            found = predict_members(ensembles[1], data, side_by_side=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- What is a weight -----------------------------------------------------------------------------


# --- Simulators, agents, folders of pictures, devices, seeds --------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_what_users_expect(check, threads):
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(1)
