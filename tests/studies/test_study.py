"""Reading a study: what it stands for, and mistakes in one line."""

from pathlib import Path

import pytest

from ddpm_hf.errors import UserError
from ddpm_hf.studies.study import load_study


def test_a_list_of_settings_is_a_family_of_measurements(write_study):
    file = load_study(write_study())
    assert file.members("ddim") == ["ddim_5", "ddim_10"]
    assert file.members("large") == ["large"]
    assert [file.ways[name].steps for name in file.members("ddim")] == [5, 10]
    assert file.label("ddim_10") == "DDIM, 10 steps"
    assert file.label("large") == "the larger"  # the variant's, where the measurement has none


def test_two_lists_make_every_pair(write_study):
    file = load_study(write_study(("sampler: ddim,", "sampler: [ddim, heun],")))
    assert file.members("ddim") == ["ddim_ddim_5", "ddim_ddim_10", "ddim_heun_5", "ddim_heun_10"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("title: Two sizes", "titel: Two sizes", "titel: no such setting; did you mean title?"),
        ("title: Two sizes\n", "", "title: is missing"),
        ("sampler: ddim", "sampler: dddim", "measurements.ddim.sampler.0: 'dddim' is not one of ddpm, ddim, "),
        ("num_images: 40", "num_images: many", "small.evaluate.num_images: 'many' should be a whole number"),
        ("num_images: 40", "num_images: 1", "small.evaluate.num_images: 1 must be at least 2"),
        ("kind: curves", "kind: curve", "figures.0.kind: 'curve' is not one of curves, "),
        ("kind: curves, ", "", "figures.0.kind: is missing"),
        ("x: steps", "x: stepz", "figures.1 (Steps): stepz is no column; did you mean steps?"),
        ("title: Loss, of: [large", "title: Loss, of: [lage", "figures.0 (Loss).of: lage is no variant; did you mean large?"),
        ("title: Images, of: [large", "title: Images, of: [lage", "figures.2 (Images).of: lage is no measurement"),
        ("{of: tiny, label", "{of: tinny, label", "measurements.tiny.of: tinny is no variant; did you mean tiny?"),
        ("{of: ddim}", "{of: dim}", "tables.0 (Sizes).rows: dim is no measurement; did you mean ddim?"),
        ("columns: [frechet", "columns: [frechett", "tables.0 (Sizes).columns: frechett is no column; did you mean frechet?"),
        ("rises: [large, tiny]", "rises: [large, tinny]", "tables.0 (Sizes).claims: tinny is no measurement"),
        ("rises: [large, tiny]", "rises: [large]", "claims.0: needs two or more to compare"),
        ("rises: [large, tiny]", "above: [large, tiny]", "tables.0.claims.0.above: no such setting"),
        ("by: frechet, rises: [large, tiny]", "by: frechet", "claims.0: needs one of rises, falls and alike"),
        ("{recipe: quickstart, label", "{recipe: quickstart, pipeline: a/b, label", "has a recipe and a pipeline"),
        ("label: the larger", "autoencoder: vae", "variants.large.autoencoder: vae is no variant"),
        ("reported: {frechet: 72.307}", "reported: {loss: 1}", "rows.reported: loss is no column of this table"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(write_study, old, new, told):
    path = write_study((old, new))
    with pytest.raises(UserError) as error:
        load_study(path)
    assert str(error.value).startswith(f"{path}: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_study_and_a_recipe_say_what_would_be_right(tmp_path):
    with pytest.raises(UserError, match=r"samplrs: no such study; did you mean samplers\?"):
        load_study("samplrs")
    with pytest.raises(UserError, match="name a YAML file, or one of das, guidance"):
        load_study("zzzzzz")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {source: digits, resolution: 8}\ntrain: {max_steps: 1}\n")
    with pytest.raises(UserError, match=r"is a recipe, which train_unconditional\.py or its like trains"):
        load_study(str(recipe))
    recipe.write_text("- a\n")
    with pytest.raises(UserError, match="a study is a mapping of sections"):
        load_study(str(recipe))
    recipe.write_text("a: [1\n")
    with pytest.raises(UserError, match="line 2: not valid YAML"):
        load_study(str(recipe))


def test_a_mistake_in_a_recipe_comes_before_the_first_training(make):
    with pytest.raises(UserError, match=r"variants\.large: --train.max_steps: 'few' should be a whole number"):
        make(("train.max_steps: 20", "train.max_steps: few"))
    with pytest.raises(UserError, match=r"variants.tiny.set: model.widths: no such setting; did you mean model\."):
        make(("model.block_out_channels:", "model.widths:"))
    with pytest.raises(UserError, match=r"quickstrat: no such recipe file; did you mean quickstart\?"):
        make(("{recipe: quickstart, label", "{recipe: quickstrat, label"))


def test_the_example_in_the_docs_is_a_study(tmp_path):
    docs = Path(__file__).parent.parent.parent / "docs" / "studies.md"
    example = docs.read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "mine.yaml").write_text(example)
    file = load_study(str(tmp_path / "mine.yaml"))
    assert file.members("narrow") == ["narrow_10", "narrow_20"]
