"""Latents: guided, sampled without bounds, and decoded by the autoencoder that was saved with them."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DModel, VQModel
from diffusers.models.unets.unet_2d import UNet2DOutput

from ddpm_hf.cli import main
from ddpm_hf.config import Diffusion
from ddpm_hf.diffusion.samplers import SAMPLERS, build_sampler
from ddpm_hf.diffusion.schedule import build_scheduler
from ddpm_hf.errors import UserError
from ddpm_hf.export import save_pipeline
from ddpm_hf.loading import load_pipeline
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.sampling import Sampling, draw_images, draw_strip
from tests.pipelines.test_sampler_steps import check_steps, pipeline
from tests.test_export import load_elsewhere

NAMES = {"0": "zero", "1": "one", "2": "two"}


def unet_of(channels=4, classes=3, outputs=1):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=outputs * channels, block_out_channels=(8, 8),
        norm_num_groups=4, layers_per_block=1, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, num_class_embeds=classes and classes + 1,
    ).eval()  # fmt: skip


def kl(latent_channels=4, image_channels=3, **config):
    torch.manual_seed(1)
    return AutoencoderKL(
        in_channels=image_channels, out_channels=image_channels, block_out_channels=(8, 8), norm_num_groups=4,
        latent_channels=latent_channels, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, **config,
    ).eval()  # fmt: skip


def tiny():
    torch.manual_seed(1)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), scaling_factor=0.7, shift_factor=0.2,
    ).eval()  # fmt: skip


def pipe_of(unet, vae=None, classes=3, sampler="ddim", **settings):
    trained = build_scheduler(Diffusion(num_train_timesteps=50), clip_sample=False)
    names = classes and NAMES
    pipe = ImageGenerationPipeline(unet, build_sampler(sampler, trained), vae, classes, names, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_of(channels=4, n=2):
    return torch.randn(n, channels, 8, 8, generator=torch.Generator().manual_seed(5))


def seeded(n=2):
    return [torch.Generator().manual_seed(i) for i in range(n)]


# ---- guidance


class Asked(torch.nn.Module):
    """Stands before a denoiser and keeps what it was asked."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.config, self.dtype, self.labels = unet, unet.config, torch.float32, []

    def forward(self, x, t, class_labels):
        self.labels.append(class_labels.tolist())
        return self.unet(x, t, class_labels=class_labels)


def predictions(scale, unet, labels=(2, 0)):
    pipe = pipe_of(unet)
    pipe.unet = Asked(unet)
    with torch.no_grad():
        predicted = pipe._predict(noise_of(unet.config.in_channels), torch.tensor(30), torch.tensor(labels), scale)
    return predicted, pipe.unet.labels


@pytest.mark.parametrize("outputs", [1, 2], ids=["fixed", "learned variance"])
def test_guidance_1_is_the_conditional_and_0_the_unconditional_prediction_in_one_pass(outputs):
    unet, x = unet_of(outputs=outputs), noise_of()
    for scale, labels in ((1.0, [2, 0]), (0.0, [3, 3])):  # of three classes, 3 is the null class
        with torch.no_grad():
            expected = unet(x, 30, class_labels=torch.tensor(labels)).sample
        predicted, asked = predictions(scale, unet)
        assert torch.equal(predicted, expected)
        assert asked == [labels]
    _, asked = predictions(3.0, unet)
    assert asked == [[3, 3, 2, 0]]


@pytest.mark.parametrize(("scale", "labels"), [(1.0, ["two", "zero"]), (0.0, [3, 3])])
def test_whole_runs_at_guidance_1_and_0_equal_runs_by_hand(scale, labels):
    """DDIM of five steps, whose scheduler is Diffusers' own, stepped here."""
    unet = unet_of()
    call = {"num_inference_steps": 5, "latents": noise_of(), "output_type": "latent"}
    ours = pipe_of(unet)(2, class_labels=["two", "zero"], guidance_scale=scale, **call).images
    scheduler = build_sampler("ddim", build_scheduler(Diffusion(num_train_timesteps=50), clip_sample=False))
    scheduler.set_timesteps(5)
    ids = torch.tensor([3, 3] if scale == 0 else [2, 0])
    x = noise_of()
    for t in scheduler.timesteps:
        with torch.no_grad():
            x = scheduler.step(unet(x, t, class_labels=ids).sample, t, x, use_clipped_model_output=True).prev_sample
    assert torch.equal(ours, x)
    plain = pipe_of(unet)(2, class_labels=labels, **call).images  # and those that no guidance was asked for
    assert torch.equal(ours, plain)


class Affine(torch.nn.Module):
    """A stand-in whose channels each answer a label with a slope of their own."""

    def __init__(self, config):
        super().__init__()
        self.config, self.dtype = config, torch.float32

    def forward(self, x, t, class_labels):
        slopes = torch.arange(1, self.config.out_channels + 1).view(1, -1, 1, 1) / 7
        repeats = self.config.out_channels // x.shape[1]
        return UNet2DOutput(sample=x.repeat(1, repeats, 1, 1) + slopes * (class_labels.view(-1, 1, 1, 1) + 1))


@pytest.mark.parametrize("scale", [-0.5, 0.5, 4.0])
def test_every_latent_channel_is_guided_and_no_learned_variance(scale):
    unet = unet_of(5, outputs=2)
    pipe = pipe_of(unet)
    pipe.unet, x = Affine(unet.config), noise_of(5)
    labels = torch.tensor([2, 0])
    predicted = pipe._predict(x, torch.tensor(30), labels, scale)
    conditional = pipe.unet(x, 30, labels).sample
    unconditional = pipe.unet(x, 30, torch.tensor([3, 3])).sample
    for channel in range(5):
        cond, uncond = conditional[:, channel], unconditional[:, channel]
        assert not torch.equal(cond, uncond)
        torch.testing.assert_close(predicted[:, channel], uncond + scale * (cond - uncond))
    assert torch.equal(predicted[:, 5:], conditional[:, 5:])


# ---- no bounds


def far(x0):
    return np.abs(x0).max() > 5


@pytest.mark.parametrize("way", ["built", "loaded", "swapped", "swapped twice", "swapped after loading"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_bounds_latents(sampler, way, tmp_path):
    """Against the unbounded recursion of test_sampler_steps, whose states go far outside [-1, 1]."""
    ends = {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.4, "prediction_type": "epsilon"}
    trained = build_scheduler(Diffusion(**ends), clip_sample=False)
    if way == "loaded":
        build_sampler(sampler, trained).save_pretrained(tmp_path)
        scheduler = SAMPLERS[sampler].from_pretrained(tmp_path)
    elif way == "built":
        scheduler = sampler
    else:  # as a user of Diffusers swaps them: pipe.scheduler = Other.from_config(pipe.scheduler.config)
        config = trained.config
        if way == "swapped after loading":
            trained.save_pretrained(tmp_path)
            config = type(trained).from_pretrained(tmp_path).config
        elif way == "swapped twice":
            config = SAMPLERS["unipc" if sampler != "unipc" else "ddim"].from_config(config).config
        scheduler = SAMPLERS[sampler].from_config(config)
        if sampler == "heun":  # a plain swap has evenly spaced levels, which the reference does not know
            scheduler = build_sampler("heun", scheduler)
    pipe = pipeline(scheduler, trained) if way != "built" else pipeline(sampler, trained)
    states = check_steps(pipe, sampler, "epsilon", 7, clip=False, tolerance=5e-5)
    assert np.abs(states).max() > 3
    prepared = pipe._prepare_scheduler(7).config
    assert not prepared.get("clip_sample")
    assert not prepared.get("thresholding")


# ---- decoding


def test_scale_and_shift_are_applied_once():
    vae, z = kl(scaling_factor=0.5, shift_factor=0.25), noise_of()
    seen = []
    decode = vae.decode
    vae.decode = lambda z: (seen.append(z), decode(z))[1]
    images = pipe_of(unet_of(), vae).decode((z - 0.25) * 0.5, "pt")  # latents as training makes them
    torch.testing.assert_close(torch.cat(seen), z)
    with torch.no_grad():
        torch.testing.assert_close(images, (decode(z).sample / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_an_autoencoder_without_scale_and_shift_takes_the_latents_as_they_are():
    vae, z = kl(), noise_of()
    vae.register_to_config(scaling_factor=None, shift_factor=None)
    with torch.no_grad():
        expected = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(pipe_of(unet_of(), vae).decode(z, "pt"), expected)


def test_slices_are_as_many_as_asked_and_equal_the_whole():
    vae, z = kl(), noise_of(n=7)
    sizes = []
    decode = vae.decode
    vae.decode = lambda z: (sizes.append(len(z)), decode(z))[1]
    pipe = pipe_of(unet_of(), vae)
    whole = pipe.decode(z, "pt")
    torch.testing.assert_close(pipe.decode(z, "pt", decode_batch_size=3), whole, atol=1e-5, rtol=1e-5)
    assert sizes == [7, 3, 3, 1]
    pipe(5, 1, num_inference_steps=1, decode_batch_size=2)
    assert sizes[4:] == [2, 2, 1]
    vae.enable_slicing()
    torch.testing.assert_close(pipe.decode(z, "pt"), whole, atol=1e-5, rtol=1e-5)
    vae.disable_slicing()
    vae.enable_tiling()  # the images are smaller than a tile
    torch.testing.assert_close(pipe.decode(z, "pt"), whole, atol=1e-5, rtol=1e-5)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="decode_batch_size"):
            pipe(1, 1, decode_batch_size=wrong)
    with pytest.raises(ValueError, match="'latent' is not one of pil, np, pt"):
        pipe.decode(z, "latent")


@pytest.mark.parametrize("output_type", ["pt", "np", "pil"])
@pytest.mark.parametrize("vae", [None, kl, tiny], ids=["pixels", "kl", "tiny"])
def test_latents_that_went_out_decode_to_the_same_images(vae, output_type):
    pipe = pipe_of(unet_of(4 if vae else 3), vae and vae())
    call = {"class_labels": ["one", "two"], "guidance_scale": 2.0, "num_inference_steps": 3}
    direct = pipe(2, generator=seeded(), output_type=output_type, **call).images
    latents = pipe(2, generator=seeded(), output_type="latent", **call).images
    assert latents.shape == (2, 4 if vae else 3, 8, 8)
    decoded = pipe.decode(latents, output_type)
    assert len(decoded) == 2
    for a, b in zip(direct, decoded, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_latents_that_come_in_are_the_noise_to_start_from():
    pipe = pipe_of(unet_of(), kl())
    call = {"class_labels": 1, "num_inference_steps": 3, "output_type": "pt"}
    drawn = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in seeded()])
    a, b = (pipe(2, **start, **call).images for start in ({"generator": seeded()}, {"latents": drawn}))
    assert torch.equal(a, b)
    assert a.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"need \(2, 4, 8, 8\)"):
        pipe(2, latents=torch.zeros(2, 4, 16, 16), **call)


def test_gray_images_through_three_channels():
    pipe = pipe_of(unet_of(), kl(), image_channels=1)
    call = {"class_labels": 1, "num_inference_steps": 2}
    latents = pipe(2, generator=seeded(), output_type="latent", **call).images
    with torch.no_grad():
        colours = pipe.vae.decode(latents / 0.18215).sample
    gray = pipe.decode(latents, "pt")
    assert gray.shape == (2, 1, 16, 16)
    torch.testing.assert_close(gray, (colours.mean(dim=1, keepdim=True) / 2 + 0.5).clamp(0, 1))
    assert pipe.decode(latents, "np").shape == (2, 16, 16, 1)
    assert [image.mode for image in pipe.decode(latents)] == ["L", "L"]
    assert draw_images(pipe, [0, 1], 2, Sampling("ddim", 2)).shape == (2, 1, 16, 16)


def test_an_unconditional_model_of_latents():
    pipe = pipe_of(unet_of(classes=None), tiny(), classes=None)
    assert pipe(2, num_inference_steps=2, output_type="pt").images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="class_labels given to an unconditional model"):
        pipe(2, class_labels=1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_strip_shows_decoded_states_and_ends_with_the_image(sampler):
    pipe, sampling = pipe_of(unet_of(), tiny()), Sampling(sampler, 6, guidance_scale=2.0)
    strip = draw_strip(pipe, [5, 6], sampling, columns=4)
    assert strip.shape == (2, 4, 3, 16, 16)
    np.testing.assert_array_equal(strip[:, -1], draw_images(pipe, [5, 6], 2, sampling))
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (5, 6)])
    np.testing.assert_array_equal(strip[:, 0], (pipe.decode(noise, "np") * 255).round().transpose(0, 3, 1, 2))


def test_image_i_follows_from_seed_i_whatever_the_batch():
    pipe, sampling = pipe_of(unet_of(), kl()), Sampling("ddpm", 5, guidance_scale=2.0)
    draws = [draw_images(pipe, range(3, 8), size, sampling) for size in (1, 4, 5)]
    assert all(np.abs(images.astype(int) - draws[0]).max() <= 1 for images in draws)
    assert len({image.tobytes() for image in draws[0]}) == 5


# ---- saved and loaded


CALL = {
    "batch_size": 2,
    "class_labels": ["two", "zero"],
    "guidance_scale": 3.0,
    "guidance_interval": [0.3, 5.0],
    "num_inference_steps": 4,
}
AUTOENCODERS = {
    "gray": (lambda: kl(scaling_factor=0.6, shift_factor=0.1), {"image_channels": 1}),
    "tiny": (tiny, {}),
    "unconditional": (kl, {}),
}


def test_loads_without_the_package_and_draws_the_same(tmp_path):
    calls, expected = [], []
    for name, (vae, settings) in AUTOENCODERS.items():
        classes = None if name == "unconditional" else 3
        pipe, folder = pipe_of(unet_of(classes=classes), vae(), classes, "ddpm", **settings), tmp_path / name
        save_pipeline(pipe, folder)
        index = json.loads((folder / "model_index.json").read_text())
        assert index["vae"] == ["diffusers", type(pipe.vae).__name__]
        assert index["image_channels"] == settings.get("image_channels")
        call = {k: v for k, v in CALL.items() if classes or k in ("batch_size", "num_inference_steps")}
        images = (pipe(generator=seeded(), output_type="np", **call).images * 255).round().astype(np.uint8)
        ours = load_pipeline(str(folder))
        assert not ours.vae.training
        again = ours(generator=seeded(), output_type="np", **call).images
        np.testing.assert_array_equal((again * 255).round().astype(np.uint8), images)
        calls.append((folder, True, call))
        expected.append(images)
    for (pipe, _, theirs), images in zip(load_elsewhere(calls, tmp_path), expected, strict=True):
        assert pipe == "ImageGenerationPipeline"
        assert np.abs(theirs.astype(int) - images.ravel()).max() <= 1


def test_what_was_loaded_by_diffusers_decodes_and_saves_again(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    save_pipeline(pipe_of(unet_of(), kl(), image_channels=1), tmp_path / "first")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "first", trust_remote_code=True)
    assert loaded.decode(noise_of())[0].mode == "L"
    save_pipeline(loaded, tmp_path / "second")
    for name in ("model_index.json", "vae/config.json", "image_generation.py"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_vector_quantised_autoencoder_whose_codes_have_another_width(tmp_path):
    torch.manual_seed(1)
    vae = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=3, vq_embed_dim=4, num_vq_embeddings=8)
    save_pipeline(pipe_of(unet_of(), vae.eval()), tmp_path / "saved")
    assert draw_images(load_pipeline(str(tmp_path / "saved")), [0], 1, Sampling("ddim", 2)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["diffusers", "AutoencoderNobodyKnows"], "its autoencoder, a AutoencoderNobodyKnows of diffusers, is none of"),
        (["diffusers", "UNet2DModel"], "its autoencoder, a UNet2DModel of diffusers, is none of Diffusers'"),
        (["diffusers", "models"], "is none of Diffusers'"),
        (["autoencoder", "AutoencoderKL"], "its autoencoder, a AutoencoderKL of autoencoder, is none of Diffusers'"),
        (["diffusers", "AutoencoderKLAllegro"], None),  # Diffusers', and refuses these weights by itself
    ],
)
def test_an_unknown_autoencoder_gets_one_line(entry, message, tmp_path):
    save_pipeline(pipe_of(unet_of(), kl()), tmp_path / "saved")
    index_file = tmp_path / "saved" / "model_index.json"
    index_file.write_text(json.dumps(json.loads(index_file.read_text()) | {"vae": entry}))
    (tmp_path / "saved" / "vae" / "autoencoder.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')")
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(str(tmp_path / "saved"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "it-ran").exists()


def test_a_denoiser_and_an_autoencoder_of_different_channels_are_refused(tmp_path):
    save_pipeline(pipe_of(unet_of(3), kl()), tmp_path / "saved")
    message = "its denoiser, UNet2DModel, works on 3 channels, its autoencoder, AutoencoderKL, on 4"
    with pytest.raises(UserError, match=message):
        load_pipeline(str(tmp_path / "saved"))


@pytest.mark.parametrize("of", ["pipeline folder", "run folder"])
def test_the_sample_command(of, tmp_path):
    folder = tmp_path / "run"
    save_pipeline(pipe_of(unet_of(), kl(), sampler="ddpm", image_channels=1), folder / "pipeline")
    (folder / "recipe.yaml").write_text("")
    source = str(folder if of == "run folder" else folder / "pipeline")
    options = ["--class", "two", "--guidance_scale", "2", "--num_images", "3", "--steps", "4"]
    main(["sample", source, *options, "--out", str(tmp_path / "x.npz"), "--strip", str(tmp_path / "strip.png")])
    archive = np.load(tmp_path / "x.npz")
    assert archive["images"].shape == (3, 16, 16, 1)
    assert archive["labels"].tolist() == [2, 2, 2]
    assert (tmp_path / "strip.png").is_file()
