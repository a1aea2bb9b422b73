"""The autoencoder's loss against its equations, written again here in float64, and whom each of its parts teaches."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from sklearn.datasets import load_digits
from torch.nn.parallel import DistributedDataParallel

from ddpm_hf.autoencoder import objective as module
from ddpm_hf.autoencoder.discriminator import PatchDiscriminator
from ddpm_hf.autoencoder.objective import AutoencoderObjective, AutoencoderTrainee, Terms

CPU = torch.device("cpu")


def trainee(critic=True, width=8, seed=0):
    torch.manual_seed(seed)
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(width, 2 * width),
        latent_channels=2,
        norm_num_groups=4,
        sample_size=8,
    )
    return AutoencoderTrainee(autoencoder, PatchDiscriminator(1, (8, 8)) if critic else None)


def objective(step=0, **settings):
    defaults = {
        "perceptual": "l2",
        "perceptual_weight": 0.7,
        "kl_weight": 0.3,
        "discriminator_start": 5,
        "discriminator_weight": 0.4,
    }
    return AutoencoderObjective(SimpleNamespace(**defaults | settings), lambda: step, CPU)


@pytest.fixture
def images():
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def reference(model, images, noise):
    """Each term a list of an image's values, in float64, with the weights as they are: all may have a gradient."""
    model, x = copy.deepcopy(model).double(), images.double()
    moments = model.autoencoder.quant_conv(model.autoencoder.encoder(x))
    mean, variance = moments[:, :2], moments[:, 2:].exp()
    z = mean + variance.sqrt() * noise.double()
    y = model.autoencoder.decoder(model.autoencoder.post_quant_conv(z))
    real, fake = model.discriminator(x), model.discriminator(y)
    return {
        "l1": (y - x).abs().flatten(1).sum(1) / 64,
        "l2": ((y - x) ** 2).flatten(1).sum(1) / 64,
        "kl": (mean**2 + variance - variance.log() - 1).flatten(1).sum(1) / 2,  # Kingma & Welling (2014), appendix B
        "generator": -fake.flatten(1).sum(1) / 4,
        "hinge": ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).flatten(1).sum(1) / 4 / 2,
        "y": y,
    }


def noise_of(seed, shape=(4, 2, 4, 4)):
    torch.manual_seed(seed)
    return torch.randn(shape)


def gradients(loss, model):
    found = torch.autograd.grad(loss.mean(), list(model.parameters()), retain_graph=True)
    return dict(zip((name for name, _ in model.named_parameters()), found, strict=True))


# ---- values


@pytest.mark.parametrize("step", [0, 4, 5, 100])
def test_the_loss(images, step):
    model = trainee()
    with torch.no_grad():
        model.discriminator.net[-1].bias.fill_(0.9)  # on both sides of the hinges
        model.discriminator.net[-1].weight.mul_(20)
    torch.manual_seed(3)
    loss = objective(step)(model, images)
    r = reference(model, images, noise_of(3))
    expected = r["l1"] + 0.7 * r["l2"] + 0.3 * r["kl"] / 64
    torch.manual_seed(3)
    validation = objective(step).validation(model, images)
    torch.testing.assert_close(validation.double(), expected, rtol=1e-4, atol=1e-5)
    if step >= 5:
        assert (r["hinge"] != 1).all()
        expected = expected + 0.4 * r["generator"] + r["hinge"]
    assert loss.shape == (4,)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)


def test_no_discriminator_unless_it_is_asked_for(images):
    for model in (trainee(), trainee(critic=False)):
        torch.manual_seed(3)
        loss = objective(step=10**9, discriminator_start=None)(model, images)
        torch.manual_seed(3)
        torch.testing.assert_close(loss, objective().validation(model, images))


def test_lpips_is_added_in_place_of_l2(images, monkeypatch):
    class Distance:
        def __init__(self, device):
            assert device is CPU

        def __call__(self, reconstruction, x):
            assert reconstruction.requires_grad
            assert x is images
            return (reconstruction - x).pow(4).amax((1, 2, 3))

    monkeypatch.setattr(module, "LPIPS", Distance)
    model = trainee()
    torch.manual_seed(3)
    loss = objective(perceptual="lpips")(model, images)
    r = reference(model, images, noise_of(3))
    distance = (r["y"] - images.double()).pow(4).amax((1, 2, 3))
    torch.testing.assert_close(loss.double(), r["l1"] + 0.7 * distance + 0.3 * r["kl"] / 64, rtol=1e-4, atol=1e-5)


def test_l1_l2_and_kl_by_hand():
    reconstruction = torch.tensor([0.5, -0.5, 0.0, 1.0]).view(1, 1, 2, 2)
    zero = torch.zeros(1)
    x0 = torch.tensor([0.0, 0.0, 0.0, -1.0]).view(1, 1, 2, 2)
    loss = objective()(lambda images, adversarial: Terms(reconstruction, torch.tensor([8.0]), zero, zero), x0)
    torch.testing.assert_close(loss, torch.tensor([3 / 4 + 0.7 * 4.5 / 4 + 0.3 * 8 / 4]))


def test_a_loss_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="lpips or l2, not auto"):
        objective(perceptual="auto")


# ---- gradients


def test_each_network_learns_from_its_own_loss_alone(images):
    model = trainee()
    torch.manual_seed(3)
    terms = model(images, 1.0)

    def touched(loss):
        found = torch.autograd.grad(loss.sum(), list(model.parameters()), retain_graph=True, allow_unused=True)
        names = [name for name, _ in model.named_parameters()]
        return {name.split(".")[0] for name, g in zip(names, found, strict=True) if g is not None and g.abs().max() > 0}

    assert touched(terms.generator) == {"autoencoder"}
    assert touched(terms.discriminator) == {"discriminator"}
    assert touched(terms.kl) == {"autoencoder"}
    assert touched(terms.reconstruction) == {"autoencoder"}


def test_one_backward_pass_gives_the_gradients_of_two(images):
    """Against two losses apart, each with the other network's gradient thrown away."""
    model = trainee()
    torch.manual_seed(3)
    found = gradients(objective(5)(model, images), model)
    torch.manual_seed(3)
    plain = model.autoencoder(images, sample_posterior=True).sample
    posterior = model.autoencoder.encode(images).latent_dist
    error = plain - images
    of_autoencoder = (
        error.abs().mean() + 0.7 * error.square().mean() + 0.3 * posterior.kl().mean() / 64
    ) - 0.4 * model.discriminator(plain).mean()
    of_critic = (
        torch.relu(1 - model.discriminator(images)).mean() + torch.relu(1 + model.discriminator(plain.detach())).mean()
    ) / 2
    expected = gradients(of_autoencoder, model.autoencoder), gradients(of_critic, model.discriminator)
    for name, gradient in found.items():
        network, rest = name.split(".", 1)
        torch.testing.assert_close(gradient, expected[network == "discriminator"][rest], rtol=1e-4, atol=1e-6)
    assert sum(gradient.abs().max() > 0 for gradient in found.values()) > 0.95 * len(found)


@pytest.mark.parametrize("start", [5, None])
def test_before_its_start_the_discriminator_has_gradients_of_zero(images, start):
    """Zero, not none: DistributedDataParallel waits for every parameter's."""
    model = trainee()
    calls = []
    model.discriminator.register_forward_hook(lambda *_: calls.append(1))
    loss = objective(4, discriminator_start=start)(model, images)
    found = gradients(loss, model)
    assert calls == []
    for name, gradient in found.items():
        assert gradient.isfinite().all()
        if name.startswith("discriminator."):
            assert (gradient == 0).all()


@pytest.mark.parametrize("step", [0, 5])
def test_micro_batches_have_the_whole_batchs_loss_and_gradient(images, step, monkeypatch):
    noise = noise_of(3)
    model, ours = trainee(), objective(step)
    drawn = iter([noise, noise[:2], noise[2:]])
    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, **__: next(drawn))
    whole = ours(model, images)
    parts = [ours(model, half) for half in images.split(2)]
    torch.testing.assert_close(torch.cat(parts), whole)
    expected = gradients(whole, model)
    halves = [gradients(part, model) for part in parts]
    for name, gradient in expected.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", [0, 5])
def test_only_the_networks_run_under_autocast(images, step):
    model = trainee()
    seen = {}
    model.autoencoder.encoder.register_forward_hook(lambda *a: seen.update(encoder=a[2].dtype))
    model.autoencoder.decoder.register_forward_hook(lambda *a: seen.update(decoder=a[2].dtype))
    model.discriminator.register_forward_hook(lambda *a: seen.update(critic=a[2].dtype))
    latents = []
    model.autoencoder.post_quant_conv.register_forward_pre_hook(lambda _, args: latents.append(args[0].dtype))
    torch.manual_seed(3)
    loss = objective(step)(model, images, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert set(seen.values()) == {torch.bfloat16}
    assert latents == [torch.float32]
    assert ("critic" in seen) == (step == 5)
    assert loss.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):  # as accelerate runs the whole of a prepared model's forward
        assert {term.dtype for term in model(images, 1.0)} == {torch.float32}
    torch.manual_seed(3)
    torch.testing.assert_close(loss, objective(step)(model, images), rtol=0.03, atol=0.01)
    assert all(gradient.isfinite().all() for gradient in gradients(loss, model).values())


def test_gradient_checkpointing_is_passed_on_and_changes_nothing(images):
    model = trainee().train()
    torch.manual_seed(3)
    expected = gradients(objective(5)(model, images), model)
    model.enable_gradient_checkpointing()
    assert model.autoencoder.is_gradient_checkpointing
    torch.manual_seed(3)
    loss = objective(5)(model, images)
    loss.mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    model.disable_gradient_checkpointing()
    assert not model.autoencoder.is_gradient_checkpointing


def test_distributed_data_parallel_waits_for_nothing(images, tmp_path):
    """It raises on the pass after one in which a parameter took no part."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = trainee()
        plain = copy.deepcopy(model)
        wrapped = DistributedDataParallel(model)
        for step in (4, 4, 5, 5, 4):
            for network in (wrapped, plain):
                network.zero_grad()
                torch.manual_seed(step)
                objective(step)(network, images).mean().backward()
            for a, b in zip(model.parameters(), plain.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad)
    finally:
        torch.distributed.destroy_process_group()


# ---- training


@pytest.mark.parametrize("start", [None, 40])
def test_training_on_digits_lowers_the_reconstruction_error(start):
    x = torch.tensor(load_digits().images[:512] / 8 - 1, dtype=torch.float32).unsqueeze(1)
    model = trainee(critic=start is not None, width=16)
    steps = {"taken": 0}
    settings = SimpleNamespace(
        perceptual="l2", perceptual_weight=1.0, kl_weight=1e-6, discriminator_start=start, discriminator_weight=0.1
    )
    ours = AutoencoderObjective(settings, lambda: steps["taken"], CPU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.startswith("discriminator.")}

    def error():
        torch.manual_seed(0)
        with torch.no_grad():
            return ours.validation(model, x[:128]).mean().item()

    first = error()
    for step in range(100):
        steps["taken"] = step
        if step == start:
            assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
        torch.manual_seed(step)
        loss = ours(model, x[torch.randint(len(x), (32,))])
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert error() < first / 2
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
