"""config_dir() finds the configuration tree of a checkout and of a wheel."""

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metarun import paths
from metarun.config.compose import assigned
from tests.running import metarun


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty place that looks as if metarun were installed there."""
    folder = tmp_path / "site" / "metarun"
    folder.mkdir(parents=True)
    monkeypatch.setattr(paths, "PACKAGE", folder)
    return folder


def add_config(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    return folder


def test_a_wheel_uses_the_folder_inside_the_package(package):
    inside = add_config(package / "configs")
    assert paths.config_dir() == inside


def test_a_checkout_uses_the_folder_beside_it_even_when_an_old_copy_lies_inside(package):
    add_config(package / "configs")
    (package.parent / "pyproject.toml").touch()
    beside = add_config(package.parent / "configs")
    assert paths.config_dir() == beside


def test_another_projects_configs_in_site_packages_are_left_alone(package):
    add_config(package.parent / "configs")
    inside = add_config(package / "configs")
    assert paths.config_dir() == inside


def test_a_missing_tree_is_an_error_that_names_the_places(package):
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is not in .*metarun"):
        paths.config_dir()


def test_this_checkout_uses_its_own_configs():
    assert paths.config_dir() == Path(__file__).resolve().parent.parent / "configs"


@pytest.mark.parametrize(
    "path",
    [
        *("/tmp/plain-1.2/x", "/tmp/jürgen, w", "/tmp/it's (mine)", "/tmp/a b=c", "/tmp/[1]{2}$"),
        *("/tmp/sw~p", "~x.csv", "/tmp/a#b", "/tmp/a\\b", "/tmp/a\\'b", "/tmp/a\\"),
    ],
)
def test_a_path_on_a_command_line_is_read_as_it_was(path):
    (override,) = OverridesParser.create().parse_overrides([assigned("run_dir", Path(path))])
    assert override.value() == path


def test_a_path_is_shown_relative_to_the_folder_that_it_lies_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.as_shown(tmp_path / "runs" / "a") == "runs/a"
    assert paths.as_shown(tmp_path) == str(tmp_path)
    assert paths.as_shown(tmp_path.parent / "other") == str(tmp_path.parent / "other")


@pytest.mark.parametrize("words", [["steps=2"], ["-m", "seed=0,1", "steps=2"], ["runs", "/"], ["--cfg", "job"]])
def test_a_current_folder_that_was_deleted_is_named_with_the_fix(words, tmp_path, monkeypatch):
    lost = tmp_path / "lost"
    lost.mkdir()
    monkeypatch.chdir(lost)
    lost.rmdir()
    outcome = metarun(*words)
    assert (outcome.code, outcome.out) == (2, "") and "the current folder was deleted; go to one" in outcome.err


@pytest.mark.parametrize("words", [["steps=2"], ["-m", "seed=0,1", "steps=2"]])
def test_runs_do_not_begin_below_a_folder_whose_name_is_no_utf_8(words, tmp_path, monkeypatch):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    monkeypatch.chdir(folder)
    outcome = metarun(*words)
    assert outcome.code == 2 and "has letters that are no UTF-8; rename its folder" in outcome.err
    assert not list(folder.iterdir())
