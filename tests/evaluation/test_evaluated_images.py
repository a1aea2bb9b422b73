import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.data.prepare import prepare
from ddpm_hf.data.sampler import split_held_out
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.image_files import ArchiveImages, FolderImages, holds_images
from ddpm_hf.evaluation.images import Chosen, DrawnImages, StoreImages, image_shape
from ddpm_hf.sampling import Sampling, draw_images
from tests.conftest import write_autoencoder
from tests.evaluation.conftest import random_images, write_images

FAST = Sampling("ddim", 3)


def test_drawn_images_follow_from_their_seeds_alone(tiny_pipe):
    images = DrawnImages(tiny_pipe, 7, FAST, first_seed=5)
    assert (len(images), images.shape, images.passes) == (7, (1, 8, 8), 3)
    expected = draw_images(tiny_pipe, range(5, 12), 7, FAST)
    some = images.read([6, 2])
    assert some.dtype == torch.uint8
    assert np.abs(some.numpy().astype(int) - expected[[6, 2]].astype(int)).max() <= 1
    assert len({image.tobytes() for image in images.read(range(7)).numpy()}) == 7


def test_drawn_images_report_each_pass(tiny_pipe):
    seen = []
    DrawnImages(tiny_pipe, 4, FAST).read([0, 1], seen.append)
    assert seen == [2, 2, 2]


def test_the_shape_of_what_a_latent_model_draws(tmp_path):
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel

    from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline

    vae = AutoencoderKL.from_pretrained(write_autoencoder(tmp_path / "vae", channels=3))
    unet = UNet2DModel(
        8,
        3,
        3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        norm_num_groups=4,
    )
    assert image_shape(ImageGenerationPipeline(unet, DDPMScheduler(), vae)) == (3, 16, 16)
    assert image_shape(ImageGenerationPipeline(unet, DDPMScheduler(), vae, image_channels=1)) == (1, 16, 16)
    assert image_shape(ImageGenerationPipeline(unet, DDPMScheduler())) == (3, 8, 8)


def test_images_of_a_store_are_as_they_are_and_may_be_some_of_it(digits_data):
    store = prepare(digits_data, progress=False)
    train, held_out = split_held_out(len(store), 0.1, 0)
    flipping = digits_data.model_copy(update={"flip": True})
    images = StoreImages(store, flipping, held_out)
    assert len(images) == len(held_out) and images.shape == (1, 8, 8)
    np.testing.assert_array_equal(images.read([3, 0]).numpy(), [store.read(held_out[3]), store.read(held_out[0])])
    np.testing.assert_array_equal(images.labels, store.labels[held_out])
    assert images.cache == store.folder.parent
    contents = [StoreImages(store, digits_data, i).content for i in (held_out, train, None, held_out)]
    assert len(set(contents)) == 3 and contents[0] == contents[3] == images.content


def test_random_crops_are_compared_by_their_middle(tmp_path):
    from ddpm_hf.config import Data

    folder = write_images(tmp_path / "wide", [random_images(1, 16, seed)[0, :8] for seed in range(3)])
    data = Data(source=str(folder), resolution=8, channels=1, crop="random", store=str(tmp_path / "store"))
    store = prepare(data, progress=False)
    np.testing.assert_array_equal(StoreImages(store, data).read([1])[0].numpy(), store.read(1)[:, :, 4:12])


def test_a_folder_is_read_in_the_order_of_its_names_without_hidden_files(tmp_path):
    pixels = random_images(4)
    folder = write_images(tmp_path / "images", pixels[:2])
    write_images(folder / "more", pixels[2:3])
    Image.fromarray(pixels[3]).save(folder / ".hidden.png")
    (folder / ".thumbnails").mkdir()
    Image.fromarray(pixels[3]).save(folder / ".thumbnails" / "x.png")
    (folder / "notes.txt").write_text("no image")
    images = FolderImages(folder, "images")
    assert images.shape == (1, 8, 8)
    np.testing.assert_array_equal(images.read([0, 1, 2])[:, 0].numpy(), pixels[:3])
    np.testing.assert_array_equal(images.read([2, 0])[:, 0].numpy(), pixels[[2, 0]])


def test_gray_files_among_colored_ones_become_rgb(tmp_path):
    gray, colored = random_images(1)[0], random_images(1, channels=3, seed=1)[0]
    folder = tmp_path / "images"
    write_images(folder, [gray, colored])
    images = FolderImages(folder, "images")
    assert images.shape == (3, 8, 8)
    found = images.read([0, 1]).numpy()
    np.testing.assert_array_equal(found[0], np.stack([gray] * 3))
    np.testing.assert_array_equal(found[1], colored.transpose(2, 0, 1))


def test_the_content_of_a_folder_is_that_of_its_files(tmp_path):
    pixels = random_images(3)
    a, b = (write_images(tmp_path / name, pixels) for name in "ab")
    c = write_images(tmp_path / "c", pixels[[0, 1, 1]])
    contents = [FolderImages(folder, "x").content for folder in (a, b, c)]
    assert contents[0] == contents[1] != contents[2]


def test_photographs_on_their_side_count_as_they_are_shown(tmp_path):
    photograph = Image.fromarray(random_images(1, 8)[0, :4])
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(tmp_path / "a.png", exif=exif)
    images = FolderImages(tmp_path, "x")
    assert images.shape == images.read([0]).shape[1:] == (1, 8, 4)


def test_mistakes_in_a_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert not holds_images(tmp_path / "empty")
    with pytest.raises(UserError, match="--reference: empty: holds no image files"):
        FolderImages(tmp_path / "empty", "--reference: empty")
    folder = write_images(tmp_path / "mixed", [random_images(1, 8)[0], random_images(1, 9)[0]])
    with pytest.raises(
        UserError, match=r"mixed: its images are of different sizes, 8x8 \(0000.png\) and 9x9 \(0001.png\)"
    ):
        FolderImages(folder, "mixed")
    broken = write_images(tmp_path / "broken", random_images(2))
    (broken / "0001.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"0001\.png: is not an image that Pillow can read"):
        FolderImages(broken, "broken")
    cut = write_images(tmp_path / "cut", random_images(2, 64))
    (cut / "0001.png").write_bytes((cut / "0000.png").read_bytes()[:400])
    with pytest.raises(UserError, match=r"0001\.png: image file is truncated"):
        FolderImages(cut, "cut")


def test_an_archive_as_sample_writes_it(tmp_path):
    pixels = random_images(3, channels=1)
    np.savez_compressed(tmp_path / "x.npz", images=pixels, seeds=np.arange(3), labels=np.array([2, 0, 1]))
    images = ArchiveImages(tmp_path / "x.npz", "x")
    assert (len(images), images.shape, images.labels.tolist()) == (3, (1, 8, 8), [2, 0, 1])
    np.testing.assert_array_equal(images.read([2])[0, 0].numpy(), pixels[2, :, :, 0])
    np.savez(tmp_path / "float.npz", images=pixels / 255)
    np.savez(tmp_path / "other.npz", x=pixels)
    (tmp_path / "broken.npz").write_bytes(b"x")
    for name, message in (("float", "should be uint8"), ("other", "cannot be read"), ("broken", "cannot be read")):
        with pytest.raises(UserError, match=message):
            ArchiveImages(tmp_path / f"{name}.npz", "x")


def test_some_of_other_images_are_always_the_same(tmp_path):
    pixels = random_images(20)
    images = FolderImages(write_images(tmp_path, pixels), "x")
    chosen, again, more = Chosen(images, 5), Chosen(images, 5), Chosen(images, 6)
    np.testing.assert_array_equal(chosen.read(range(5))[:, 0].numpy(), pixels[chosen.indices])
    assert len(set(chosen.indices)) == 5 and (np.diff(chosen.indices) > 0).all()
    assert chosen.content == again.content not in (more.content, images.content)
    assert chosen.describe()["chosen"] == "5 of 20, at random by seed 0"


@pytest.mark.parametrize(
    "harm", ["an array", "cut", "no archive", "garbled", "labels too few", "labels of another kind"]
)
def test_an_archive_that_is_none_is_told_in_one_line(harm, own_folder):
    images, path = random_images(6)[..., None], own_folder / "x.npz"
    labels = {"labels too few": np.arange(5), "labels of another kind": np.ones(6)}.get(harm, np.arange(6))
    np.savez_compressed(path, images=images, labels=labels)
    content = bytearray(path.read_bytes())
    if harm == "an array":
        with open(path, "wb") as file:
            np.save(file, images)
    elif harm == "cut":
        path.write_bytes(content[:-40])
    elif harm == "no archive":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    elif harm == "garbled":
        content[60:110] = bytes(50)
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"^x: (cannot be read as an \.npz file|its labels are)") as error:
        ArchiveImages(path, "x")
    assert "\n" not in str(error.value)
