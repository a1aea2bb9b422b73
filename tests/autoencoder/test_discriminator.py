import pytest
import torch
from torch import nn

from ddpm_hf.autoencoder.discriminator import PatchDiscriminator
from ddpm_hf.errors import UserError


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "asked", "layers", "patches"),
    [
        ((8, 8), 3, 1, (2, 2)),
        ((9, 15), 3, 1, (2, 5)),
        ((16, 16), 3, 2, (2, 2)),
        ((28, 28), 3, 2, (5, 5)),
        ((32, 64), 3, 3, (2, 6)),
        ((64, 64), 3, 3, (6, 6)),
        ((64, 64), 1, 1, (30, 30)),
        ((64, 64), 4, 4, (2, 2)),
    ],
)
def test_logits_a_patch_for_any_size(channels, size, asked, layers, patches):
    critic = PatchDiscriminator(channels, size, asked)
    assert critic.layers == layers
    assert critic(torch.zeros(2, channels, *size)).shape == (2, 1, *patches)
    convolutions = [module for module in critic.modules() if isinstance(module, nn.Conv2d)]
    assert {module.kernel_size for module in convolutions} == {(4, 4)}
    assert [module.stride[0] for module in convolutions] == [2] * layers + [1, 1]


def test_a_patch_sees_70_pixels():
    """Isola et al. (2017), section 4.4; without normalisation, which looks at the whole image."""
    critic = PatchDiscriminator(1, (256, 256))
    for index, module in enumerate(critic.net):
        if isinstance(module, nn.GroupNorm):
            critic.net[index] = nn.Identity()
    images = torch.randn(1, 1, 256, 256, requires_grad=True)
    critic(images)[0, 0, 15, 15].backward()
    seen = images.grad[0, 0] != 0
    assert (seen.any(0).sum(), seen.any(1).sum()) == (70, 70)


def test_an_images_logits_depend_on_that_image_alone_and_there_are_no_buffers():
    torch.manual_seed(0)
    critic = PatchDiscriminator(3, (16, 16)).train()
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(critic(images)[1:2], critic(images[1:2]))
    torch.testing.assert_close(critic.eval()(images), critic.train()(images))
    assert not list(critic.buffers())


@pytest.mark.parametrize("size", [(7, 7), (4, 32)])
def test_too_small_an_image_is_refused(size):
    with pytest.raises(UserError, match=f"8x8 pixels or more, these have {size[0]}x{size[1]}"):
        PatchDiscriminator(1, size)
