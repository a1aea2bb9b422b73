"""What a run trains on, and what it validates with."""

from collections.abc import Callable

from ddpm_hf.codec import AutoencoderCodec, PixelCodec
from ddpm_hf.config import AnyRecipe, Data, Recipe
from ddpm_hf.data.base import Source
from ddpm_hf.data.dataset import check_labels, check_validation_labels, training_set
from ddpm_hf.data.latents import prepare_latents
from ddpm_hf.data.prepare import prepare, validation_data
from ddpm_hf.data.sampler import split_held_out
from ddpm_hf.data.sources import open_source
from ddpm_hf.data.store import PreparedStore
from ddpm_hf.errors import UserError
from ddpm_hf.evaluation.extractors import build_extractor
from ddpm_hf.training.run_folder import RunFolder


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
    recipe: AnyRecipe,
    codec: PixelCodec | AutoencoderCodec,
    run: RunFolder | None = None,
    *,
    progress: bool = True,
    is_main: bool = True,
) -> Examples:
    """The recipe's images, prepared if they are not yet; through an autoencoder as latents, unless it says otherwise.

    Of several processes one prepares pixels while the others wait; latents they encode together. Raises `UserError` where
    the labels are not those that the recipe's model is made for, or that `run` was trained on: before they are prepared,
    where they are not yet.
    """
    validation = validation_data(recipe.data)

    def prepared(data: Data, check: Callable[[Source], None] = lambda source: None) -> PreparedStore:
        if codec.vae is None or not recipe.autoencoder.store_latents:
            return prepare(data, check=check, progress=progress)
        settings = recipe.autoencoder
        return prepare_latents(
            data, codec, settings.latent_dtype, settings.batch_size, check=check, progress=progress and is_main
        )

    def check(source: Source) -> None:
        check_sources(recipe, source)
        if (
            isinstance(recipe, Recipe)
            and recipe.evaluate.every is not None
            and recipe.evaluate.extractor != "classifier"
        ):
            build_extractor(recipe.evaluate.extractor, recipe.evaluate.extractor_weights, option="evaluate.")
        if run is not None and (state := run.state()) is not None:
            run.check_origin(recipe, state, source.class_names, codec.identity)

    store = prepared(recipe.data, check)
    validation_store = None
    if validation is not None:
        validation_store = prepared(validation.model_copy(update={"flip": False}))  # validated with as they are
    _check(recipe, store, validation_store)
    return Examples(recipe, store, validation_store)


def check_sources(recipe: AnyRecipe, source: Source) -> None:
    """Raises `UserError` where what the sources of a recipe say of themselves does not fit it; reads no image."""
    validation = validation_data(recipe.data)
    try:
        _check(recipe, source, None if validation is None else open_source(validation))
    except UserError as error:
        if "data.split: " not in str(error):
            raise
        raise type(error)(str(error).replace("data.split: ", "data.validation_split: ")) from None


def _check(recipe: AnyRecipe, images: Source | PreparedStore, validation: Source | PreparedStore | None) -> None:
    if validation is not None and not len(validation):
        raise UserError(f"data.validation_split: {recipe.data.validation_split} has no images")
    if isinstance(recipe, Recipe) and recipe.condition.num_classes is not None:
        check_labels(images, recipe.condition.num_classes)
        if validation is not None:
            check_validation_labels(images, validation)
