"""Small networks of torchvision's families of classifiers and of `transformers`, from trust region
to file."""

import functools

import pytest
import torch
from networks import built, noise
from torch import nn

from evo_subnets import Ensemble, Search, evolve, parameters, search_trust_region
from evo_subnets.data import Augmentation, Images
from evo_subnets.data.downloads import import_torchvision
from evo_subnets.methods import Noisy, Pruning, Sparse
from evo_subnets.prediction import Validation, predict
from evo_subnets.pruning import Pruned
from evo_subnets.schedules import Constant
from evo_subnets.structure.compaction import compacted
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

CLASSES = 3
COLOUR = Augmentation((0.5,) * 3, (0.25,) * 3, padding=0, flip=False)


def convnext(models):
    setting = models.convnext.CNBlockConfig
    return models.ConvNeXt([setting(8, 16, 1), setting(16, None, 1)], num_classes=CLASSES)


def narrow(make):
    """With a head of few neurons in place of two layers of 4,096."""

    def made(models):
        module = make(models)
        first = next(layer for layer in module.classifier if isinstance(layer, nn.Linear))
        module.classifier = nn.Sequential(
            nn.Linear(first.in_features, 8), nn.ReLU(), nn.Linear(8, CLASSES)
        )
        return module

    return made


def vgg(models):
    layers = models.vgg.make_layers([8, "M", 8, "M", 16, "M"], batch_norm=True)
    with torch.device("meta"):  # its own head is large, and goes
        module = models.VGG(layers, init_weights=False)
    module.features = models.vgg.make_layers([8, "M", 8, "M", 16, "M"], batch_norm=True)
    module.classifier = nn.Sequential(nn.Linear(16 * 49, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    return module


def named(name):
    return lambda models: getattr(models, name)(num_classes=CLASSES)


FAMILIES = {
    "alexnet": narrow(named("alexnet")),
    "convnext": convnext,
    "densenet": lambda models: models.DenseNet(8, (2, 2), 8, num_classes=CLASSES),
    "efficientnet": named("efficientnet_b0"),
    "googlenet": lambda models: models.GoogLeNet(num_classes=CLASSES, init_weights=False),
    "maxvit": lambda models: models.MaxVit(
        (64, 64), 8, 2, [8, 16], [1, 1], 8, 0.1, num_classes=CLASSES
    ),
    "mnasnet": named("mnasnet0_5"),
    "mobilenet v2": lambda models: models.mobilenet_v2(width_mult=0.25, num_classes=CLASSES),
    "mobilenet v3": named("mobilenet_v3_small"),
    "regnet": named("regnet_y_400mf"),
    "resnet": lambda models: models.ResNet(
        models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES
    ),
    "shufflenet": named("shufflenet_v2_x0_5"),
    "squeezenet": named("squeezenet1_1"),
    "swin": lambda models: models.SwinTransformer(
        [4, 4], 8, [1, 1], [1, 2], [4, 4], num_classes=CLASSES
    ),
    "vgg": vgg,
    "vision transformer": lambda models: models.VisionTransformer(
        64, 16, 2, 2, 16, 32, num_classes=CLASSES
    ),
}
CLASSIFIERS = {"squeezenet": "classifier.1.weight", "vision transformer": "heads.head.weight"}


@functools.cache
def family(name):
    models = import_torchvision().models
    return built(lambda: FAMILIES[name](models)).eval()


def pixels():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (6, 3, 64, 64), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_noise_from_trust_region_to_file(name, threads, tmp_path):
    torch.set_num_threads(threads)
    try:
        parent, inputs = family(name), noise(3, 3, 64, 64)
        region = search_trust_region(parent, inputs, search=Search(4, 2), children=2)
        assert region.divergence == pytest.approx(0.02, rel=0.1)

        def fitness(model):
            with torch.no_grad():
                return float(model(inputs)[:, 0].sum())

        evolution = evolve(parent, fitness, search=region.search)
        assert not any(child.failed for child in evolution.children)
        ensemble = evolution.ensemble
        with torch.no_grad():
            assert ensemble(inputs).shape == (3, CLASSES)
            ensemble.save(tmp_path / "ensemble")
            loaded = Ensemble.load(tmp_path / "ensemble", parent)
            assert torch.equal(loaded(inputs), ensemble(inputs))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", FAMILIES)
def test_sparse_children_and_compaction(name):
    parent, images = family(name), Images(pixels(), torch.arange(6) % CLASSES, COLOUR)
    result = Sparse(2, tuning=Tuning(1, batch_size=6))(parent, Task(images))
    params = parameters(parent)
    first, second = (parameters(member) for member in result.ensemble.members)
    spared = [key for key in params.weights if (first[key] != 0).all() and (second[key] != 0).all()]
    assert len(spared) == 1
    assert params[spared[0]].shape[0] == CLASSES
    assert spared[0] == CLASSIFIERS.get(name, spared[0])
    pruning = Pruning("halves", structure="neurons")
    child = built(lambda: FAMILIES[name](import_torchvision().models)).eval()
    Pruned(child, pruning.masks(child, pruning.subnetworks(2, seed=0)[0]))
    with torch.no_grad():
        torch.testing.assert_close(
            compacted(child)(noise(2, 3, 64, 64)), child(noise(2, 3, 64, 64)), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_auxiliary_outputs_are_left_aside_in_training(name, size):
    models = import_torchvision().models
    module = built(lambda: getattr(models, name)(num_classes=CLASSES, init_weights=False))
    inputs, labels = noise(2, 3, size, size), torch.arange(2)
    before = {key: value.clone() for key, value in module.named_parameters()}
    tune(module, Task([(inputs, labels)]), tuning=Tuning(1, Constant(0.01), "adam"))
    moved = {key for key, value in module.named_parameters() if not value.equal(before[key])}
    assert moved == {key for key in before if not key.lower().startswith("aux")}
    if name == "inception_v3":  # slow
        return
    whole = Task([(inputs, labels)], loss=lambda found, y: sum(
        nn.functional.cross_entropy(each, y) for each in found))  # fmt: skip
    tune(module, whole, tuning=Tuning(1, Constant(0.01), "adam"))  # a loss of one's own sees all
    assert all(not value.equal(before[key]) for key, value in module.named_parameters())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_classifier_of_transformers(threads, tmp_path):
    transformers = pytest.importorskip("transformers")
    import_torchvision()  # which it imports
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12, num_labels=CLASSES,
    )  # fmt: skip
    parent = built(lambda: transformers.BertForSequenceClassification(config)).eval()
    words = torch.randint(20, (12, 7), generator=torch.Generator().manual_seed(0))
    inputs, labels = {"input_ids": words, "attention_mask": (words > 2).long()}, words[:, 0] % 3
    task = Task([(inputs, labels)], [(inputs, labels)])
    torch.set_num_threads(threads)
    try:
        tune(parent, task, tuning=Tuning(3, Constant(0.01), "adam"))
        region = search_trust_region(parent, inputs, search=Search(4, 2), children=2)
        assert region.divergence == pytest.approx(0.02, rel=0.1)
        evolution = evolve(parent, Validation(task.selection), search=region.search)
        assert not any(child.failed for child in evolution.children)
        ensemble = evolution.ensemble
        with torch.no_grad():
            each = [member(**inputs).logits.softmax(1) for member in ensemble.members]
            said = ensemble(**inputs)
            torch.testing.assert_close(said.exp(), torch.stack(each).mean(0))
            torch.testing.assert_close(predict(ensemble, task.train), said)
            ensemble.save(tmp_path / "ensemble")
            assert torch.equal(Ensemble.load(tmp_path / "ensemble", parent)(**inputs), said)
        assert Noisy(Search(4, 2))(parent, task).ensemble(**inputs).shape == (12, CLASSES)
        halves = Sparse(2, tuning=Tuning(1, Constant(0.01), "adam"))(parent, task)
        assert halves.ensemble(**inputs).shape == (12, CLASSES)
        for member in halves.ensemble.members:
            assert (member.classifier.weight != 0).all()
            query = member.bert.encoder.layer[0].attention.self.query.weight
            assert 0 < (query == 0).float().mean() < 1
    finally:
        torch.set_num_threads(1)
