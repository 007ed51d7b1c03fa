"""The published implementation's numbers (tests/golden/README.md), all of them."""

import numpy as np
import pytest
import torch
from helpers import GOLDEN, fill, golden, random_state
from torch import nn

from datafree import losses, models
from datafree.blg import label_probabilities
from datafree.data.augment import Normalize, OnlyNormalize
from datafree.data.datasets import NORMALIZATIONS
from datafree.dlw import DynamicLossWeight
from datafree.iho import HomogeneityOperator
from datafree.methods import METHODS
from datafree.models.generator import Generator, LabelGenerator
from datafree.neighbours import SlotTable
from datafree.networks.penultimate import PenultimateFeatures
from datafree.samples import Batch
from datafree.settings import Settings, resolve
from datafree.student import StudentTrainer
from datafree.synthesis import nayer
from datafree.synthesis.base import SynthesisInputs
from datafree.synthesis.cmi import contrast
from datafree.synthesis.fast_meta import FastMetaSynthesizer
from datafree.synthesis.generative import GenerativeSynthesizer
from datafree.synthesis.nayer import NayerSynthesizer

ALGORITHM = golden("algorithm.json")
KEYS = golden("state_dict_keys.json")
MODELS = golden("models.json")
HE_RESNETS = golden("he_resnet.json")
IHO = golden("iho.json")
NORMALIZE = Normalize(*NORMALIZATIONS["cifar10"])


def close(actual, expected):
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-12)


def shapes(network):
    return {key: list(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize("name", KEYS)
def test_state_dict_has_the_published_keys_and_shapes_in_order(name):
    arch, num_classes = name.split("/")
    with torch.device("meta"):
        network = models.create(arch, int(num_classes))
    assert list(shapes(network).items()) == list(KEYS[name].items())


@pytest.mark.parametrize("arch", HE_RESNETS)
def test_he_resnets_have_the_keys_of_the_public_checkpoints(arch):
    network = models.create(arch, 10)
    assert shapes(network) == HE_RESNETS[arch]["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == HE_RESNETS[arch]["params"]


@pytest.mark.parametrize("arch", MODELS)
def test_network_reproduces_logits_and_penultimate_features(arch):
    network = fill(models.create(arch, 10), "")
    images = torch.from_numpy(random_state(0).random_sample((4, 3, 32, 32)))
    features = PenultimateFeatures(network)
    with torch.no_grad(), features.capture():
        logits = network(images)
    expected = MODELS[arch]
    assert sum(p.numel() for p in network.parameters()) == expected["params"]
    close(logits, expected["logits"])
    if expected["feature_shape"]:
        assert list(features.value.shape) == expected["feature_shape"]
        close(features.value[:, :8], expected["features_first8"])


def generator_and_images():
    generator = fill(Generator(nz=256, ngf=64, img_size=32), "generator:").train()
    z = torch.from_numpy(random_state(1).standard_normal((16, 256)))
    with torch.no_grad():
        return generator, generator(z)


def test_generator_reproduces_its_images():
    generator, images = generator_and_images()
    expected = ALGORITHM["generator"]
    assert shapes(generator) == expected["state_dict"]
    close(images.mean().item(), expected["mean"])
    close(images.std().item(), expected["std"])
    close(images[:, 0, :2, :4].reshape(16, 8), expected["first8"])


def test_loss_terms():
    student = torch.from_numpy(3 * random_state(2).standard_normal((16, 10)))
    teacher = torch.from_numpy(3 * random_state(3).standard_normal((16, 10)))
    actual = {
        "kldiv_T1": losses.kldiv(student, teacher, 1),
        "kldiv_T20": losses.kldiv(student, teacher, 20),
        "jsdiv": losses.jsdiv(student, teacher),
        "class_balance": losses.class_balance(student),
        "tv_l1": losses.total_variation(generator_and_images()[1]),
        "adversarial_masked": losses.adversarial(student, teacher),
    }
    expected = ALGORITHM["criterions"]
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        close(value, expected[name])


def teacher_and_student():
    teacher = fill(models.create("wrn16_1", 10), "teacher:").requires_grad_(False)
    student = fill(models.create("wrn16_1", 10), "student:")
    mixed = {
        key: 0.97 * teacher.state_dict()[key] + 0.03 * value if value.is_floating_point() else value
        for key, value in student.state_dict().items()
    }
    student.load_state_dict(mixed)
    return teacher, student.eval()


@pytest.mark.parametrize("meta_gradient", ["fomaml", "reptile"])
def test_synthesis_calls(meta_gradient):
    teacher, student = teacher_and_student()
    generator = generator_and_images()[0]
    settings = Settings(
        g_steps=4,
        lr_g=2e-3,
        lr_z=0.01,
        bn=10,
        adv=1.33,
        warmup=2,
        bn_mmt=0.9,
        reset_l0=0,
        is_maml=int(meta_gradient == "fomaml"),
    )
    context = SynthesisInputs(teacher, student, OnlyNormalize(NORMALIZE), (3, 32, 32), torch.Generator())
    synthesizer = FastMetaSynthesizer(context, settings, generator)
    for call in ALGORITHM[f"synthesis_{meta_gradient}"]:
        z = torch.from_numpy(random_state(call["z_seed"]).standard_normal((16, 256)))
        made = synthesizer.synthesize(torch.tensor(call["targets"]), 0.5, z=z)
        for term in ("oh", "bn"):
            close(made.steps[term], [step[term] for step in call["per_step"]])
        for term, value in call["best"].items():
            close(made.losses[term], value)
        close(made.images.mean().item(), call["image_mean"])
        close(made.images.std().item(), call["image_std"])
        close(made.images[:, 0, 0, :4], call["image_first4"])
        assert made.samples.labels.tolist() == call["labels"]
        parameters = dict(generator.named_parameters())
        assert parameters.keys() == call["meta_generator"].keys()
        for name, expected in call["meta_generator"].items():
            value = parameters[name].detach()
            # The mean of thousands of values of either sign cancels: compare it on the values' scale.
            assert abs(value.mean().item() - expected["mean"]) <= 1e-6 * value.abs().mean().item()
            close(value.norm().item(), expected["l2"])
            close(value.flatten()[:3], expected["first3"])


def test_distillation_steps():
    teacher, _ = teacher_and_student()
    student = fill(models.create("wrn16_1", 10), "student:").train()
    settings = Settings(epochs=400, warmup=0, lr=0.2, momentum=0.9, weight_decay=1e-4, T=20)
    trainer = StudentTrainer(teacher, student, settings, torch.device("cpu"))
    for step in ALGORITHM["kd"]["steps"]:
        images = random_state(step["image_seed"]).random_sample((16, 3, 32, 32))
        close(trainer.lr, step["lr"])
        loss = trainer.loss(Batch(NORMALIZE(torch.from_numpy(images))))
        close(trainer.descend(loss), step["loss"])
        trainer.scheduler.step()
    state = student.state_dict()
    for name, expected in ALGORITHM["kd"]["params_after"].items():
        close(state[name].norm().item(), expected["l2"])
        scale = state[name].abs().mean().item()
        assert abs(state[name].mean().item() - expected["mean"]) <= 1e-6 * scale


@pytest.mark.parametrize("case", golden("dlw.json"))
def test_dlw_sequences(case):
    dlw = DynamicLossWeight(
        case["alpha_min"], 1.0, case["step"], case["memory_size"], case["warmup"], len(case["adv"])
    )
    alphas = []
    for epoch, losses_of_epoch in enumerate(zip(case["adv"], case["bn"], strict=True)):
        alphas.append(dlw.update(epoch))
        dlw.observe(*losses_of_epoch)
    close(alphas, case["alpha"])


@pytest.mark.parametrize("case", golden("blg.json"))
def test_blg_probabilities(case):
    close(label_probabilities(torch.tensor(case["counts"])), case["probabilities"])


@pytest.mark.parametrize("case", IHO)
def test_iho_factors_and_removals(case):
    expected = IHO[case]
    stored = np.load(GOLDEN / "iho_features.npz")
    features = [torch.from_numpy(stored[f"{case}/{k}"]) for k in range(expected["num_classes"])]
    assert [len(rows) for rows in features] == expected["sizes"]
    labels = torch.repeat_interleave(torch.tensor(expected["sizes"]))
    numbers = torch.arange(len(labels))
    operator = HomogeneityOperator(expected["num_classes"], expected["batch_size"], epochs=100)
    spread = operator.measure(SlotTable(torch.cat(features), labels, numbers, numbers))
    for label, factors in expected["lof"].items():
        actual = spread.factors[labels == int(label)][: len(factors)]
        np.testing.assert_allclose(actual, factors, rtol=1e-4)
    removed = operator.select(spread, labels)
    starts = np.cumsum([0, *expected["sizes"]])
    by_class = [(removed[labels[removed] == k] - starts[k]).tolist() for k in range(len(features))]
    assert by_class == expected["removed"]


# The other methods: `peers.json`

PEERS = golden("peers.json")
GENERATIVE = [name for name in PEERS["generative"] if name in METHODS]


def large_generator(nz):
    generator = Generator(nz=nz, ngf=64, img_size=32, start=4)
    return fill(generator, "large:").train()


def test_large_generator_reproduces_its_images():
    generator, expected = large_generator(256), PEERS["large_generator"]
    assert shapes(generator) == expected["state_dict"]
    z = torch.from_numpy(random_state(1).standard_normal((16, 256)))
    with torch.no_grad():
        images = generator(z)
    close(images.mean().item(), expected["mean"])
    close(images.std(correction=0).item(), expected["std"])
    close(images[:4, 0, :2, :4].reshape(4, 8), expected["first8"])


@pytest.mark.parametrize("method", GENERATIVE)
def test_generator_steps(method, monkeypatch):
    """Three steps of dafl, zskt, dfad and dfq, with the published weights of the loss terms."""
    teacher, student = teacher_and_student()
    expected = PEERS["generative"][method]
    settings, _ = resolve({"method": method})
    weights = {name: getattr(settings, name) for name in ("adv", "bn", "oh", "act", "balance")}
    assert weights == expected["weights"]
    assert (settings.lr_g, settings.T, METHODS[method].start) == (1e-3, 1.0, 4)
    context = SynthesisInputs(teacher, student, OnlyNormalize(NORMALIZE), (3, 32, 32), torch.Generator())
    nz = METHODS[method].nz
    synthesizer = GenerativeSynthesizer(context, settings, large_generator(nz))
    for number, step in enumerate(expected["steps"]):
        z = torch.from_numpy(random_state(60 + number).standard_normal((16, nz)))
        monkeypatch.setattr(synthesizer, "_noise", lambda *_shape, z=z: z)
        made = synthesizer.synthesize(torch.zeros(16, dtype=torch.long), settings.oh)
        for term, value in step.items():
            close(made.losses[term], value)
    weight = synthesizer.generator.l1[0].weight.detach()
    close(weight.norm().item(), expected["l1_weight_norm"])
    # The mean of thousands of values of either sign cancels: compare it on the values' scale.
    assert abs(weight.mean().item() - expected["l1_weight_mean"]) <= 1e-6 * weight.abs().mean().item()


def test_nayer_reproduces_two_calls(monkeypatch):
    expected = PEERS["nayer"]
    teacher, student = teacher_and_student()
    generator = LabelGenerator(512, 10, 40)
    assert shapes(generator) == expected["generator"]["state_dict"]
    fill(generator, "nayer:")
    given = {"method": "nayer", "warmup": 1, "synthesis_batch_size": 40, "g_steps": 4}
    settings = resolve({**given, "g_loops": 1, "gwp_loops": 1, "label_embedding": "onehot"})[0]
    context = SynthesisInputs(teacher, student, OnlyNormalize(NORMALIZE), (3, 32, 32), torch.Generator())
    made = NayerSynthesizer(context, settings, generator)
    made.table = torch.from_numpy(random_state(44).standard_normal((10, 512)))
    call = 0

    def draw_noise():
        for number, layer in enumerate(generator.le1):
            weights = random_state(100 + 10 * call + number).standard_normal((1000, 512))
            with torch.no_grad():
                layer.weight.copy_(torch.from_numpy(weights))
                layer.bias.zero_()

    monkeypatch.setattr(made, "_draw_noise", draw_noise)
    # Here the second call goes on with the first one's generator, though the warm-up is over.
    monkeypatch.setattr(nayer, "draw_as_torch", lambda *_: None)
    targets = made.targets(40, lambda count: torch.zeros(count, dtype=torch.long))
    assert targets.tolist() == [*range(10)] * 4
    for call, numbers in enumerate(expected["batches"]):  # noqa: B007 (draw_noise reads it)
        synthesis = made.synthesize(targets, 0.5)
        for name in ("total", "bn", "oh", "adv"):
            close(synthesis.steps[name], [step[name] for step in numbers["steps"]])
        lowest = numbers["steps"][numbers["best_step"]]
        close(synthesis.losses["total"], lowest["total"])
        close(synthesis.images.mean().item(), numbers["image"]["mean"])
        close(synthesis.images.std(correction=0).item(), numbers["image"]["std"])
        close(synthesis.images[:4, 0, :2, :4].reshape(4, 8), numbers["image"]["first8"])
        assert synthesis.samples.labels.tolist() == numbers["labels"]
        close(generator.l1[0].weight.norm().item(), numbers["l1_weight_norm"])


@pytest.mark.parametrize("bank", ["empty_bank", "with_bank"])
def test_cmi_contrastive_loss(bank):
    expected = PEERS["cmi_contrastive"][bank]
    new_local, new_global = (torch.from_numpy(random_state(40 + i).standard_normal((8, 24))) for i in (0, 1))
    local, whole = (torch.from_numpy(random_state(40 + i).standard_normal((12, 24))) for i in (2, 3))
    new_local.requires_grad_()
    new_global.requires_grad_()
    head = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 16))
    fill(head, "cmi_head:")
    cached = torch.cat([whole, local], 1) if bank == "with_bank" else torch.empty(0, 48, dtype=torch.float64)
    loss = contrast(head, new_global, new_local, cached, PEERS["cmi_contrastive"]["temperature"])
    loss.backward()
    close(loss.item(), expected["loss"])
    close(new_local.grad, expected["grad_local"])
    assert (new_global.grad is None) == expected["grad_global_is_zero"]
    gradients = {name: value.grad for name, value in head.named_parameters()}
    assert gradients.keys() == expected["grad_head"].keys()
    for name, numbers in expected["grad_head"].items():
        close(gradients[name].norm().item(), numbers["norm"])
        close(gradients[name].flatten()[:4], numbers["first"])
