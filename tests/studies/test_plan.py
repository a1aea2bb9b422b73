"""From a study's file to commands."""

from ddpm_hf.cli import parse
from ddpm_hf.cli.recipes import read_recipe
from ddpm_hf.config import AutoencoderRecipe, dump_recipe, load_recipe


def test_a_variants_settings_go_over_the_scales_and_the_command_lines_over_both(make):
    plan = make(
        ("set: {model.block", "small: {set: {train.max_steps: 30}}, set: {model.block"),
        settings={"data.held_out": "0.1"},
    )
    assert plan.trainings["large"].recipe.train.max_steps == 20
    assert plan.trainings["tiny"].recipe.train.max_steps == 30
    assert plan.trainings["tiny"].recipe.model.block_out_channels == (16, 32)
    assert {t.recipe.data.held_out for t in plan.trainings.values()} == {0.1}
    assert plan.trainings["tiny"].run == plan.out / "runs" / "tiny"


def test_a_length_in_epochs_takes_the_place_of_one_in_steps(make):
    recipe = make(settings={"train.epochs": "3"}).trainings["large"].recipe
    assert (recipe.train.epochs, recipe.train.max_steps) == (3, None)


def test_a_training_command_gives_back_its_recipe(make):
    for training in make().trainings.values():
        assert training.command[:2] == ["-m", "train_unconditional"]
        assert read_recipe("", training.command[2:])[0] == training.recipe


def test_no_variant_is_pushed_where_its_base_recipe_is(make, tmp_path):
    pushed = {"hub.repo_id": "ada/digits", "hub.push_every": 1200, "hub.private": True}
    (tmp_path / "mine.yaml").write_text(dump_recipe(load_recipe("quickstart", pushed)))
    plan = make(("tiny: {recipe: quickstart", f"tiny: {{recipe: {tmp_path / 'mine.yaml'}"))
    training = plan.trainings["tiny"]
    assert training.recipe.hub.repo_id is None
    assert read_recipe("", training.command[2:])[0].hub.repo_id is None
    assert "--hub.repo_id" not in plan.trainings["large"].command
    assert make(settings={"hub.repo_id": "ada/digits"}).trainings["large"].recipe.hub.repo_id is None


def test_measurements_and_pictures_are_commands_that_a_user_can_type(make):
    plan = make(num_images=7)
    assert list(plan.jobs) == ["large", "tiny", "ddim_5", "ddim_10", "large, pictures", "tiny, pictures"]
    options = parse(plan.jobs["ddim_10"].command)
    assert (options.command, options.model) == ("evaluate", str(plan.trainings["tiny"].run))
    assert (options.sampler, options.steps, options.num_images, options.extractor) == ("ddim", 10, 7, "classifier")
    assert options.metrics == ["frechet", "kernel"]
    assert options.out == str(plan.jobs["ddim_10"].out)
    drawn = parse(plan.jobs["tiny, pictures"].command)
    assert (drawn.command, drawn.num_images, drawn.out) == ("sample", 20, str(plan.jobs["tiny, pictures"].out))


def test_what_is_asked_differs_where_its_result_would(make):
    plan = make()

    def changed(*replacements, **options):
        other = make(*replacements, **options)
        return {name for name, job in other.jobs.items() if job.asked != plan.jobs[name].asked}

    assert changed() == set()
    assert changed(("steps: [5, 10]", "steps: [5, 10], eta: 0.5")) == {"ddim_5", "ddim_10"}
    assert changed(("set: {model.block_out_channels: [16, 32]", "set: {model.block_out_channels: [16, 64]")) == {
        "tiny", "ddim_5", "ddim_10", "tiny, pictures",
    }  # fmt: skip
    assert changed(settings={"train.max_steps": "21"}) == set(plan.jobs)
    assert changed(settings={"track.log_every": "7"}) == set()
    assert changed(num_images=50) == {"large", "tiny", "ddim_5", "ddim_10"}
    assert changed(("num_images: 40", "batch_size: 3, num_images: 40")) == set()
    assert changed(("text: The larger is better", "text: The smaller is worse")) == set()


AUTOENCODER = (
    "  large: {recipe: quickstart, label: the larger}",
    "  vae: {small: {recipe: latent/digits_autoencoder}}\n"
    "  large: {recipe: latent/digits, autoencoder: vae, set: {autoencoder.source: some/vae}}",
)


def test_latents_are_of_the_studys_own_autoencoder_where_that_is_there(make):
    plan = make(AUTOENCODER)
    vae, large = plan.trainings["vae"], plan.trainings["large"]
    assert vae.command[:2] == ["-m", "train_autoencoder"]
    assert read_recipe("", vae.command[2:], AutoencoderRecipe)[0] == vae.recipe
    assert large.command[:2] == ["-m", "train_cfg_latent"]
    assert large.needs == "vae"
    assert large.recipe.autoencoder.source == str(vae.run / "autoencoder")
    full = make(AUTOENCODER, scale="full")
    assert "vae" not in full.variants
    assert full.trainings["large"].recipe.autoencoder.source == "some/vae"
    other = make(AUTOENCODER, ("latent/digits_autoencoder", "latent/digits_autoencoder, set: {loss.kl_weight: 0.1}"))
    assert other.trainings["large"].identity != large.identity


def test_a_pretrained_pipeline_is_compared_with_the_images_of_the_first_variant_that_is_trained(make):
    plan = make(("  tiny: {recipe: quickstart, set", "  tiny: {pipeline: some/model} #"))
    job = plan.jobs["tiny"]
    options = parse(job.command)
    assert (options.model, options.reference) == ("some/model", str(plan.trainings["large"].run))
    assert job.needs == ("large",)


def test_evaluations_during_training_use_the_studys_extractor(make):
    every = {"evaluate.every": "20", "train.checkpoint_every": "20"}
    assert make(settings=every).trainings["tiny"].recipe.evaluate.extractor == "classifier"
    other = make(settings={**every, "evaluate.extractor": "inception"})
    assert other.trainings["tiny"].recipe.evaluate.extractor == "inception"


def test_a_label_may_be_of_one_scale(make):
    edits = ("set: {model.block", "full: {label: as published}, set: {model.block")
    assert make(edits).file.label("ddim_5") == "DDIM, 5 steps"
    assert make(edits, ("label: the smaller", "eta: 0.0")).file.label("tiny") == "tiny"
    assert make(edits, ("label: the smaller", "eta: 0.0"), scale="full").file.label("tiny") == "as published"
