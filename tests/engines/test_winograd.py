"""winograd.py: the same convolution, only where it is worth it, and the passes that use it."""

import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agents.fast import impala_blocks
from evo_subnets import engines
from evo_subnets.engines import fast_convolutions, winograd
from evo_subnets.engines.fast_convolutions import fast, may_pay
from evo_subnets.engines.threads import share_out
from evo_subnets.engines.twins import twin, with_fast_convolutions
from evo_subnets.engines.winograd import convolve
from evo_subnets.models import build
from evo_subnets.prediction import predict_inputs

ROOT = Path(__file__).parents[2]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(*shape, seed=0):
    return draw(*shape, seed=seed).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("r", "height", "width"), [(3, 8, 8), (5, 14, 14), (3, 5, 11), (5, 9, 6)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_the_same_convolution(r, height, width, padding, with_bias):
    x, weight = pictures(7, 16, height, width), draw(24, 16, r, r, seed=1) / (4 * r)
    bias = draw(24, seed=2) if with_bias else None
    found = convolve(x, weight, bias=bias, padding=padding)
    wide = None if bias is None else bias.double()
    expected = F.conv2d(x.double(), weight.double(), wide, padding=padding)
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=6e-5)


@pytest.mark.parametrize(("r", "height", "width"), [(3, 8, 8), (5, 9, 9)])
def test_pictures_do_not_mix_and_chunks_do_not_matter(r, height, width):
    """Two hundred pictures are several chunks of them."""
    x, weight = pictures(200, 8, height, width), draw(8, 8, r, r, seed=1) / r
    bias = draw(8, seed=2)
    whole = convolve(x, weight, bias=bias, padding=1)
    alone = torch.cat([convolve(x[i : i + 1], weight, bias=bias, padding=1) for i in range(200)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=4e-5)
    x[57, 3, 4, 4] = float("nan")
    spoilt = convolve(x, weight, bias=bias, padding=1).isnan().flatten(1).any(1)
    assert spoilt.nonzero().tolist() == [[57]]


def test_one_source_serves_classifiers_and_impala():
    assert winograd.SOURCES[1] in impala_blocks.SOURCES
    sources = [*(ROOT / "evo_subnets").rglob("*.[ch]"), *(ROOT / "agents").rglob("*.[ch]")]
    ours = [path for path in sources if "F(4x4" in path.read_text()]
    assert ours == [winograd.SOURCES[1]]


@pytest.fixture
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("r", "height", "width"), [(3, 8, 8), (5, 14, 14), (3, 5, 11), (5, 9, 6)])
def test_its_gradients_are_the_same(r, height, width, padding):
    given = pictures(20, 16, height, width), draw(24, 16, r, r, seed=1) / (4 * r), draw(24, seed=2)
    x, weight, bias = (each.requires_grad_() for each in given)
    out = winograd.Convolution.apply(x, weight, bias, padding)
    upstream = draw(*out.shape, seed=3)
    found = torch.autograd.grad(out, (x, weight, bias), upstream)
    wide = [each.detach().double().requires_grad_() for each in given]
    expected = torch.autograd.grad(F.conv2d(*wide, padding=padding), wide, upstream.double())
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        atol = {3: 4e-5, 5: 2e-4}[r] * other.std().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=atol)


def test_only_the_gradients_that_are_asked_for_are_computed():
    x, weight = pictures(20, 16, 8, 8), draw(24, 16, 3, 3, seed=1).requires_grad_()
    out = winograd.Convolution.apply(x, weight, None, 1)
    (found,) = torch.autograd.grad(out.sum(), weight)
    assert found.shape == weight.shape
    out = winograd.Convolution.apply(x.requires_grad_(), weight.detach(), None, 1)
    (found,) = torch.autograd.grad(out.sum(), x)
    assert found.shape == x.shape


LAYERS = {
    "made for it": ({}, {}),
    "strided": ({"stride": 2}, {}),
    "dilated": ({"dilation": 2}, {}),
    "grouped": ({"groups": 2}, {}),
    "uneven borders": ({"padding": (1, 0)}, {}),
    "even kernel": ({"kernel_size": 4}, {}),
    "oblong kernel": ({"kernel_size": (3, 5)}, {}),
    "few channels": ({"out_channels": 8}, {}),
    "odd channels": ({"out_channels": 36}, {}),
    "double": ({"dtype": torch.float64}, {"dtype": torch.float64}),
    "few pictures": ({}, {"count": 2}),
    "channels first": ({}, {"layout": torch.contiguous_format}),
}


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("case", LAYERS)
def test_what_it_is_not_made_for_is_torchs(case, monkeypatch):
    called = []
    monkeypatch.setattr(
        fast_convolutions, "convolve", lambda *_, **__: called.append(1) or expected
    )
    layer, given = LAYERS[case]
    module = nn.Conv2d(**{"in_channels": 64, "out_channels": 32, "kernel_size": 3} | layer)
    x = draw(given.get("count", 32), 64, 9, 9).to(given.get("dtype", torch.float32))
    x = x.contiguous(memory_format=given.get("layout", torch.channels_last))
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(twin(module)(x), expected)
    assert len(called) == (case == "made for it")


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((32, 32, 9, 9), "expected input.* to have 64 channels"),
        ((200, 64, 1, 1), "size"),
        ((64, 9, 9), None),
    ],
)
def test_bad_shapes_are_left_to_torchs_errors(shape, message):
    x, layer = draw(*shape), twin(nn.Conv2d(64, 32, 3))
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if message is None:
        assert layer(x).shape == (32, 7, 7)
        return
    with pytest.raises(RuntimeError, match=message):
        layer(x)


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("setting", ["autocast", "no library"])
def test_where_it_must_not_go_torch_does(setting, monkeypatch):
    monkeypatch.setattr(fast_convolutions, "convolve", None)
    if setting == "no library":
        monkeypatch.setattr(fast_convolutions, "library", lambda: None)
    module, x = nn.Conv2d(64, 32, 3), pictures(32, 64, 9, 9)
    with torch.autocast("cpu", enabled=setting == "autocast"):
        assert torch.equal(fast(module)(x), module(x))


def test_twins_share_weights_and_buffers_with_the_module():
    module = build("resnet-20", seed=0).eval()
    for made in (twin(module), with_fast_convolutions(module)):
        ours, theirs = (dict(each.state_dict(keep_vars=True)) for each in (made, module))
        assert ours.keys() == theirs.keys()
        assert all(ours[name] is theirs[name] for name in ours)
        kinds = {type(layer) for layer in made.modules()}
        assert fast_convolutions.FastConv2d in kinds
    assert fast_convolutions.FastConv2d not in {type(layer) for layer in module.modules()}


@pytest.mark.usefixtures("seeded")
def test_a_module_without_such_convolutions_or_that_cannot_be_copied_has_no_twin():
    assert with_fast_convolutions(nn.Sequential(nn.Linear(3, 4), nn.Conv2d(3, 8, 3))) is None
    module = Remembering()
    module.lock = threading.Lock()
    assert twin(module) is None
    assert engines.ask_batches([module.eval()], [pictures(50, 3, 16, 16)], promised=True) is None


def test_networks_take_it_and_say_the_same(monkeypatch):
    taken = []
    monkeypatch.setattr(
        fast_convolutions,
        "convolve",
        lambda *given, **rest: taken.append(1) or convolve(*given, **rest),
    )
    for name, layers in (("lenet-m", 1), ("resnet-20", 10)):
        module, x = build(name, seed=0).eval(), pictures(100, 3, 32, 32)
        module.to(memory_format=torch.channels_last)
        with torch.no_grad():
            expected = module(x)
            taken.clear()
            found = twin(module)(x)
        assert len(taken) == layers
        assert sum(map(may_pay, module.modules())) >= layers
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("seeded")
def test_gradients_of_a_network_are_the_same():
    module = nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 32, 5))
    x = pictures(40, 32, 16, 16)
    found, expected = (
        torch.autograd.grad(each(x).square().mean(), list(module.parameters()))
        for each in (with_fast_convolutions(module), module)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.std().item())


class Remembering(nn.Module):
    """Leaves its features in an attribute on the way, as many a network does."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        self.features = F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))
        self.seen = threading.current_thread()
        return self.head(self.features)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.usefixtures("seeded")
def test_batches_on_several_threads_give_the_bits_of_one(threads):
    module = Remembering().eval()
    batches = [pictures(50, 3, 16, 16, seed=seed) for seed in range(12)] + [pictures(3, 3, 16, 16)]
    threads(1)
    expected = engines.ask_batches([module, module], batches, promised=True)
    threads(3)
    found = engines.ask_batches([module, module], iter(batches), promised=True)
    assert not hasattr(module, "seen")  # they worked on twins
    assert [each.shape for each in found] == [(2, 50, 5)] * 12 + [(2, 3, 5)]
    assert all(map(torch.equal, found, expected))
    assert all(torch.equal(*each) for each in found)
    assert torch.get_num_threads() == 3
    torch.testing.assert_close(found[0][1], module(batches[0]))


@pytest.mark.usefixtures("seeded")
def test_what_is_known_of_networks_needs_no_promise(threads):
    threads(2)
    batches = [pictures(4, 3, 32, 32, seed=seed) for seed in range(4)]
    known = build("resnet-20", seed=0).eval()
    assert len(engines.ask_batches([known], batches, promised=False)) == 4
    assert engines.ask_batches([Remembering().eval()], batches, promised=False) is None
    assert engines.ask_batches([known, Remembering().eval()], batches, promised=False) is None
    assert len(engines.ask_batches([Remembering().eval()], batches, promised=True)) == 4
    known.stages[0].train()
    assert engines.ask_batches([known], batches, promised=True) is None


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("why", ["nothing promised", "linear layers alone", "autocast", "off"])
def test_batches_go_in_turn_where_the_order_may_matter(why, threads, monkeypatch):
    threads(2)
    module, called = Remembering().eval(), []
    if why == "linear layers alone":
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 2)).eval()
    if why == "off":
        monkeypatch.setenv(engines.SWITCH, "off")
    module.register_forward_hook(lambda *_: called.append(threading.current_thread()))
    ready = [pictures(50, 3, 16, 16, seed=seed).contiguous() for seed in range(4)]
    with torch.autocast("cpu", enabled=why == "autocast"):
        found = predict_inputs(module, ready, side_by_side=why != "nothing promised")
        assert called == [threading.current_thread()] * 4
        with torch.no_grad():
            assert torch.equal(found, torch.cat([module(batch) for batch in ready]).float())


def test_a_failing_job_stops_the_others_and_is_raised():
    done = []

    def job(number):
        if number == 3:
            raise ValueError("three")
        done.append(number)

    with pytest.raises(ValueError, match="three"):
        share_out(job, iter(range(10**9)), threads=2)
    assert {0, 1, 2} <= set(done)
    assert len(done) < 10**6
