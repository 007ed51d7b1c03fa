"""Numbers and orders that nothing else would notice: each of these has been got wrong on purpose, once."""

import copy
import math

import pytest
import torch
from making import flags, samples
from test_methods import CLASSES, NORMALIZE, TARGETS, TINY, TinyGenerator, classifier, context, distiller
from torch import nn
from torch.nn import functional as F

from datafree import losses, models
from datafree.data.augment import ASPECT, Augment, OnlyNormalize, crop_windows
from datafree.evaluation import MOST, HeldOut, evaluate
from datafree.models.generator import Generator
from datafree.synthesis import cmi
from datafree.synthesis.base import draw_weights, frozen
from datafree.synthesis.create import create_synthesizer
from datafree.torch_utils.precision import found_precision
from datafree.torch_utils.random import RandomGenerators


class Says(nn.Module):
    """Gives the same logits whatever it sees."""

    def __init__(self, *logits: float):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


@pytest.fixture
def networks():
    return classifier(0).requires_grad_(False), classifier(1)


CPU = torch.device("cpu")
GREY = torch.full((4, 3, 8, 8), 128, dtype=torch.uint8)


# Headline figures


def test_a_student_agrees_with_its_teacher_only_where_both_give_the_same_class():
    held = HeldOut((3, 8, 8), Says(0.0, 1.0), NORMALIZE, CPU)
    held.images = GREY
    assert held.evaluate(Says(0.0, 2.0)).top1 == 100
    assert held.evaluate(Says(2.0, 0.0)).top1 == 0


def test_the_fifth_class_counts_for_top_5_and_the_sixth_does_not():
    network = Says(*(6.0, 5.0, 4.0, 3.0, 2.0, 1.0))
    for label, top1, top5 in ((0, 100, 100), (4, 0, 100), (5, 0, 0)):
        scores = evaluate(network, [(GREY, torch.full((4,), label))], NORMALIZE, CPU)
        assert (scores.top1, scores.top5) == (top1, top5)


# Safety


def made_by(method, networks, rng, *more, side=8, generator=None):
    settings = flags("--method", method, *TINY, *more)
    return create_synthesizer(context(networks, rng, side), settings), settings


@pytest.mark.parametrize(
    ("name", "term"), [("act", "act"), ("balance", "balance"), ("bn", "bn"), ("oh", "oh")]
)
def test_each_weight_of_a_generative_method_weighs_its_own_term(name, term, networks, rng):
    others = [
        word for other in ("adv", "bn", "act", "balance") for word in (f"--{other}", 0) if other != name
    ]
    more = others if name == "oh" else [*others, f"--{name}", 3]
    synthesizer, _ = made_by("dafl", networks, rng, *more)
    total, terms = synthesizer._loss(torch.rand(6, 3, 8, 8), TARGETS, 3.0 if name == "oh" else 0.0)
    torch.testing.assert_close(total, 3 * terms[term])


@pytest.mark.parametrize(("name", "term"), [("tv", losses.total_variation), ("l2", losses.l2_norm)])
def test_each_prior_of_deepinversion_has_its_own_weight(name, term, networks, rng):
    zero = [word for other in ("adv", "bn", "tv", "l2") if other != name for word in (f"--{other}", 0)]
    synthesizer, _ = made_by("deepinv", networks, rng, *zero, f"--{name}", 3)
    inputs = torch.rand(6, 3, 8, 8)
    torch.testing.assert_close(synthesizer._loss(inputs, TARGETS, 0.0)[0], 3 * term(inputs))


def test_the_optimisers_have_the_published_rates(networks, rng, monkeypatch):
    made = []
    real = torch.optim.Adam

    def adam(groups, lr=1e-3, betas=(0.9, 0.999)):
        made.append(real(groups, lr, betas=betas))
        return made[-1]

    monkeypatch.setattr(torch.optim, "Adam", adam)
    generator = Generator(256, 64, 8, 3)
    synthesizer = cmi.CMISynthesizer(
        context(networks, rng), flags("--method", "cmi", *TINY, "--lr_g", 0.003, "--lr_z", 0.07), generator
    )
    synthesizer.synthesize(TARGETS, 1.0)
    head, own = made
    assert [group["lr"] for group in head.param_groups] == [0.003]
    assert [group["lr"] for group in own.param_groups] == [0.003, 0.07]
    assert own.defaults["betas"] == (0.5, 0.999)
    made.clear()
    made_by("deepinv", networks, rng, "--lr_g", 0.2)[0].synthesize(TARGETS, 1.0)
    assert (made[0].defaults["lr"], made[0].defaults["betas"]) == (0.2, (0.5, 0.99))
    made.clear()
    synthesizer, _ = made_by("bsr", networks, rng, "--lr_g", 0.003, "--lr_z", 0.07)
    synthesizer.synthesize(TARGETS, 1.0)
    assert [group["lr"] for group in made[0].param_groups] == [0.006]  # the meta step: times g_steps
    assert [group["lr"] for group in made[1].param_groups] == [0.003, 0.07]


# Synthesis


@pytest.mark.parametrize("reset", ["reset_l0", "reset_bn"])
def test_the_generator_is_drawn_anew_once_and_only_its_first_layers_or_its_batchnorm(
    reset, networks, rng, monkeypatch
):
    other = {"reset_l0": "reset_bn", "reset_bn": "reset_l0"}[reset]
    synthesizer, _ = made_by("bsr", networks, rng, f"--{reset}", 1, f"--{other}", 0, "--warmup", 3)
    drawn, real = [], synthesizer._reset_generator
    monkeypatch.setattr(synthesizer, "_reset_generator", lambda: drawn.append(synthesizer.calls))
    synthesizer.calls = 121
    for _ in range(4):
        synthesizer.synthesize(TARGETS, 1.0)
    assert drawn == [123]
    generator = synthesizer.generator
    with torch.no_grad():
        for value in generator.parameters():
            value.fill_(7.0)
    real()
    first = {"l1.0", "conv_blocks.0"}
    for name, layer in generator.named_modules():
        if not list(layer.parameters(recurse=False)):
            continue
        bn = isinstance(layer, nn.BatchNorm2d)
        if (name in first) if reset == "reset_l0" else bn:
            mean, most = (1.0, 0.021) if reset == "reset_bn" else (0.0, 0.021)
            assert abs(layer.weight.mean() - mean) < 0.01, name
            assert 0.017 < layer.weight.std() < 0.023 or len(layer.weight) < 100, name
            assert (layer.weight - mean).abs().max() < 6 * most
            assert not layer.bias.any()
        else:
            assert (layer.weight == 7).all(), name


def test_weights_are_drawn_with_the_published_moments():
    network = nn.Sequential(nn.Linear(200, 200), nn.Conv2d(40, 40, 5), nn.BatchNorm2d(5000))
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(7.0)
    draw_weights(network, torch.Generator().manual_seed(0))
    for layer, mean in zip(network, (0, 0, 1), strict=True):
        assert abs(layer.weight.mean() - mean) < 2e-3
        assert abs(layer.weight.std() - 0.02) < 1e-3
        assert not layer.bias.any()


def test_what_was_frozen_before_stays_frozen_and_what_was_in_eval_mode_in_it():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    network[0].requires_grad_(False)
    network.train()
    network[1].eval()
    with frozen(network):
        assert not any(value.requires_grad for value in network.parameters())
        assert not any(module.training for module in network.modules())
    assert [value.requires_grad for value in network.parameters()] == [False, False, True, True]
    assert [module.training for module in network] == [True, False, True]


def test_a_full_bank_forgets_its_oldest_views(networks, rng, monkeypatch):
    monkeypatch.setattr(cmi, "BANK_SIZE", 9)
    synthesizer = cmi.CMISynthesizer(
        context(networks, rng), flags("--method", "cmi", *TINY, "--cr", 0), TinyGenerator()
    )
    monkeypatch.setattr(cmi, "draw_weights", lambda *_: None)
    banks = []
    for _ in range(3):
        synthesizer.synthesize(TARGETS, 1.0)
        banks.append(synthesizer.bank.clone())
    assert [len(bank) for bank in banks] == [6, 9, 9]
    assert torch.equal(banks[1][:3], banks[0][3:])
    assert torch.equal(banks[2][:3], banks[1][6:])


def test_deepinversion_shifts_a_batch_to_all_25_places_and_mirrors_it(networks, rng):
    synthesizer, _ = made_by("deepinv", networks, rng, side=16)
    synthesizer.flip = True
    pixels = torch.arange(256.0).view(1, 1, 16, 16)
    seen = {tuple(synthesizer._jitter(pixels)[0, 0, 0, :2].tolist()) for _ in range(2000)}
    assert len(seen) == 50


def test_all_81_crops_are_drawn_about_equally_often_and_half_are_mirrored(rng):
    augment = Augment(NORMALIZE, flip=True)
    shifts = augment._pixel_shifts(81_000, rng)
    counts = torch.bincount((shifts[0] + 4) * 9 + shifts[1] + 4, minlength=81)
    assert len(counts) == 81
    assert 850 < counts.min() <= counts.max() < 1150
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4] = 1
    warped = augment.warp(image.expand(2000, -1, -1, -1), rng)
    columns = set(warped.sum((1, 2)).argmax(1).tolist())
    assert columns == set(range(8))


def test_windows_reach_both_ends_of_aspect_area_and_place():
    u = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
    (height, top), (width, left) = crop_windows(u, (0.08, 0.75))
    area = torch.tensor([0.08, 0.08, 0.75, 0.75])
    torch.testing.assert_close(height * width, area)
    ratio = torch.tensor([ASPECT[0], ASPECT[1]] * 2)
    torch.testing.assert_close(width / height, ratio)
    assert ASPECT == (3 / 4, 4 / 3)
    torch.testing.assert_close(top, torch.tensor([-1.0, -1.0, 1.0, 1.0]) * (1 - height))
    torch.testing.assert_close(left, torch.tensor([-1.0, 1.0, -1.0, 1.0]) * (1 - width))


def test_fresh_samples_are_made_in_train_mode_and_cost_no_gradient(networks, rng):
    synthesizer, _ = made_by("dfq", networks, rng)
    synthesizer.generator.eval()
    images = synthesizer.sample(6)
    assert not images.requires_grad
    assert synthesizer.generator.training
    assert 0 <= images.min() < images.max() <= 1


def test_the_mean_difference_of_logits_is_over_the_temperature():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
    assert losses.divergence("l1", a, b, 2.0) == 1.0
    kl = F.kl_div((a / 2).log_softmax(1), (b / 2).softmax(1), reduction="batchmean") * 4
    torch.testing.assert_close(losses.divergence("kl", a, b, 2.0), kl)


def test_the_global_views_of_cmi_get_no_gradient():
    anchors, candidates = (torch.rand(4, 3, requires_grad=True) for _ in range(2))
    losses.contrastive(anchors, candidates, 2, 0.1).backward()
    assert anchors.grad is not None
    assert candidates.grad is None


# The loop


def test_images_from_elsewhere_are_labelled_as_the_teacher_sees_them():
    made = distiller(flags("--method", "cmi", *TINY))
    images = (torch.rand(5, 3, 8, 8) * 255).byte()
    made.store(images)
    logits = made.teacher(NORMALIZE(images / 255))
    assert torch.equal(made.repository.labels, logits.argmax(1))
    assert torch.equal(made.repository.images(torch.arange(5)), images)
    top = logits.softmax(1).topk(2).values
    torch.testing.assert_close(made.repository.margins, top[:, 0] - top[:, 1])


def test_samples_held_out_never_train_and_are_no_more_than_their_bound():
    held = HeldOut((1, 1, 1), Says(0.0, 1.0), NORMALIZE, CPU)
    numbers = torch.arange(MOST * 8 + 160)
    images = (numbers % 256).byte().view(-1, 1, 1, 1)
    kept = []
    for part in numbers.split(7):
        some = samples(images[part], part, torch.zeros(len(part), 1))
        kept.append(held.take(some).labels)
    trained = set(torch.cat(kept).tolist())
    out = [number for number in numbers.tolist() if number not in trained]
    assert out == list(range(7, len(numbers), 8))
    assert len(held.images) == MOST == 2_000
    assert torch.equal(held.images, images[torch.tensor(out[-MOST:])])


def test_agreement_is_measured_in_the_warm_up_too_while_accuracy_waits():
    made = distiller(flags("--method", "bsr", *TINY, "--warmup", 2, "--epochs", 9))
    made.held_out = HeldOut((3, 8, 8), made.teacher, NORMALIZE, CPU)
    scored, real = [], made.evaluate
    made.evaluate = lambda network: (scored.append(1), real(network))[1]
    rows = [made.run_epoch(epoch) for epoch in range(4)]
    assert all("agreement" in row for row in rows)
    assert len(scored) == 3  # once at first, and after each of the two trained epochs
    assert len(made.held_out.images) + len(made.repository) + sum(row["removed"] for row in rows) == 4 * 16


# Networks

# Standard deviations of initial weights: He et al. for fan out or fan in, else PyTorch's own.
STARTS = [
    ("resnet20", "conv1.weight", math.sqrt(2 / (16 * 9))),
    ("resnet20", "linear.weight", math.sqrt(2 / 64)),
    ("resnet8x4", "conv1.weight", math.sqrt(2 / (32 * 9))),
    ("wrn40_2", "block3.layer.0.conv1.weight", math.sqrt(2 / (128 * 9))),
    ("vgg11", "classifier.weight", 0.01),
    ("mobilenetv2", "linear.1.weight", 0.01),
    ("mobilenetv2", "module.follow_Conv.baseConv.0.weight", math.sqrt(2 / 1280)),
]


@pytest.mark.parametrize(("arch", "key", "deviation"), STARTS)
def test_networks_start_with_the_published_deviations(arch, key, deviation):
    torch.manual_seed(0)
    weight = models.create(arch, 100).state_dict()[key]
    assert weight.std().item() == pytest.approx(deviation, rel=0.06)


def test_dropout_is_where_it_was_published():
    rates = {
        name: [layer.p for layer in models.create(name, 10).modules() if isinstance(layer, nn.Dropout)]
        for name in ("mobilenetv2", "resnet18", "wrn40_2", "vgg11", "shufflenetv2")
    }
    assert rates == {"mobilenetv2": [0.5], "resnet18": [], "wrn40_2": [], "vgg11": [], "shufflenetv2": []}


def test_larger_images_go_through_the_same_weights_as_published():
    torch.manual_seed(0)
    network = models.create("resnet20", 10).eval()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 10)
    generator = Generator(256, 64, 64, 3)
    assert generator.eval()(torch.zeros(1, 256)).shape == (1, 3, 64, 64)
    assert copy.deepcopy(generator.l1[0]).weight.shape[0] == 128 * 16 * 16


def test_students_learn_without_the_augmentation_of_a_synthesis():
    augment = Augment(NORMALIZE, flip=True, large_scale=(0.75, 1.0))
    assert augment.for_training().large_scale == (0.08, 1.0)
    assert isinstance(OnlyNormalize(NORMALIZE), Augment)
    assert classifier(0)(torch.rand(1, 3, 8, 8)).shape == (1, CLASSES)


def test_auto_is_bf16_where_the_device_computes_with_it(monkeypatch):
    cpu = torch.device("cpu")
    for able, amp in (
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "avx2": True}, "off"),
        ({}, "off"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        assert found_precision("auto", cpu) == amp
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in early versions of torch
    assert found_precision("auto", cpu) == "off"
    assert [found_precision(amp, cpu) for amp in ("off", "bf16", "fp16")] == ["off", "bf16", "fp16"]


def test_processes_draw_the_same_labels_and_all_else_differently():
    def drawn(rank):
        streams = RandomGenerators(3, rank=rank)
        return [torch.rand(4, generator=getattr(streams, name)).tolist() for name in RandomGenerators.NAMES]

    (labels, *first), (same, *other), (again, *third) = map(drawn, range(3))
    assert labels == same == again
    assert len({tuple(values) for values in (*first, *other, *third)}) == 6
