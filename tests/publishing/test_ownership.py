"""Folders that a publication may replace, and those that it must not."""

import os

import pytest

from ddpm_hf import files
from ddpm_hf.errors import UserError
from ddpm_hf.files import put_in_place
from ddpm_hf.publishing.ownership import check_place, files_of, held, write_list
from ddpm_hf.publishing.publish import place_of


@pytest.fixture
def ours(tmp_path):
    """As a publication leaves one."""
    folder = tmp_path / "hub"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "README.md").write_text("# A model\n")
    write_list(folder)
    check_place(folder)
    return folder


def refused(folder, **options):
    with pytest.raises(UserError) as error:
        check_place(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_clone_of_an_empty_repository_is_left_alone(tmp_path):
    (tmp_path / "clone" / ".git").mkdir(parents=True)
    (tmp_path / "clone" / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert "clone: holds .git, which ddpm-hf publish did not write; move it" in refused(tmp_path / "clone")


@pytest.mark.parametrize("name", [".git/HEAD", ".env", "unet/.secret", ".empty/", ".DS_Store.txt"])
def test_what_is_hidden_in_a_published_folder_is_somebodys(ours, name):
    if name.endswith("/"):
        (ours / name).mkdir()
    else:
        (ours / name).parent.mkdir(exist_ok=True)
        (ours / name).write_text("mine")
    assert f"hub: {name.strip('/')} in it is not as ddpm-hf publish wrote it" in refused(ours)


def test_a_link_to_a_folder_is_somebodys(ours, tmp_path):
    (tmp_path / "data").mkdir()
    (ours / "data").symlink_to(tmp_path / "data")
    assert "hub: data in it" in refused(ours)


def test_litter_alone_counts_as_nothing(ours, tmp_path):
    (ours / ".DS_Store").write_text("a desktop's")
    (ours / "unet" / "Thumbs.db").write_text("a desktop's")
    (ours / ".ipynb_checkpoints").mkdir()
    (ours / ".ipynb_checkpoints" / "README.md").write_text("a notebook's")
    check_place(ours)
    assert files_of(ours) == ["README.md", "publication.json", "unet/config.json"]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").write_text("a desktop's")
    check_place(tmp_path / "new")


def test_a_home_folder_is_left_alone_at_once(tmp_path, monkeypatch):
    (tmp_path / ".bashrc").write_text("")
    monkeypatch.setattr(os, "walk", lambda *_: pytest.fail("it looks through all of it"))
    assert "holds .bashrc" in refused(tmp_path)


def test_places_that_cannot_be_replaced(ours, tmp_path, monkeypatch):
    assert "--out: / cannot be replaced by a finished folder; name one in it" in refused(place_of("run", "/"))
    monkeypatch.setattr(os.path, "ismount", lambda path: path == ours)
    assert "hub cannot be replaced" in refused(ours)
    monkeypatch.undo()
    monkeypatch.chdir(ours / "unet")
    for out in ("..", "../."):
        assert place_of("run", out) == ours.resolve()
    assert "would be replaced, and is where this was started" in refused(place_of("run", ".."))
    monkeypatch.chdir(tmp_path)
    assert place_of(".", None).name == "hub"
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    assert "start elsewhere" in refused(place_of("run", "."))


def test_what_cannot_be_put_in_place_leaves_the_last_one(ours, tmp_path):
    with pytest.raises(FileNotFoundError):
        put_in_place(tmp_path / "none", ours)
    check_place(ours)
    assert (ours / "README.md").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
    new = files.beside(ours, "new")
    new.mkdir()
    put_in_place(new, ours)
    assert list(ours.iterdir()) == []


def test_two_publications_to_one_folder(ours, tmp_path):
    with held(ours):
        with (
            pytest.raises(UserError, match="hub is being published to already; wait for that, or choose another --out"),
            held(ours),
        ):
            pass
        with held(tmp_path / "other"):
            pass
    with held(ours):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]
