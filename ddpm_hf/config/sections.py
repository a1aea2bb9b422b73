"""Every setting: its type, range, default and meaning."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ddpm_hf.config.base import Section, setting

Size = Annotated[
    tuple[int, int], BeforeValidator(lambda v: (v, v) if isinstance(v, int) else tuple(v) if isinstance(v, list) else v)
]


class Run(Section):
    name: str | None = setting(
        None, "the run's folder under run.output_dir; the recipe's file name if not given", may_change=True
    )
    output_dir: str = setting("runs", "where run folders are made", may_change=True)
    seed: int = setting(0, "initial weights, data order, noise and timesteps all follow from it", ge=0, lt=2**32)


class Data(Section):
    source: str = setting(
        ...,
        "a Hub dataset id; a folder of images, of parquet, arrow or webdataset files or of datasets.save_to_disk;"
        " one such file; MNIST's IDX files; CIFAR-10's binary archive; or digits (scikit-learn's)",
        may_change=True,  # where the images lie; that they are the same images is checked against the checkpoint
    )
    subset: str | None = setting(None, "which configuration of a Hub data set that has several")
    split: str = setting("train", "which split of the source")
    image_column: str | None = setting(None, "the column that holds the images; found by its type if not given")
    label_column: str | None = setting(None, "the column that holds the labels; found by its type if not given")
    resolution: Size = setting(..., "height and width in pixels; one number for a square")
    channels: Literal[1, 3] = setting(3, "1 for grayscale, 3 for RGB")
    classes: str | None = setting(
        None,
        "a file that chooses classes: one class name of the source a line, and after a space what to call it if not that;"
        " their order is the labels'",
        may_change=True,  # where it lies; the classes are checked against the checkpoint
    )
    crop: Literal["center", "random"] = setting(
        "center", "the part kept where an image's shape is not the resolution's"
    )
    flip: bool = setting(False, "mirror half of the images left to right, drawn afresh each time")
    validation_split: str | None = setting(
        None, "another split of the source, for the validation loss; instead of held_out", may_change=True
    )
    held_out: float = setting(0.0, "share of the images kept out of training, for the validation loss", ge=0, le=0.5)
    on_bad_image: Literal["stop", "skip"] = setting("stop", "what to do with a file that cannot be read")
    store: str | None = setting(
        None, "folder of the prepared store; under prepared/, named by content, if not given", may_change=True
    )
    prepare_workers: int | None = setting(
        None, "processes that prepare the store; one a core if not given", ge=1, may_change=True
    )
    workers: int = setting(0, "processes that read batches; 0 reads in the training process", ge=0, may_change=True)


class Autoencoder(Section):
    source: str | None = setting(
        None,
        "pretrained autoencoder (Hub id, or folder such as runs/<name>/autoencoder) through which the denoiser works on"
        " latents; pixels if not given",
        may_change=True,  # where it lies; that it is the same one is checked against the checkpoint
    )
    store_latents: bool = setting(
        True, "encode every image once, into the prepared store; false encodes at every step, which is far slower"
    )
    latent_dtype: Literal["float16", "bfloat16", "float32"] = setting(
        "float16", "number format of the stored latents' mean and log variance"
    )
    batch_size: int = setting(16, "images encoded or decoded at once", ge=1, may_change=True)
    tiling: bool = setting(False, "encode and decode large images in overlapping tiles: less memory, faint seams")
    gray_as_rgb: bool = setting(False, "send one-channel images through a three-channel autoencoder, and back")


class Condition(Section):
    num_classes: int | None = setting(
        None, "classes of the labels that the denoiser is told; not given: unconditional, labels are ignored", ge=1
    )
    dropout: float = setting(
        0.1, "share of labels replaced by the null class, so that guidance has both predictions", ge=0, lt=1
    )


class Diffusion(Section):
    num_train_timesteps: int = setting(1000, "T, the number of noise levels", ge=2)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "sigmoid_alpha_bar"] = setting(
        "linear",
        "noise schedule; squaredcos_cap_v2 is Nichol & Dhariwal's cosine; sigmoid rises between beta_start and beta_end;"
        " sigmoid_alpha_bar is Jabri et al.'s, where alpha bar falls along a sigmoid",
    )
    beta_start: float = setting(1e-4, "variance of the first noising step", gt=0, lt=1)
    beta_end: float = setting(0.02, "variance of the last noising step", gt=0, lt=1)
    scale_betas: bool = setting(
        False, "multiply beta_start and beta_end by 1000 / T, so that few timesteps end in noise as 1,000 do"
    )
    trained_betas: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = setting(
        None, "the variance of every noising step, instead of a beta_schedule"
    )
    rescale_betas_zero_snr: bool = setting(
        False, "shift the schedule so that the last timestep is pure noise (Lin et al. 2024); not with epsilon"
    )
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = setting(
        "epsilon", "what the denoiser predicts: the noise, x_0, or v (Salimans & Ho 2022)"
    )
    variance_type: Literal["fixed_small", "fixed_large", "fixed_exponent", "learned_range"] = setting(
        "fixed_small",
        "variance of the reverse step: the posterior's (beta tilde), beta (DDPM, section 3.2), between the two by"
        " variance_exponent (Ho & Salimans 2022), or learned (Nichol & Dhariwal 2021)",
    )
    variance_exponent: float | None = setting(
        None, "v of fixed_exponent: 0 is the posterior's variance, 1 is beta", ge=0, le=1
    )
    loss: Literal["mse", "hybrid", "vlb"] = setting(
        "mse", "L_simple; L_simple + vlb_weight * L_vlb; or L_vlb, the variational bound, in bits per dimension"
    )
    vlb_weight: float = setting(0.001, "weight of L_vlb in the hybrid loss (Nichol & Dhariwal 2021, equation 16)", gt=0)
    min_snr_gamma: float | None = setting(
        None, "weigh timesteps by min(SNR, gamma), for the predicted x_0 (Hang et al. 2023); 5 is theirs", gt=0
    )
    timestep_sampling: Literal["uniform", "importance"] = setting(
        "uniform",
        "how training draws t; importance: by the size of recent L_vlb terms (Nichol & Dhariwal, equation 18)",
    )


class Train(Section):
    max_steps: int | None = setting(None, "length in optimizer steps", ge=1, may_change=True)
    epochs: float | None = setting(
        None, "length in passes over the images; instead of max_steps", gt=0, may_change=True
    )
    batch_size: int = setting(64, "images a process and forward pass", ge=1)
    gradient_accumulation_steps: int = setting(1, "forward passes an optimizer step", ge=1)
    optimizer: Literal["adam", "adamw"] = setting("adam", "Adam, or AdamW with decoupled weight decay")
    learning_rate: float = setting(2e-4, "peak learning rate, reached after the warm-up", gt=0)
    adam_beta1: float = setting(0.9, "decay of Adam's first moment", ge=0, lt=1)
    adam_beta2: float = setting(0.999, "decay of Adam's second moment", ge=0, lt=1)
    adam_epsilon: float = setting(1e-8, "Adam's term for numerical stability", gt=0)
    weight_decay: float = setting(0.0, "weight decay", ge=0)
    learning_rate_schedule: Literal["constant", "linear", "cosine", "step"] = setting(
        "constant",
        "after the warm-up: constant, linear or cosine to zero at the end, or dropped at learning_rate_drops",
    )
    learning_rate_drops: tuple[float, ...] = setting(
        (), "where the rate drops: epochs if train.epochs is given, else steps"
    )
    learning_rate_drop_factor: float = setting(0.1, "what each drop multiplies the rate by", gt=0, lt=1)
    warmup_steps: int = setting(0, "optimizer steps over which the rate rises from zero", ge=0)
    max_grad_norm: float | None = setting(1.0, "gradients are clipped to this norm; null for none", gt=0)
    precision: Literal["no", "fp16", "bf16"] = setting("no", "mixed precision of the network; no is float32")
    gradient_scaler: bool = setting(True, "scale the loss under fp16 so that small gradients survive")
    max_nonfinite_steps: int = setting(
        100, "stop after so many steps in a row whose gradients are not finite", ge=1, may_change=True
    )
    validate_every: int | None = setting(
        None,
        "optimizer steps between validation losses; needs data.held_out or data.validation_split",
        ge=1,
        may_change=True,
    )
    checkpoint_every: int = setting(
        1000, "optimizer steps between checkpoints; the model is saved with each", ge=1, may_change=True
    )
    keep_checkpoints: int = setting(
        2, "checkpoints kept, besides the best and those that hold a file named keep", ge=1, may_change=True
    )
    compile: bool = setting(False, "torch.compile the network", may_change=True)
    channels_last: bool = setting(
        False, "channels-last memory format: faster convolutions on recent GPUs", may_change=True
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, slower", may_change=True
    )


class EMA(Section):
    decay: float = setting(0.9999, "decay of the weights' exponential moving average, an update", ge=0, lt=1)
    warmup: bool = setting(True, "start with the smaller decay (1 + n) / (10 + n) after n updates")
    warmup_power: float | None = setting(
        None,
        "instead warm up as 1 - s^-power, s optimizer steps after start_step (ema-pytorch's, with its 2/3)",
        gt=0,
        le=1,
    )
    start_step: int = setting(0, "optimizer steps for which the average is the weights themselves", ge=0)
    update_every: int = setting(1, "optimizer steps between updates", ge=1)


class Grid(Section):
    """The grid of pictures that is made during training."""

    num_images: int = setting(64, "images in the grid", ge=1, may_change=True)
    batch_size: int = setting(64, "images drawn at once by a process", ge=1, may_change=True)
    every: int | None = setting(
        None, "optimizer steps between grids; at checkpoints if not given", ge=1, may_change=True
    )


class Sample(Grid):
    sampler: Literal["ddpm", "ddim", "dpmsolver++", "unipc", "heun"] = setting(
        "ddpm",
        "ancestral sampling (DDPM, algorithm 2), DDIM, DPM-Solver++(2M), UniPC, or Heun's method",
        may_change=True,
    )
    steps: int | None = setting(
        None, "denoising steps; if not given, T for ddpm and 50 for the others", ge=1, may_change=True
    )
    eta: float = setting(
        0.0, "noise of each ddim step: 0 is deterministic, 1 as much as ddpm", ge=0, le=1, may_change=True
    )
    guidance_scale: float = setting(
        1.0, "s of classifier-free guidance, uncond + s (cond - uncond); 1 is off; w = s - 1", ge=0, may_change=True
    )
    guidance_interval: tuple[float, float] | None = setting(
        None, "guide only between these two noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar)", may_change=True
    )
    grid_guidance_scales: tuple[Annotated[float, Field(ge=0)], ...] | None = setting(
        None,
        "guidance scales that the grid compares, side by side; 1 and guidance_scale if not given",
        min_length=1,
        may_change=True,
    )
    seed: int = setting(0, "seed of the first image; image i has seed + i", ge=0, may_change=True)


class Evaluate(Section):
    """Measures the model during training, drawn from as `sample` says, with the seeds 0 to num_images - 1."""

    every: int | None = setting(None, "optimizer steps between evaluations; none if not given", ge=1, may_change=True)
    metrics: tuple[
        Literal["frechet", "kernel", "score", "precision_recall", "density_coverage", "class_agreement"], ...
    ] = setting(("frechet",), "what is measured, as ddpm-hf evaluate names it", min_length=1, may_change=True)
    num_images: int = setting(1000, "images drawn for it", ge=2, may_change=True)
    batch_size: int = setting(64, "images drawn at once by a process", ge=1, may_change=True)
    extractor: str = setting(
        "inception",
        "network whose features are compared: inception, dinov2, efficientnet_lite0, classifier, or a TorchScript file",
        may_change=True,
    )
    extractor_weights: str | None = setting(
        None,
        "the extractor's weights, a file, folder or Hub id, where they are not found by themselves",
        may_change=True,
    )
    reference: str = setting(
        "train", "images compared with: train, validation, a recipe or a folder of images", may_change=True
    )
    reference_images: int | None = setting(
        None, "compare with so many of them, chosen by chance; all if not given", ge=2, may_change=True
    )


class Track(Section):
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = setting(
        ("tensorboard",), "where the metrics go besides metrics.jsonl", may_change=True
    )
    project: str = setting("ddpm_hf", "project name at the trackers", may_change=True)
    log_every: int = setting(50, "optimizer steps between logged lines", ge=1, may_change=True)


class Hub(Section):
    """Publishes the model while it is trained, as `ddpm-hf publish --push` does."""

    repo_id: str | None = setting(
        None, "the repository that the model is pushed to, OWNER/NAME; none if not given", may_change=True
    )
    push_every: int | None = setting(
        None,
        "optimizer steps between pushes, a multiple of train.checkpoint_every; only in the end if not given",
        ge=1,
        may_change=True,
    )
    private: bool = setting(False, "make the repository private if it has to be created", may_change=True)
    revision: str | None = setting(None, "the branch that is pushed to; main if not given", may_change=True)
    license: str | None = setting(
        None, "the model's license on its card, by the Hub's name for it, such as apache-2.0", may_change=True
    )
