"""The model card: what the Hub reads of a model, and what a person does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ddpm_hf import __version__
from ddpm_hf.evaluation.metrics import label
from ddpm_hf.evaluation.records import main_keys, versions, with_spread
from ddpm_hf.export import is_stock
from ddpm_hf.publishing import words
from ddpm_hf.publishing.licenses import license_id, license_name
from ddpm_hf.publishing.results import TASK, eval_results, metric_name, seeds
from ddpm_hf.publishing.run import Record, Run
from ddpm_hf.publishing.snippets import SEED, Snippet
from ddpm_hf.sample_grid import layout_of, sampling_of_recipe

_NAMES_SHOWN = 20  # classes; more are folded away


@dataclass(frozen=True)
class Card:
    """license: by the Hub's name for it, or any other; None where it is not stated
    local: the folder's name, where the snippets load it by that; None of a model on the Hub
    """

    run: Run
    snippets: Sequence[Snippet]
    variants: Sequence[str] = ()
    license: str | None = None
    local: str | None = None

    def save(self, folder: Path) -> None:
        """Writes README.md of a folder that is whole but for it."""
        card = ModelCard(f"---\n{self.data().to_yaml()}\n---\n\n{self.text(folder)}")
        (folder / "README.md").write_text(str(card), encoding="utf-8")

    def data(self) -> ModelCardData:
        run = self.run
        results = eval_results(run)
        pretrained = run.recipe.model.pretrained
        tags = ["diffusion", "image-generation", "unconditional" if run.class_names is None else "class-conditional"]
        return ModelCardData(
            library_name="diffusers",
            pipeline_tag=TASK,
            license=None if self.license is None else license_id(self.license),
            license_name=None if self.license is None else license_name(self.license),
            datasets=None if run.dataset is None else [run.dataset],
            base_model=None if pretrained is None or "model.pretrained" in run.places else pretrained,
            metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
            tags=[*tags, *(["latent-diffusion"] if run.pipe.vae is not None else []), "ddpm_hf"],
            model_name=run.name if results else None,
            eval_results=results or None,
        )

    def text(self, folder: Path) -> str:
        sections = [
            self._head(),
            self._samples(),
            self._use(folder),
            self._classes(),
            self._model(),
            self._training(folder),
            self._evaluation(folder),
            self._limits(),
            self._license(),
        ]
        return "\n\n".join(section for section in sections if section) + "\n"

    def _head(self) -> str:
        run = self.run
        kind = "A diffusion model" if run.pipe.vae is None else "A latent diffusion model"
        if run.class_names is not None:
            kind = f"A class-conditional {kind[2:]}"
        return (
            f"# {run.name}\n\n{kind} that draws {words.image_size(run)} {words.colours(run)} images, trained on"
            f" {words.data_set(run)}. It loads in plain [Diffusers](https://huggingface.co/docs/diffusers)."
        )

    def _samples(self) -> str:
        layout, sampling = layout_of(self.run.recipe), sampling_of_recipe(self.run.recipe)
        how = words.sampling_of(sampling, self.run.pipe)
        if layout.classes is None:
            what = f"Seeds {layout.seeds[0]} to {layout.seeds[-1]}, not chosen"
        else:
            scales = words.joined([f"{scale:g}" for scale in layout.scales])
            same = ", the same seeds for each" if len(layout.scales) > 1 else ""
            what = f"A row a class, guidance scale {scales}{same}, not chosen"
        return f"![What it draws](samples.png)\n\n*{what}; {how}.*"

    def _use(self, folder: Path) -> str:
        run, first = self.run, self.snippets[0]
        found = versions()
        parts = ["## How to load it", f"```python\n{first.code}\n```"]
        ran = (
            f"This code was run as it stands when this folder was made, with diffusers {found['diffusers']} and torch"
            f" {found['torch']}, and drew the image that the training run draws from seed {SEED}."
        )
        code = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.py"))
        if code:
            files = " and ".join(f"[`{name}`]({name})" for name in code)
            need, them = ("needs", "it") if len(code) == 1 else ("need", "them")
            ran += (
                f" `trust_remote_code=True` lets Diffusers run {files} of this repository, which {need} torch and diffusers"
                f" alone: read {them} first, and name the commit that you have read as `revision`."
            )
        else:
            ran += " It needs no code but Diffusers' own."
        if self.local is not None:
            ran += (
                f" `{self.local}` is this folder: start beside it, or give its path, or its id once it is on the Hub."
            )
        parts.append(ran)
        for other in self.snippets[1:]:
            parts += ["The sampler that drew the pictures above:", f"```python\n{other.code}\n```"]
        call = (
            '`images` of the result are PIL images, `batch_size` of them; `pipe.to("cuda")` draws on a GPU. A list with one'
            " generator an image makes each image independent of its batch."
        )
        if is_stock(run.pipe):
            call += f" Give `num_inference_steps`: left out, it is 1,000. {self._stock_steps()}"
        if run.pipe.vae is not None:
            call += " Images are decoded `decode_batch_size` at a time."
        parts.append(call)
        for variant in self.variants:
            kind = {"fp16": "float16", "bf16": "bfloat16"}[variant]
            types = f"torch.{kind}"
            if run.pipe.vae is not None:
                types = f'{{"unet": torch.{kind}, "default": torch.float32}}'
            vae = (
                ""
                if run.pipe.vae is None
                else "; the autoencoder stays in float32, since half precision may overflow in it"
            )
            tensors = ""
            if variant == "bf16" and is_stock(run.pipe):  # its step to NumPy knows no bfloat16
                tensors = ' Give `output_type="pt"` then: Diffusers\' own pipeline makes PIL images of float16 and float32 alone.'
            parts.append(
                f'With `variant="{variant}", dtype={types}` in `from_pretrained` the denoiser is loaded in half'
                f" precision, for GPUs{vae}.{tensors}"
            )
        return "\n\n".join(parts)

    def _stock_steps(self) -> str:
        config = self.run.pipe.scheduler.config
        T = config.num_train_timesteps
        if config.variance_type == "fixed_large":
            return f"Take {T:,}, one step a timestep: with fewer, Diffusers leaves a little of the last step's noise in the image."
        return f"Take a number that divides {T:,}: with others Diffusers may round to a timestep that there is not."

    def _classes(self) -> str:
        run = self.run
        if run.class_names is None:
            return ""
        n = len(run.class_names)
        names = ", ".join(f"{i}: {words.inline(name)}" for i, name in enumerate(run.class_names))
        if run.class_names == [str(i) for i in range(n)]:
            names = f"The classes are 0 to {n - 1}, and so called."
        elif n > _NAMES_SHOWN:
            names = f"<details><summary>All {n:,} classes</summary>\n\n{names}\n\n</details>"
        return (
            f"## Classes and guidance\n\n{names}\n\n"
            "`class_labels` takes ids or names, one for all images or a list with one an image. `guidance_scale` is s of"
            " classifier-free guidance (Ho & Salimans 2022), `uncond + s * (cond - uncond)`, as everywhere in Diffusers: 1 is"
            " off, 0 is the unconditional model, and the papers' weight is `w = s - 1`. More of it makes images clearer, and"
            f" more alike. The null class has the id {n}, the number of classes: `class_labels=None` draws from it."
            " `guidance_interval=(low, high)` guides only between two noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar)."
        )

    def _model(self) -> str:
        rows = "\n".join(f"| {name} | {text} |" for name, text in words.model_rows(self.run))
        return f"## The model\n\n| | |\n| --- | --- |\n{rows}"

    def _training(self, folder: Path) -> str:
        run = self.run
        script = "train_unconditional.py" if run.pipe.vae is None else "train_cfg_latent.py"
        parts = ["## Training", words.training(run)]
        again = ""
        if run.places:
            own = {"autoencoder.source": " (this folder, or its id on the Hub)"}
            names = words.joined([f"`{place}`{own.get(place, '')}" for place in run.places])
            again = f", once you set {names}, which named a place on the author's machine"
        parts.append(
            f"Every setting is in [`recipe.yaml`](recipe.yaml): `python {script} --config recipe.yaml` of ddpm_hf"
            f" {__version__} trains it again{again}."
        )
        if (folder / "curves.png").is_file():
            parts.append("![Loss during training](curves.png)")
        if (folder / "quality.png").is_file():
            parts.append("![Fréchet distance during training](quality.png)")
        return "\n\n".join(parts)

    def _evaluation(self, folder: Path) -> str:
        measured = self.run.measured()
        parts = ["## Evaluation"]
        if not measured:
            others = (
                " [`evaluations/`](evaluations) has those of earlier weights of the same run."
                if self.run.records
                else ""
            )
            return f"{parts[0]}\n\nThese weights were not evaluated.{others}"
        for name, record in measured.items():
            rows = [
                f"| {_metric(key, record)} | {with_spread(key, record['metrics'])} |"
                for key in main_keys(record["metrics"])
            ]
            parts += [f"{_about(record)} ([record](evaluations/{name})):", "\n".join(["| | |", "| --- | --- |", *rows])]
        if any((record.get("extractor") or {}).get("name") not in (None, "inception") for record in measured.values()):
            parts.append(
                "Distances by another network than Inception are no FID: they compare with values of the same network, counts"
                " and reference only."
            )
        warnings = dict.fromkeys(warning for record in measured.values() for warning in record.get("warnings", ()))
        parts += ["\n".join(f"- {warning}." for warning in warnings)] if warnings else []
        parts.append(
            "Each record has every setting that its figures depend on: digests of the weights and of the reference, sampler,"
            " steps, guidance, how many images and how many distinct ones, the extractor's weights and how images are resized."
        )
        return "\n\n".join(parts)

    def _limits(self) -> str:
        return "\n".join(["## Limits", "", *(f"- {limit}" for limit in words.limits(self.run))])

    def _license(self) -> str:
        if self.license is None:
            return "## License\n\nNot stated."
        return f"## License\n\n{self.license}"


def _metric(key: str, record: Record) -> str:
    arrow = label(key)[-2:] if label(key).endswith(("↑", "↓")) else ""
    return f"{metric_name(key, record)}{arrow}"


def _about(record: Record) -> str:
    """What a record's values depend on, in short."""
    parts, reference, sampling = [], record.get("reference"), record.get("sampling")
    if sampling is not None:
        guidance = "" if sampling["guidance_scale"] == 1 else f", guidance scale {sampling['guidance_scale']:g}"
        if (interval := sampling.get("guidance_interval")) is not None:
            guidance += f" between noise levels {interval[0]:g} and {interval[1]:g}"
        eta = f", eta {sampling['eta']:g}" if sampling.get("eta") else ""
        precision = "" if record.get("precision") in (None, "no") else f", in {record['precision']}"
        only = "" if sampling.get("class") is None else f", class {sampling['class']} alone"
        parts.append(
            f"{record['num_images']:,} images, {sampling['sampler']} in {sampling['steps']:,} steps{eta}{guidance}{only}"
            f"{precision}, seeds {seeds(record)}"
        )
    if reference is not None:
        number = "" if reference.get("num_images") is None else f"{reference['num_images']:,} of "
        part = reference.get("part") or reference.get("split")
        parts.append(f"against {number}{words.inline(str(reference['source']))}{f' ({part})' if part else ''}")
    if (network := record.get("extractor")) is not None:
        size = network.get("dimensions")
        parts.append(f"by {'' if size is None else f'{size:,} '}features of the network `{network['name']}`")
    return ", ".join(parts) or "Measured on real images"
