"""The package as `pip install` leaves it: outside the checkout, with all that it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.support.planted import catches
from tests.support.programs import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that the wheel is unpacked into, as `pip install --target` does."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    shutil.copytree(ROOT / "lmpg", source / "lmpg", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(target)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


def said(installed: Path, *words: str) -> str:
    """What Python prints there, with this package and another working directory."""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    run = [sys.executable, *words]
    done = subprocess.run(run, cwd=installed.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@catches("presets that the wheel leaves in the checkout")
def test_all_files_of_the_package_are_in_the_wheel(installed):
    files = {path.relative_to(ROOT) for path in (ROOT / "lmpg").rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    assert [path for path in sorted(files) if not (installed / path).is_file()] == []
    assert len([path for path in files if path.suffix == ".yaml"]) > 50


def test_the_wheel_says_under_which_licence_it_is_and_has_its_text(installed):
    (folder,) = installed.glob("*.dist-info")
    metadata = message_from_bytes((folder / "METADATA").read_bytes())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    text = (folder / "licenses" / "LICENSE").read_text()
    assert text == (ROOT / "LICENSE").read_text()
    assert "Apache License" in text


def test_the_installed_program_knows_its_version_its_commands_and_its_presets(installed):
    assert said(installed, "-m", "lmpg", "--version") == "lmpg 0.1.0\n"
    assert "dapo" in said(installed, "-m", "lmpg", "train", "--help")
    read = (
        "import lmpg\nfrom lmpg.settings.presets import *\nprint(lmpg.__file__)\n"
        "print(named_preset('dapo', ['grpo'])[1]['algorithm'], config_file('ppo_cartpole_fast'))"
    )
    place, values = said(installed, "-c", read).splitlines()
    assert Path(place).is_relative_to(installed)
    assert "'clip_high': 0.28" in values
    assert values.endswith(str(installed / "lmpg" / "presets" / "gym" / "ppo_cartpole_fast.yaml"))
