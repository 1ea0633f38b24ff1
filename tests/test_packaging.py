"""What an installed SEER consists of: the wheel holds all code and all configurations, and the pins fit the ranges."""

import email
import importlib.resources
import re
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[1]


def pins() -> dict[str, str]:
    lines = (TOP / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(name): version.strip() for name, version in pairs}


@pytest.fixture
def wheel(wheel_path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(wheel_path)


def header(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


@pytest.mark.slow  # one wheel, about 3 s
def test_the_wheel_holds_all_code_and_all_configurations_and_nothing_else(wheel):
    code = {p.relative_to(TOP).as_posix() for p in (TOP / "seer").rglob("*.py")}
    config = {
        f"seer/{p.relative_to(TOP).as_posix()}" for kind in ("*.yaml", "*.py") for p in (TOP / "configs").rglob(kind)
    }
    assert any(name.endswith(".yaml") for name in config)
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == code | config


@pytest.mark.slow
def test_the_wheel_says_who_runs_it_and_under_which_licence(wheel):
    names = wheel.namelist()
    (entry_points,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
    assert "seer = seer.__main__:entry" in wheel.read(entry_points).decode()
    assert any(re.search(r"\.dist-info/.*LICENSE$", n) for n in names)
    assert header(wheel)["Requires-Python"] == ">=3.11"


@pytest.mark.slow
def test_each_pin_lies_in_the_range_that_setup_py_gives(wheel):
    wanted = [Requirement(text) for text in header(wheel).get_all("Requires-Dist")]
    assert {"torch", "pytest"} <= {r.name for r in wanted}
    pinned = pins()
    for requirement in wanted:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"{requirement.name}=={version} is pinned, {requirement} wanted"


def test_everything_that_is_pulled_in_is_pinned():
    """Follows the requirements of what is installed here, so a new one cannot float unnoticed. Versions may differ:
    a GPU machine brings its own torch."""
    pinned, seen, todo = pins(), set(), [Requirement("seer-pretrain[test]")]
    try:
        metadata.distribution("seer-pretrain")
    except metadata.PackageNotFoundError:
        pytest.skip("seer-pretrain is not installed here, so its requirements are not known")
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), tuple(sorted(requirement.extras)))
        if key in seen:
            continue
        seen.add(key)
        for text in metadata.requires(requirement.name) or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in requirement.extras or {""}):
                todo.append(inner)
    missing = {name for name, _ in seen} - pinned.keys() - {"seer-pretrain"}
    assert not missing, f"constraints.txt does not pin {sorted(missing)}"


def test_the_configurations_are_found_as_a_package():
    pytest.importorskip("seer.configs", reason="not installed here; `make setup` maps configs/ to seer.configs")
    folder = importlib.resources.files("seer.configs")
    assert (folder / "pretrain.yaml").is_file()
    assert any(file.name.endswith(".yaml") for file in (folder / "recipe").iterdir())
