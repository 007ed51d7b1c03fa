"""The methods beside BSR: each loss against its formula in NumPy, and what all of them have in common."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from making import flags
from torch import nn

from datafree import losses, models
from datafree.data.augment import Augment, Normalize, OnlyNormalize
from datafree.distiller import Distiller
from datafree.evaluation import Evaluation
from datafree.methods import METHODS
from datafree.models.generator import Generator
from datafree.repository import SampleRepository
from datafree.settings import Settings
from datafree.synthesis.base import SynthesisInputs
from datafree.synthesis.cmi import CMISynthesizer, ViewDescription
from datafree.synthesis.create import create_synthesizer
from datafree.synthesis.deepinv import DeepInversionSynthesizer
from datafree.synthesis.fast_meta import FastMetaSynthesizer, FastSynthesizer
from datafree.synthesis.generative import GenerativeSynthesizer
from datafree.torch_utils.distributed import SINGLE_PROCESS
from datafree.torch_utils.random import RandomGenerators

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
NORMALIZE = Normalize(MEAN, STD)
CLASSES, N = 4, 6
TARGETS = torch.arange(N) % CLASSES


class TinyGenerator(nn.Module):
    nz, img_size = 5, 8

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(self.nz, 3 * 64)

    def forward(self, z):
        return self.linear(z).sigmoid().view(-1, 3, 8, 8)


def classifier(seed):
    """BatchNorm, then logits of all pixels; every number of it is easy to work out."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, CLASSES))
    network[0].running_mean.normal_()
    network[0].running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture
def networks():
    return classifier(0).requires_grad_(False), classifier(1)


def context(networks, rng, side=8):
    return SynthesisInputs(*networks, OnlyNormalize(NORMALIZE), (3, side, side), rng)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


def seen(network, inputs):
    """Logits, penultimate features and the distance to the BatchNorm statistics, in NumPy."""
    layer, linear = network[0], network[2]
    mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
    scaled = (inputs - mean[:, None, None]) / np.sqrt(var + layer.eps)[:, None, None]
    features = scaled.reshape(len(inputs), -1)
    logits = features @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    distance = np.linalg.norm(var - inputs.var((0, 2, 3))) + np.linalg.norm(mean - inputs.mean((0, 2, 3)))
    return logits, features, distance


def normalized(images):
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    return (images.numpy().astype(np.float64) - mean) / std


def kl(p, q):
    return (p * np.log(p / q)).sum(1)


@pytest.mark.parametrize("divergence", ["kl", "l1"])
@pytest.mark.parametrize("use_targets", [False, True])
def test_the_losses_of_dafl_zskt_dfad_and_dfq(networks, divergence, use_targets, rng):
    teacher, student = networks
    settings = Settings(
        method="dfq" if divergence == "kl" else "dfad",
        g_steps=1,
        lr_g=1e-3,
        adv=0.7,
        bn=0.3,
        act=0.05,
        balance=20.0,
        blg=use_targets,
    )
    synthesizer = GenerativeSynthesizer(context(networks, rng), settings, TinyGenerator())
    made = synthesizer.synthesize(TARGETS, 0.9)
    inputs = normalized(made.images)
    logits, features, distance = seen(teacher, inputs)
    student_logits = seen(student, inputs)[0]
    mean = softmax(logits).mean(0)
    difference = kl(softmax(logits), softmax(student_logits)).mean()
    expected = {
        "oh": cross_entropy(logits, TARGETS.numpy() if use_targets else logits.argmax(1)),
        "bn": distance,
        "adv": -difference if divergence == "kl" else -np.abs(logits - student_logits).mean(),
        "act": -np.abs(features).mean(),
        "balance": (mean * np.log(mean)).sum(),
    }
    weights = {"oh": 0.9, "bn": 0.3, "adv": 0.7, "act": 0.05, "balance": 20.0}
    expected["total"] = sum(weights[name] * value for name, value in expected.items())
    assert made.losses == pytest.approx(expected, rel=1e-4)
    assert made.samples.labels.tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(made.samples.features, features, rtol=1e-4, atol=1e-5)


def test_the_generator_of_dafl_and_its_kin_descends_its_own_loss(networks, rng):
    """The first step of Adam moves every weight by the learning rate, against its gradient."""
    teacher, student = networks
    generator = TinyGenerator()
    before = copy.deepcopy(generator)
    settings = Settings(method="dfq", g_steps=1, lr_g=1e-3, adv=1.0, bn=0.0, act=0.0, balance=0.0)
    GenerativeSynthesizer(context(networks, rng), settings, generator).synthesize(TARGETS, 0.0)
    z = torch.randn(N, 5, generator=torch.Generator().manual_seed(0))
    inputs = NORMALIZE(before(z))
    (-losses.kldiv(student(inputs), teacher(inputs))).backward()
    for new, old in zip(generator.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(new, old - 1e-3 * old.grad.sign(), rtol=0, atol=1e-5)


def test_class_balance_is_finite_where_a_class_has_no_probability_at_all():
    logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    value = losses.class_balance(logits)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.isfinite().all()


def test_the_losses_of_cmi(networks, rng):
    teacher, student = networks
    settings = Settings(method="cmi", g_steps=1, lr_g=1e-3, lr_z=1e-3, bn=0.5, adv=0.6, cr=0.8, cr_T=0.2)
    synthesizer = CMISynthesizer(context(networks, rng), settings, TinyGenerator())
    synthesizer.local_augment = lambda images, _rng: NORMALIZE(images) ** 2
    bank = np.zeros((0, 6))
    for call in range(2):
        head = copy.deepcopy(synthesizer.head)
        made = synthesizer.synthesize(TARGETS, 0.9)
        inputs = normalized(made.images)
        logits, _, distance = seen(teacher, inputs)
        student_logits = seen(student, inputs)[0]
        agree = student_logits.argmax(1) == logits.argmax(1)

        def project(views, head=head):
            hidden = views @ head[0].weight.detach().numpy().T + head[0].bias.detach().numpy()
            out = np.maximum(hidden, 0) @ head[2].weight.detach().numpy().T + head[2].bias.detach().numpy()
            return out / np.linalg.norm(out, axis=1, keepdims=True)

        local, whole = (inputs**2).mean((2, 3)), inputs.mean((2, 3))
        anchors = project(np.concatenate([local, bank[:, 3:]]))
        candidates = project(np.concatenate([whole, bank[:, :3]]))
        scores, own = anchors @ candidates.T / 0.2, np.arange(len(anchors))
        cached = cross_entropy(scores[N:], own[N:]) if call else 0
        expected = {
            "oh": cross_entropy(logits, TARGETS.numpy()),
            "bn": distance,
            "adv": -(kl(softmax(logits), softmax(student_logits)) * agree).mean(),
            "cr": cross_entropy(scores[:N], own[:N]) + cached,
        }
        weights = {"oh": 0.9, "bn": 0.5, "adv": 0.6, "cr": 0.8}
        expected["total"] = sum(weights[name] * value for name, value in expected.items())
        assert made.losses == pytest.approx(expected, rel=1e-3), f"call {call}"
        bank = np.concatenate([bank, np.concatenate([whole, local], 1)])
        np.testing.assert_allclose(synthesizer.bank.float(), bank, rtol=1e-3, atol=1e-3)


def test_cmi_describes_views_by_the_inputs_of_batchnorm_and_of_resnet34_by_those_of_its_stages():
    """A network with `layer1` to `layer4` is not taken for resnet34."""
    resnet34, resnet18 = models.create("resnet34", 4).eval(), models.create("resnet18", 4).eval()
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    for network, side in ((plain, 4), (resnet34, 32), (resnet18, 32)):
        description, inputs, seen_by = ViewDescription(network), torch.rand(2, 3, side, side), []
        layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
        if network is resnet34:
            layers = [network.layer1, network.layer2, network.layer3, network.layer4]
        for layer in layers:
            layer.register_forward_pre_hook(lambda _layer, given, seen=seen_by: seen.append(given[0].clone()))
        with torch.no_grad(), description.capture():
            network(inputs)
        expected = torch.cat([x.mean((2, 3)) for x in seen_by], 1)
        torch.testing.assert_close(description.value(), expected)
        assert network is not resnet34 or expected.shape == (2, 512)


def test_the_losses_of_deepinversion(networks, rng, monkeypatch):
    teacher, student = networks
    settings = Settings(method="deepinv", g_steps=1, lr_g=0.1, bn=2.0, adv=0.6, tv=0.5, l2=0.25)
    synthesizer = DeepInversionSynthesizer(context(networks, rng), settings)
    pixels = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(synthesizer, "_noise", lambda *shape: pixels.clone())
    monkeypatch.setattr(synthesizer, "_jitter", lambda images: images)
    made = synthesizer.synthesize(TARGETS, 0.9)
    x = pixels.numpy().astype(np.float64)
    logits, _, distance = seen(teacher, x)
    student_logits, _, student_distance = seen(student, x)
    p, q = softmax(student_logits / 3), softmax(logits / 3)
    p, q, m = (np.clip(value, 0.01, 0.99) for value in (p, q, (p + q) / 2))
    shifted = [
        x[..., :-1] - x[..., 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., :-1, :-1] - x[..., 1:, 1:],
        x[..., 1:, :-1] - x[..., :-1, 1:],
    ]
    expected = {
        "oh": cross_entropy(logits, TARGETS.numpy()),
        "bn": distance - 0.001 * student_distance,
        "adv": -(kl(m, p).mean() + kl(m, q).mean()) / 2,
        "tv": sum(np.abs(difference).mean() for difference in shifted),
        "l2": np.sqrt((x**2).sum()),
    }
    weights = {"oh": 0.9, "bn": 2.0, "adv": 0.6, "tv": 0.5, "l2": 0.25}
    expected["total"] = sum(weights[name] * value for name, value in expected.items())
    assert made.losses == pytest.approx(expected, rel=1e-4)
    images = np.clip(x * np.array(STD)[:, None, None] + np.array(MEAN)[:, None, None], 0, 1)
    np.testing.assert_allclose(made.images, images, atol=1e-5)


def test_deepinversion_stays_in_the_range_of_images_and_shifts_a_batch_as_a_whole(networks, rng):
    settings = Settings(method="deepinv", g_steps=8, lr_g=2.0, bn=1.0, adv=1.0, tv=0.0, l2=0.0)
    synthesizer = DeepInversionSynthesizer(context(networks, rng, 16), settings)
    synthesizer.flip = True
    pixels = torch.rand(2, 3, 16, 16)
    reach = range(-2, 3)
    possible = [torch.roll(pixels, (dy, dx), (2, 3)) for dy in reach for dx in reach]
    possible += [image.flip(3) for image in possible]
    found = set()
    for _ in range(40):
        jittered = synthesizer._jitter(pixels)
        matches = [i for i, image in enumerate(possible) if torch.equal(image, jittered)]
        assert matches
        found.add(matches[0])
    assert len(found) > 15
    assert max(found) >= 25 > min(found)  # mirrored at times
    seen_inputs = []
    synthesizer.image_shape = (3, 8, 8)
    synthesizer._jitter = lambda images: seen_inputs.append(images.detach().clone()) or images
    synthesizer.synthesize(TARGETS, 0.5)
    for inputs in seen_inputs[1:]:
        assert (inputs >= synthesizer.low - 1e-6).all()
        assert (inputs <= synthesizer.high + 1e-6).all()


def test_fast_optimises_the_generator_itself(networks):
    made = {}
    for meta in (False, True):
        torch.manual_seed(3)
        generator = TinyGenerator()
        settings = Settings(g_steps=2, lr_g=1e-3, lr_z=0.01, bn=1.0, adv=1.0, warmup=0, bn_mmt=0.9)
        kind = FastMetaSynthesizer if meta else FastSynthesizer
        synthesizer = kind(context(networks, torch.Generator().manual_seed(0)), settings, generator)
        before = copy.deepcopy(generator)
        made[meta] = synthesizer.synthesize(TARGETS, 0.5)
        moved = (generator.linear.weight - before.linear.weight).abs()
        # Two steps of Adam at lr_g; or one meta step at lr_g times the steps.
        assert moved.median().item() == pytest.approx(2e-3, rel=0.05)
        assert bool(synthesizer.meta_optimizer.state) == meta
    assert torch.equal(made[False].images, made[True].images)  # the same steps, of a clone or not


def test_what_teaches_the_student():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    assert losses.divergence("l1", student, teacher).item() == pytest.approx(1.25)
    p, q = (softmax(logits.numpy() / 2) for logits in (teacher, student))
    expected = 4 * kl(p, q).mean()
    assert losses.divergence("kl", student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="kl or l1"):
        losses.divergence("l2", student, teacher)


def distiller(settings, processes=SINGLE_PROCESS):
    """The method of the settings on 8 x 8 images, with networks of one layer."""
    torch.manual_seed(0)
    streams = RandomGenerators(0, rank=processes.rank)
    teacher, student = classifier(0).requires_grad_(False), classifier(1)
    augment = Augment(NORMALIZE, flip=True)
    within = SynthesisInputs(teacher, student, augment, (3, 8, 8), streams.synthesis, processes)
    shard = {"rank": processes.rank, "world_size": processes.world_size} if settings.store_samples else {}
    return Distiller(
        teacher,
        student,
        create_synthesizer(within, settings),
        SampleRepository((3, 8, 8), 192, CLASSES, **shard),
        augment,
        settings,
        streams,
        lambda network: Evaluation(50.0, 100.0, 1.0, 1, 2),
        processes,
    )


TINY = ("--epochs", 9, "--warmup", 0, "--kd_steps", 2, "--ep_steps", 4, "--batch_size", 8, "--g_steps", 2)
TINY += ("--synthesis_batch_size", 8)


@pytest.mark.parametrize("components", [False, True], ids=["alone", "with BSR on top"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_distils_and_continues_exactly_where_it_stopped(method, components):
    alone = ("--ema_generator", 0.9)
    on_top = ("--dlw", "--blg", "--iho", "--store_samples") if components else alone
    args = flags("--method", method, *TINY, *on_top)
    whole = distiller(args)
    rows = [whole.run_epoch(epoch) for epoch in range(2)]
    state = copy.deepcopy(whole.state_dict())
    rows += [whole.run_epoch(epoch) for epoch in range(2, 4)]
    continued = distiller(args)
    continued.load_state_dict(state)
    again = [continued.run_epoch(epoch) for epoch in range(2, 4)]
    for row in (*rows, *again):
        del row["seconds"]
        assert np.isfinite([row[name] for name in row if name.startswith("loss_")]).all()
    assert again == rows[2:]
    for mine, theirs in zip(whole.student.parameters(), continued.student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    stored, made = args.store_samples, 64 * (args.g_loops if method == "nayer" else 1)
    assert rows[-1]["repository"] == (made - sum(row["removed"] for row in rows) if stored else 8)
    asked = "--blg" in on_top or METHODS[method].stores
    assert all(0 <= row["hit_rate"] <= 1 if asked else row["hit_rate"] is None for row in rows)
    if components:
        assert rows[-1]["alpha"] >= 0.5
        assert whole.blg.counts.tolist() == rows[-1]["counts"]


def test_the_hit_rate_is_the_share_of_the_last_synthesis_that_got_its_class(monkeypatch):
    made = distiller(flags(*TINY))
    synthesize, asked = made.synthesizer.synthesize, []

    def half_right(targets, *args):
        asked.append(len(targets))
        one = synthesize(targets, *args)
        labels = torch.where(torch.arange(len(targets)) % 4 == 0, targets, (targets + 1) % CLASSES)
        return replace(one, samples=replace(one.samples, labels=labels))

    monkeypatch.setattr(made.synthesizer, "synthesize", half_right)
    assert made.run_epoch(0)["hit_rate"] == 0.25
    assert asked


def test_a_full_repository_drops_the_oldest_samples():
    made = distiller(flags(*TINY, "--no-iho", "--max_samples", 20))
    for epoch in range(3):
        made.run_epoch(epoch)
    assert made.repository.serials.tolist() == list(range(28, 48))


def test_methods_that_store_nothing_teach_from_fresh_samples_and_store_them_when_told():
    fresh, stored = (distiller(flags("--method", "dfq", *TINY, *more)) for more in ((), ("--store_samples",)))
    calls = []
    for one in (fresh, stored):
        original = one.synthesizer.sample
        one.synthesizer.sample = lambda count, original=original: calls.append(count) or original(count)
        one.run_epoch(0)
    assert calls == [8] * 4  # two rounds of two steps, of the first alone
    assert len(stored.repository) == 16


def test_fast_never_draws_layers_anew(networks):
    made = {}
    for kind in (FastMetaSynthesizer, FastSynthesizer):
        torch.manual_seed(3)
        generator = Generator(nz=5, ngf=2, img_size=8)
        settings = Settings(g_steps=1, lr_g=1e-9, bn=1.0, adv=0.0, warmup=0, reset_l0=1)
        synthesizer = kind(context(networks, torch.Generator().manual_seed(0)), settings, generator)
        synthesizer.calls = 119
        before = generator.l1[0].bias.detach().clone()
        synthesizer.synthesize(TARGETS, 0.5)
        made[kind] = torch.allclose(before, generator.l1[0].bias, atol=1e-6)
    assert made == {FastMetaSynthesizer: False, FastSynthesizer: True}


def test_a_second_generator_follows_the_first_and_makes_half_of_the_fresh_samples(networks, rng):
    settings = flags("--method", "zskt", *TINY, "--ema_generator", 0.75)
    made = create_synthesizer(context(networks, rng), settings)
    follower = {name: value.clone() for name, value in made.follower.named_parameters()}
    steps = []
    made.synthesize(
        TARGETS, 0.5, lambda *_: steps.append(copy.deepcopy(dict(made.generator.named_parameters())))
    )
    for after in steps:
        follower = {name: 0.75 * value + 0.25 * after[name] for name, value in follower.items()}
    for name, value in made.follower.named_parameters():
        torch.testing.assert_close(value, follower[name])
    state = rng.get_state()
    images = made.sample(5)
    rng.set_state(state)
    first, second = made._generate(3), made._generate(2, made.follower)
    assert torch.equal(images, torch.cat([first, second]))
    other = create_synthesizer(context(networks, rng), settings)
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    for name, value in other.follower.named_parameters():
        assert torch.equal(value, dict(made.follower.named_parameters())[name])
