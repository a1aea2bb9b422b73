import json
import os

import pytest
import torch
from PIL import Image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

CLASSES = 3
# whoever writes a card may wish to know who reads it
PRYING_CARD = """---
license: '<img src=https://elsewhere.example/a.png>'
---
# A card

![a [b] c](https://elsewhere.example/b.png) ![d\\]e](https://elsewhere.example/c.png) ![f][g] <im<img>g src=https://elsewhere.example/h.png>

<table background="https://elsewhere.example/i.png"><td style="background: url(https://elsewhere.example/j.png)">k</td></table>
<link rel=stylesheet href=https://elsewhere.example/l.css><script src=https://elsewhere.example/m.js></script>
<input type=image src=https://elsewhere.example/n.png>

![own](samples.png) and [a link](https://elsewhere.example/o.html)

[g]: https://elsewhere.example/p.png
"""


def write_model(folder, num_classes=None, size=8, timesteps=50, seed=0):
    """A small model with random weights, saved as a run would save it; gives the folder."""
    from diffusers import UNet2DModel

    from ddpm_hf.config import Diffusion
    from ddpm_hf.diffusion.schedule import build_scheduler
    from ddpm_hf.export import save_pipeline
    from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

    torch.manual_seed(seed)
    unet = UNet2DModel(
        sample_size=size,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=None if num_classes is None else num_classes + 1,
    )
    names = None if num_classes is None else {str(i): f"kind {i}" for i in range(num_classes)}
    scheduler = build_scheduler(Diffusion(num_train_timesteps=timesteps))
    save_pipeline(ImageGenerationPipeline(unet, scheduler, None, num_classes, names), folder)
    return str(folder)


def write_broken(folder):
    """A folder that begins as a pipeline does and ends there."""
    folder.mkdir(parents=True)
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Of a class-conditional model, an unconditional one and a broken one."""
    root = tmp_path_factory.mktemp("models")
    kinds = write_model(root / "kinds", CLASSES)
    (root / "kinds" / "README.md").write_text(PRYING_CARD)
    Image.new("L", (8, 8)).save(root / "kinds" / "samples.png")
    return {
        "kinds": kinds,
        "plain": write_model(root / "plain", seed=1),
        "broken": write_broken(root / "broken"),
    }


@pytest.fixture(scope="session")
def models(folders):
    from ddpm_hf.app.models import load_models

    return load_models([folders["kinds"], folders["plain"]], torch.device("cpu"))[0]


@pytest.fixture(scope="session")
def demo(folders):
    """A running demo of all three."""
    from ddpm_hf.app.request import Limits
    from ddpm_hf.app.server import Demo

    with Demo(list(folders.values()), limits=Limits(max_images=12, max_steps=30), concurrency=2, queue_size=8) as demo:
        yield demo
