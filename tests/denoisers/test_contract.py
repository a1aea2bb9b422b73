"""What every denoiser promises, whatever it is made of. UNet2DModel is the reference."""

import ast
import inspect
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file

from ddpm_hf.denoisers.das import Das
from ddpm_hf.denoisers.jones import Jones
from ddpm_hf.denoisers.luu import Luu
from ddpm_hf.denoisers.peng import Peng
from ddpm_hf.denoisers.tefiang import Tefiang

# class, the settings of a small instance, and what its images' sides must be a multiple of
OURS = {
    "jones": (Jones, {"base_channels": 8}, 8),
    "peng": (Peng, {"base_channels": 8, "time_embed_dim": 16}, 4),
    "das": (
        Das,
        {"base_channels": 8, "channel_multipliers": (1, 2), "layers_per_block": 1, "attention_levels": (1,)},
        2,
    ),
    "luu": (Luu, {"base_channels": 8, "channel_multipliers": (1, 2)}, 2),
    "tefiang": (
        Tefiang,
        {
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 8,
            "attention_levels": (1,),
            "global_context_levels": (0,),
            "cross_resolution_attention": True,
        },
        2,
    ),
}
REFERENCE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
FILES = sorted(set(Path(inspect.getfile(Jones)).parent.glob("*.py")))

every = pytest.mark.parametrize("kind", ["unet2d", *OURS])
ours = pytest.mark.parametrize("kind", OURS)


def make(kind, num_classes=None, in_channels=3, out_channels=3):
    """A small model; its weights are moved off their initial values, some of which are zero."""
    torch.manual_seed(0)
    # by name: Diffusers drops what was given by position from a config that is used again in memory
    common = {"sample_size": 16, "in_channels": in_channels, "out_channels": out_channels}
    if kind == "unet2d":
        labels = {} if num_classes is None else {"num_class_embeds": num_classes + 1}
        model = UNet2DModel(**common, **REFERENCE, **labels)
    else:
        denoiser, settings, _ = OURS[kind]
        model = denoiser(**common, num_classes=num_classes, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def noise(n=2, channels=3, height=16, width=16):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(1))


def call(model, *inputs, **kwargs):
    with torch.no_grad():
        return model(*inputs, **kwargs).sample


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def raised(error):
    """The message, which is one line."""
    assert str(error.value).count("\n") == 0
    return str(error.value)


# Call


@every
def test_the_same_call_gives_the_same_bits_as_a_tuple_too(kind):
    model, x = make(kind), noise()
    first = call(model, x, 7)
    assert first.shape == x.shape and first.isfinite().all() and first.std() > 0
    assert torch.equal(first, call(model, x, 7))
    with torch.no_grad():
        (as_tuple,) = model(x, 7, return_dict=False)
    assert torch.equal(first, as_tuple)


@every
def test_timesteps_of_every_form_are_the_same(kind):
    model, x = make(kind), noise()
    expected = call(model, x, 7)
    for t in (
        7.0,
        torch.tensor(7),
        torch.tensor(7.0),
        torch.tensor([7]),
        torch.tensor([7, 7]),
        torch.tensor([7.0, 7.0]),
    ):
        assert torch.equal(call(model, x, t), expected), t
    assert torch.equal(call(model, x, torch.tensor([7, 7], dtype=torch.int32)), expected)
    assert not torch.allclose(call(model, x, 8), expected, atol=1e-6)


@every
def test_each_image_has_its_own_timestep(kind):
    model, x = make(kind), noise()
    both = call(model, x, torch.tensor([3, 900]))
    close(both, torch.cat([call(model, x[:1], 3), call(model, x[1:], 900)]))


@ours
def test_timesteps_between_the_integers_are_not_rounded(kind):
    """Heun's. UNet2DModel cuts off the fraction of a number, though not of a tensor; these do neither."""
    model, x = make(kind), noise()
    between = call(model, x, torch.tensor(7.5))
    assert torch.equal(call(model, x, 7.5), between)
    for t in (7, 8):
        assert not torch.allclose(between, call(model, x, t), atol=1e-6)


@every
@pytest.mark.parametrize(("in_channels", "out_channels"), [(1, 1), (3, 6), (4, 8)])
def test_channels_and_sides(kind, in_channels, out_channels):
    model = make(kind, in_channels=in_channels, out_channels=out_channels)
    assert call(model, noise(1, in_channels, 16, 24), 7).shape == (1, out_channels, 16, 24)


@ours
def test_a_side_that_cannot_be_halved_is_refused(kind):
    model, factor = make(kind), OURS[kind][2]
    call(model, noise(1, 3, factor, 3 * factor), 7)
    for height, width in ((16, 16 + factor // 2), (16 + factor // 2, 16)):
        with pytest.raises(ValueError) as error:
            call(model, noise(1, 3, height, width), 7)
        message = raised(error)
        assert f"{height}x{width}" in message and str(factor) in message


@every
def test_channels_last_is_the_same(kind):
    model, x = make(kind), noise()
    expected = call(model, x, 7)
    close(call(model, x.to(memory_format=torch.channels_last), 7), expected)
    close(call(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), 7), expected)


# Labels


@every
def test_labels_for_a_model_without_labels_are_refused(kind):
    with pytest.raises(ValueError) as error:
        call(make(kind), noise(), 7, torch.tensor([0, 1]))
    raised(error)


@every
def test_labels_matter_and_do_not_mix(kind):
    model, x = make(kind, num_classes=3), noise(1).expand(4, -1, -1, -1)
    labels = torch.arange(4)  # the last is the null class
    images = call(model, x, 7, labels)
    for i in range(4):
        close(images[i : i + 1], call(model, x[:1], 7, labels[i : i + 1]))
        for j in range(i):
            assert not torch.allclose(images[i], images[j], atol=1e-4)


@ours
def test_no_labels_are_the_null_class(kind):
    model, x = make(kind, num_classes=3), noise()
    assert torch.equal(call(model, x, 7), call(model, x, 7, torch.tensor([3, 3])))


@pytest.mark.parametrize("kind", [kind for kind in OURS if kind != "tefiang"])  # whose null class has tokens
def test_the_null_class_adds_nothing(kind):
    """A model without labels, with the same weights, gives what the null class gives."""
    labelled, plain = make(kind, num_classes=3), make(kind)
    weights = labelled.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    assert set(weights) > set(plain.state_dict())
    close(call(labelled, noise(), 7), call(plain, noise(), 7))


@ours
def test_a_label_beyond_the_null_class_is_an_error(kind):
    with pytest.raises((IndexError, ValueError)):
        call(make(kind, num_classes=3), noise(), 7, torch.tensor([0, 4]))


# Training


def gradients(model, *inputs):
    model.zero_grad()
    model(*inputs).sample.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@ours
def test_every_parameter_learns(kind):
    model = make(kind, num_classes=2).train()
    for name, gradient in gradients(model, noise(3), torch.tensor([1, 500, 999]), torch.tensor([0, 1, 2])).items():
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name


@every
def test_gradient_checkpointing_computes_again_and_changes_nothing(kind):
    model, calls = make(kind, num_classes=2).train(), []
    inputs = noise(), torch.tensor([1, 500]), torch.tensor([0, 1])
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *_: calls.append(1))
    expected = gradients(model, *inputs)
    plain = len(calls)
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    for name, gradient in gradients(model, *inputs).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-7, rtol=1e-5)
    assert len(calls) > 2 * plain
    model.disable_gradient_checkpointing()
    gradients(model, *inputs)
    assert not model.is_gradient_checkpointing


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(kind, dtype):
    model, x, labels = make(kind, num_classes=3), noise(), torch.tensor([0, 2])
    expected = call(model, x, 999, labels)
    with torch.autocast("cpu", dtype=dtype):
        mixed = call(model, x, 999, labels)
    half = call(model.to(dtype), x.to(dtype), 999, labels)
    assert half.dtype == dtype
    for prediction in (mixed, half):
        assert (prediction.float() - expected).norm() < 0.03 * expected.norm()


@ours
def test_compiles_without_graph_breaks_and_once_for_all_timesteps(kind):
    model, x, labels, graphs = make(kind, num_classes=3), noise(), torch.tensor([0, 2]), []
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, inputs: graphs.append(graph) or graph)
    for t in (9, 8, 7, 6):
        close(call(compiled, x, t, labels), call(model, x, t, labels))
    assert len(graphs) <= 2  # for the first number, then for any


# Files


@every
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_saved_and_loaded_is_the_same_to_the_bit(kind, low_cpu_mem_usage, tmp_path):
    model, labels = make(kind, num_classes=3), torch.tensor([0, 2])
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = type(model).from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert not loaded.training
    assert torch.equal(call(loaded, noise(), 7, labels), call(model, noise(), 7, labels))


@every
def test_half_precision_has_a_variant_of_its_own(kind, tmp_path):
    model = make(kind)
    model.half().save_pretrained(tmp_path, variant="fp16")
    weights = load_file(tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    for dtype in (torch.float16, torch.bfloat16):
        loaded = type(model).from_pretrained(tmp_path, variant="fp16", torch_dtype=dtype)
        assert loaded.dtype == dtype
        assert call(loaded, noise().to(dtype), 7).isfinite().all()


@every
def test_a_config_makes_the_same_architecture(kind, tmp_path):
    model = make(kind, num_classes=3)
    model.save_config(tmp_path)
    for config in (model.config, type(model).load_config(tmp_path)):
        made = type(model).from_config(config)
        made.load_state_dict(model.state_dict())
        assert torch.equal(call(made, noise(), 7, torch.tensor([0, 2])), call(model, noise(), 7, torch.tensor([0, 2])))


# Diffusers' switches


@pytest.mark.parametrize("kind", [kind for kind in OURS if kind != "luu"])
def test_attention_processors(kind):
    model, x = make(kind), noise()
    expected = call(model, x, 7)
    before = dict(model.attn_processors)
    assert before and all(name.endswith(".processor") for name in before)
    model.set_attn_processor(AttnProcessor())
    assert {type(processor) for processor in model.attn_processors.values()} == {AttnProcessor}
    close(call(model, x, 7), expected)
    model.set_attn_processor(before)
    assert torch.equal(call(model, x, 7), expected)
    model.set_default_attn_processor()
    assert {type(processor) for processor in model.attn_processors.values()} == {AttnProcessor}
    close(call(model, x, 7), expected)


def test_attention_that_no_processor_computes_says_so():
    model = make("luu")
    assert model.attn_processors == {}
    model.set_default_attn_processor()
    with pytest.raises(NotImplementedError) as error:
        model.set_attn_processor(AttnProcessor())
    raised(error)


@ours
def test_fused_projections_are_refused(kind):
    with pytest.raises(NotImplementedError) as error:
        make(kind).fuse_qkv_projections()
    raised(error)


@every
def test_weights_stored_in_a_smaller_type(kind):
    model, x, labels = make(kind, num_classes=3), noise(), torch.tensor([0, 2])
    expected = call(model, x, 7, labels)
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert torch.bfloat16 in {parameter.dtype for parameter in model.parameters()}
    stored = call(model, x, 7, labels)
    assert stored.dtype == torch.float32 and (stored - expected).norm() < 0.03 * expected.norm()


# One file, which travels beside the weights


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_imports_torch_diffusers_and_the_standard_library(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert all(n.split(".")[0] in {"torch", "diffusers", *sys.stdlib_module_names} for n in names), names


def test_every_denoiser_is_tested_here():
    assert {file.stem for file in FILES} == {"__init__", *OURS}


@ours
def test_a_pipeline_folder_with_the_file_loads_without_this_package(kind, tmp_path, monkeypatch):
    model, source = make(kind), Path(inspect.getfile(OURS[kind][0]))
    folder = tmp_path / "pipeline"
    DDPMPipeline(model, DDPMScheduler(10)).save_pretrained(folder)
    shutil.copy(source, folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = [kind, type(model).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))

    for name in [name for name in sys.modules if name.split(".")[0] == "ddpm_hf"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    pipe = DDPMPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(pipe.unet) is not type(model) and type(pipe.unet).__name__ == type(model).__name__
    assert torch.equal(call(pipe.unet, noise(), 7), call(model, noise(), 7))
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
