"""What a run trains on, and what it validates with."""

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.config import AnyRecipe, Data
from ddpm_hf.data.dataset import training_set
from ddpm_hf.data.latents import prepare_latents
from ddpm_hf.data.prepare import prepare, validation_data
from ddpm_hf.data.sampler import split_held_out
from ddpm_hf.data.store import PreparedStore


class Examples:
    """The prepared images or latents of a run.

    training, train_indices: the set, and which of it are trained on
    validation, validation_indices: the set, and which of it are validated with: held out of the first, or a split's own
    """

    def __init__(self, recipe: AnyRecipe, store: PreparedStore, validation_store: PreparedStore | None = None) -> None:
        self.store, self.validation_store = store, validation_store
        self.training = self.validation = training_set(store, recipe.data)
        self.train_indices, self.validation_indices = split_held_out(len(store), recipe.data.held_out, recipe.run.seed)
        if validation_store is not None:
            self.validation = training_set(validation_store, recipe.data)
            self.validation_indices = range(len(validation_store))


def prepare_examples(
    recipe: AnyRecipe, codec: PixelCodec | AutoencoderCodec, *, progress: bool = True, is_main: bool = True
) -> Examples:
    """The recipe's images, prepared if they are not yet; through an autoencoder as latents, unless it says otherwise.

    Of several processes one prepares pixels while the others wait; latents they encode together.
    """

    def prepared(data: Data) -> PreparedStore:
        if codec.vae is None or not recipe.autoencoder.store_latents:
            return prepare(data, progress=progress)
        settings = recipe.autoencoder
        return prepare_latents(data, codec, settings.latent_dtype, settings.batch_size, progress=progress and is_main)

    store, validation = prepared(recipe.data), validation_data(recipe.data)
    if validation is not None:
        validation = prepared(validation.model_copy(update={"flip": False}))  # validated with as they are
    return Examples(recipe, store, validation)
