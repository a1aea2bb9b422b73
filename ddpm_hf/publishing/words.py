"""What the card says of a run, in words."""

from collections.abc import Sequence

from ddpm_hf.diffusion.samplers import num_steps
from ddpm_hf.durations import rough_duration
from ddpm_hf.evaluation.images import image_shape
from ddpm_hf.pipelines.image_generation import ImageGenerationPipeline
from ddpm_hf.publishing.run import Run
from ddpm_hf.sampling import Sampling

_SAMPLERS = {
    "ddpm": "DDPM",
    "ddim": "DDIM",
    "dpmsolver++": "DPM-Solver++(2M)",
    "unipc": "UniPC",
    "heun": "Heun's method",
}
_PREDICTS = {"epsilon": "the noise (epsilon)", "sample": "the image (x_0)", "v_prediction": "v (Salimans & Ho 2022)"}
_VARIANCES = {
    "fixed_small": "the posterior's, fixed",
    "fixed_large": "beta, fixed",
    "fixed_exponent": "between the posterior's and beta, fixed",
    "learned_range": "learned (Nichol & Dhariwal 2021)",
}
_LOSSES = {
    "mse": "L_simple",
    "hybrid": "L_simple and the variational bound",
    "vlb": "the variational bound",
}
_PRECISIONS = {"no": "float32", "fp16": "fp16 mixed precision", "bf16": "bf16 mixed precision"}


def inline(text: str) -> str:
    """Text of others, such as a class's name, so that no character of it means anything in a table of Markdown."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#~$" else c for c in " ".join(text.split()))
    return escaped


def image_size(run: Run) -> str:
    _, height, width = image_shape(run.pipe)
    return f"{height}x{width}"


def colours(run: Run) -> str:
    return "grayscale" if image_shape(run.pipe)[0] == 1 else "colour"


def joined(parts: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def data_set(run: Run) -> str:
    source = run.recipe.data.source
    if run.dataset is not None:
        subset = "" if run.recipe.data.subset is None else f" ({inline(run.recipe.data.subset)})"
        return f"[{inline(source)}](https://huggingface.co/datasets/{run.dataset}){subset}"
    if source == "digits":
        return "scikit-learn's handwritten digits"
    return inline(source)


def sampling_of(sampling: Sampling, pipe: ImageGenerationPipeline) -> str:
    eta = f", eta {sampling.eta:g}" if sampling.eta else ""
    steps = num_steps(sampling.sampler, sampling.steps, pipe.scheduler)
    low_high = sampling.guidance_interval
    interval = "" if low_high is None else f", guided between noise levels {low_high[0]:g} and {low_high[1]:g}"
    return f"{_SAMPLERS[sampling.sampler]} in {steps:,} steps{eta}{interval}"


def model_rows(run: Run) -> list[tuple[str, str]]:
    pipe, diffusion = run.pipe, run.recipe.diffusion
    parameters = sum(tensor.numel() for tensor in pipe.unet.parameters())
    channels, height, width = image_shape(pipe)
    rows = [
        ("denoiser", f"`{type(pipe.unet).__name__}`, {_large(parameters)} parameters"),
        ("images", f"{height}x{width} pixels, {channels} {'channel' if channels == 1 else 'channels'}"),
    ]
    if pipe.vae is not None:
        size = pipe.unet.config.sample_size
        latents = "x".join(map(str, (pipe.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))))
        source = run.recipe.autoencoder.source
        whence = (
            inline(source)
            if "autoencoder.source" in run.places
            else f"[{inline(source)}](https://huggingface.co/{source})"
        )
        rows.append(("latents", f"{latents}, of an `{type(pipe.vae).__name__}`, {whence}, which lies in `vae/`"))
    if run.class_names is not None:
        dropped = run.recipe.condition.dropout
        rows.append(
            ("classes", f"{len(run.class_names):,}; labels were hidden from {dropped:.0%} of the images in training")
        )
    rows.append(("timesteps", f"T = {diffusion.num_train_timesteps:,}, {_schedule(run)}"))
    rows.append(("predicts", _PREDICTS[diffusion.prediction_type]))
    variance = _VARIANCES[diffusion.variance_type]
    if diffusion.variance_exponent is not None:
        variance += f", v = {diffusion.variance_exponent:g} (Ho & Salimans 2022)"
    rows.append(("reverse variance", variance))
    loss = _LOSSES[diffusion.loss]
    if diffusion.min_snr_gamma is not None:
        loss += f", min-SNR weights with gamma {diffusion.min_snr_gamma:g}"
    rows.append(("loss", loss))
    return rows


def _schedule(run: Run) -> str:
    diffusion = run.recipe.diffusion
    if diffusion.trained_betas is not None:
        text = "betas listed in the recipe"
    elif diffusion.beta_schedule in ("squaredcos_cap_v2", "sigmoid_alpha_bar"):
        text = f"`{diffusion.beta_schedule}`"
    else:
        scaled = f", times 1000/{diffusion.num_train_timesteps}" if diffusion.scale_betas else ""
        text = f"`{diffusion.beta_schedule}` betas from {diffusion.beta_start:g} to {diffusion.beta_end:g}{scaled}"
    return text + (", zero terminal SNR" if diffusion.rescale_betas_zero_snr else "")


def training(run: Run) -> str:
    recipe, train, data, state = run.recipe, run.recipe.train, run.recipe.data, run.state
    images = f"Images: {data_set(run)}; split `{data.split}`"
    if data.held_out:
        images += f" without the {data.held_out:.1%} held out to validate with"
    images += f"; {'x'.join(map(str, data.resolution))} pixels, {data.crop} crop" + (
        ", half of them mirrored" if data.flip else ""
    )
    if state is not None:
        length = (
            f"{state['images_seen']:,} images seen in {state['step']:,} optimizer steps of {state['images_per_step']:,}"
        )
        if (seconds := state.get("training_seconds")) is not None:  # earlier versions did not note it
            length += f", {rough_duration(seconds)} of training"
    else:
        length = f"{train.max_steps:,} optimizer steps" if train.max_steps else f"{train.epochs:g} epochs"
        length += " asked for"
    rate = f"{train.optimizer.capitalize() if train.optimizer == 'adam' else 'AdamW'}, learning rate {train.learning_rate:g}"
    rate += f" ({train.learning_rate_schedule}" + (
        f", {train.warmup_steps:,} steps of warm-up)" if train.warmup_steps else ")"
    )
    return (
        f"{images}.\n\n{length[0].upper() + length[1:]}; {rate}; {_PRECISIONS[train.precision]}; seed {recipe.run.seed}. The"
        f" weights are the exponential moving average of those trained, decay {recipe.ema.decay:g}."
    )


def limits(run: Run) -> list[str]:
    found = [
        f"It draws {image_size(run)} images like those it was trained on: no other size, no other subject, no text prompts.",
        "What is one-sided, wrong or private in the training images is in what it draws.",
        "Whether it repeats training images is not known from the figures here;"
        " `ddpm-hf evaluate --neighbours` shows samples beside the training images nearest to them.",
        "There is no filter on what it draws.",
    ]
    if run.class_names is not None:
        found.insert(1, f"It knows its {len(run.class_names):,} classes and nothing between or beyond them; a high guidance scale"
            " trades variety for clarity.")  # fmt: skip
    if run.pipe.vae is not None:
        found.insert(1, "No detail is finer than what its autoencoder can draw.")
    if not run.measured():
        found.append("It has not been evaluated: there is nothing to judge its quality by but the pictures above.")
    return found


def _large(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
