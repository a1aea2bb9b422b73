"""PSNR and SSIM against their formulas in numpy; the latents' distribution against all of them at once."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from ddpm_hf.autoencoder.quality import measure_latents, psnr, reconstruct, ssim, with_scale
from ddpm_hf.codec import AutoencoderCodec
from ddpm_hf.errors import UserError


def images_and_copies(shape, noise=20.0, seed=0):
    """uint8 pictures with structure, and disturbed ones."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[2], : shape[3]]
    waves = 127 + 90 * np.sin(rng.uniform(0.2, 1, (*shape[:2], 1, 1)) * x + rng.uniform(0.2, 1, (*shape[:2], 1, 1)) * y)
    images = waves.round().clip(0, 255)
    return images, (images + rng.normal(size=shape) * noise).round().clip(0, 255)


def model_range(gray):
    return torch.tensor(gray / 127.5 - 1, dtype=torch.float32)


def ssim_reference(a, b, window, deviation):
    """Wang et al. (2004), equations 13 to 16, float64; every pixel of the image mirrored at its edges."""
    radius = window // 2
    bell = np.exp(-(np.arange(-radius, radius + 1.0) ** 2) / (2 * deviation**2))
    weights = np.outer(bell, bell) / bell.sum() ** 2

    def local(image):
        padded = np.pad(image, ((0, 0), (0, 0), (radius, radius), (radius, radius)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (window, window), axis=(2, 3))
        return (windows * weights).sum((-2, -1))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = local(a), local(b)
    variance_a, variance_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean((1, 2, 3))


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 32, 20)])
def test_psnr(shape):
    a, b = images_and_copies(shape)
    expected = 10 * np.log10(255**2 / ((a - b) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(psnr(model_range(b), model_range(a)), expected, rtol=1e-5)
    assert psnr(model_range(a), model_range(a)).tolist() == [float("inf")] * shape[0]


@pytest.mark.parametrize(
    ("shape", "window", "deviation"),
    [
        ((3, 3, 32, 32), 11, 1.5),
        ((2, 1, 11, 30), 11, 1.5),
        ((2, 1, 28, 9), 9, 1.2),
        ((4, 1, 8, 8), 7, 0.9),
        ((4, 1, 6, 6), 5, 0.6),
        ((4, 3, 4, 4), 3, 0.3),
    ],
)
def test_ssim(shape, window, deviation):
    a, b = images_and_copies(shape)
    found = ssim(model_range(b), model_range(a))
    np.testing.assert_allclose(found, ssim_reference(a, b, window, deviation), rtol=1e-4)
    assert ((found > 0) & (found < 0.999)).all()
    torch.testing.assert_close(ssim(model_range(a), model_range(a)), torch.ones(shape[0]))
    torch.testing.assert_close(ssim(model_range(a), model_range(b)), found)
    assert (ssim(model_range(images_and_copies(shape, noise=60.0)[1]), model_range(a)) < found).all()


def test_images_are_compared_as_8_bit_ones():
    a, b = images_and_copies((2, 1, 16, 16))
    x, y = model_range(a), model_range(b)
    unrounded = y + 0.4 / 127.5 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for measure in (psnr, ssim):
        torch.testing.assert_close(measure(unrounded, x), measure(y, x))


@pytest.fixture
def autoencoder():
    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=2,
        norm_num_groups=4,
    )
    with torch.no_grad():  # a posterior with a mean and a deviation that are not those of N(0, 1)
        model.quant_conv.bias.copy_(torch.tensor([3.0, -1.0, 0.5, -2.0]))
    return model


def test_reconstruct(autoencoder):
    with torch.no_grad():
        autoencoder.decoder.conv_out.weight.mul_(10)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = reconstruct(autoencoder, x)
    torch.testing.assert_close(found, reconstruct(autoencoder, x))  # nothing is drawn
    with torch.no_grad():
        mean = autoencoder.quant_conv(autoencoder.encoder(x))[:, :2]
        expected = autoencoder.decoder(autoencoder.post_quant_conv(mean))
    assert expected.abs().max() > 1
    torch.testing.assert_close(found, expected.clip(-1, 1))
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_measure_latents(autoencoder):
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = measure_latents(autoencoder, (x[start : start + 7] for start in range(0, 50, 7)))
    with torch.no_grad():
        moments = autoencoder.quant_conv(autoencoder.encoder(x)).double().numpy()
    means, variances = moments[:, :2], np.exp(moments[:, 2:])
    assert mean == pytest.approx(means.mean(), rel=1e-6)
    assert std == pytest.approx(np.sqrt(means.var() + variances.mean()), rel=1e-6)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([autoencoder.encode(x).latent_dist.sample() for _ in range(200)])
    assert mean == pytest.approx(drawn.mean().item(), abs=0.01)
    assert std == pytest.approx(drawn.std().item(), rel=0.01)


def test_latents_that_are_not_finite_are_an_error(autoencoder):
    with torch.no_grad():
        autoencoder.quant_conv.bias[0] = float("nan")
    with pytest.raises(UserError, match="latents have mean nan"):
        measure_latents(autoencoder, [torch.zeros(2, 1, 8, 8)])


def test_the_scale_is_kept_and_standardises(autoencoder, tmp_path):
    gray = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = measure_latents(autoencoder, gray.float().div(127.5).sub(1).split(16))
    assert abs(mean) > 0.3
    assert with_scale(autoencoder, mean, std) is autoencoder
    autoencoder.save_pretrained(tmp_path)
    codec = AutoencoderCodec(AutoencoderKL.from_pretrained(tmp_path))
    assert (codec.scale, codec.shift) == (1 / std, mean)
    torch.manual_seed(0)
    z = torch.stack([codec.encode(gray) for _ in range(200)])
    assert z.mean().item() == pytest.approx(0, abs=0.01)
    assert z.std().item() == pytest.approx(1, rel=0.01)
