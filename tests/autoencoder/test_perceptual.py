"""LPIPS against its definition, written again here, with random weights in a file of torchvision's form."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchmetrics
from torch.nn import functional as F

from ddpm_hf.autoencoder import perceptual
from ddpm_hf.autoencoder.perceptual import LPIPS, lpips_at_hand, lpips_fits
from ddpm_hf.errors import UserError

CPU = torch.device("cpu")
WIDTHS = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512]


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path


@pytest.fixture(scope="module")
def vgg16():
    """Random weights under torchvision's names."""
    generator = torch.Generator().manual_seed(0)
    weights, index, before = {}, 0, 3
    for width in WIDTHS:
        if width == "pool":
            index += 1
            continue
        deviation = (2 / (9 * before)) ** 0.5  # keeps the activations' size
        weights[f"features.{index}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * deviation
        weights[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.1
        index, before = index + 2, width
    for index, shape in (("0", (4096, 25088)), ("3", (4096, 4096)), ("6", (1000, 4096))):
        # of no part in LPIPS; one stored number each keeps the file small
        weights[f"classifier.{index}.weight"] = torch.zeros(1).expand(shape)
        weights[f"classifier.{index}.bias"] = torch.zeros(1).expand(shape[0])
    return weights


def reference(weights, linear, x, y):
    """Zhang et al. (2018), equation 1, float64 (N,): the relu before each pooling, and the last, are compared."""

    def features(images):
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]]).view(2, 3, 1, 1)
        h = (images - shift) / scale
        index, found = 0, []
        for width in WIDTHS:
            if width == "pool":
                found.append(h)
                h, index = F.max_pool2d(h, 2), index + 1
                continue
            weight, bias = weights[f"features.{index}.weight"].double(), weights[f"features.{index}.bias"].double()
            h, index = F.relu(F.conv2d(h.double(), weight, bias, padding=1)), index + 2
        return [f / (f.square().sum(1, keepdim=True) + 1e-8).sqrt() for f in [*found, h]]

    layers = zip(linear, features(x.double()), features(y.double()), strict=True)
    return sum((w.double() * (a - b).square()).sum(1).mean((1, 2)) for w, a, b in layers)


def test_the_definition(torch_home, vgg16, monkeypatch):
    assert not lpips_at_hand()
    (torch_home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(vgg16, torch_home / "hub" / "checkpoints" / "vgg16-397923af.pth")
    assert lpips_at_hand()
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("nothing is downloaded"))
    lpips = LPIPS(CPU)

    shipped = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    shipped = torch.load(shipped, map_location="cpu")
    linear = [shipped[f"lin{layer}.model.1.weight"] for layer in range(5)]
    generator = torch.Generator().manual_seed(1)
    for channels in (3, 1):
        x, noise = torch.rand(2, 3, channels, 32, 48, generator=generator)
        x = x * 2 - 1
        y = (x + 0.2 * noise).requires_grad_()
        distance = lpips(y, x)
        assert distance.shape == (3,)
        expected = reference(vgg16, linear, x.expand(-1, 3, -1, -1), y.detach().expand(-1, 3, -1, -1))
        torch.testing.assert_close(distance.double(), expected, rtol=1e-4, atol=1e-6)
        assert (distance > 1e-3).all()
        (gradient,) = torch.autograd.grad(distance.sum(), y)
        slope = (gradient * noise).sum()
        ahead, behind = (
            reference(vgg16, linear, x.expand(-1, 3, -1, -1), (y.detach() + h * noise).expand(-1, 3, -1, -1)).sum()
            for h in (1e-4, -1e-4)
        )
        torch.testing.assert_close(slope.double(), (ahead - behind) / 2e-4, rtol=1e-2, atol=0)

    same = y.detach().requires_grad_()
    distance = lpips(same, y.detach())
    assert (distance == 0).all()
    assert torch.autograd.grad(distance.sum(), same)[0].isfinite().all()
    assert lpips(y[:1], x[:1]).shape == (1,)
    assert not any(parameter.requires_grad for parameter in lpips.net.parameters())
    assert not lpips.net.training


def test_absent_weights_are_named(torch_home):
    assert not lpips_at_hand()
    with pytest.raises(
        UserError, match=r"put https://\S+/vgg16-397923af.pth at \S+/hub/checkpoints/vgg16-397923af.pth"
    ):
        LPIPS(CPU)


def test_a_package_that_is_not_installed(torch_home, monkeypatch):
    file = perceptual.weights_file()
    file.parent.mkdir(parents=True)
    file.touch()
    assert lpips_at_hand()
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None if name == "torchvision" else True)
    assert not lpips_at_hand()


def test_asking_imports_nothing_heavy():
    code = (
        "import sys; from ddpm_hf.autoencoder.perceptual import lpips_at_hand; lpips_at_hand();"
        "print({'torchmetrics', 'torchvision', 'diffusers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(("size", "fits"), [((32, 32), True), ((64, 256), True), ((28, 28), False), ((64, 31), False)])
def test_small_images_do_not_fit(size, fits):
    assert lpips_fits(size) is fits
