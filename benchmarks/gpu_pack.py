"""Prepares the folder that is carried to a GPU machine without network: wheels of what a torch image lacks, and CIFAR-10.

    python benchmarks/gpu_pack.py output=carried cifar=cifar10-train.tar [limit=64] [packages=NAME,NAME] [wheels=true] [python=3.12]

packages: MISSING of this file unless given. Versions are those of constraints.txt; wheels are for manylinux x86-64; what has
no wheel is built here, which does for pure Python. The tar goes into one xz file: JPEGs of 900 bytes are mostly equal tables
and the tar's own padding (77.2 MB become 15.4 MB). limit: MB (2^20 bytes) that wheels, data and the checkout's tracked
files may take together. Exit status 1 when they do not fit; the table says what is how large.
"""

import lzma
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What SEER needs and an image with torch, torchvision, numpy, OpenCV, safetensors, tensorboard, tqdm, PyYAML and pytest lacks.
# Pillow is among them because images tend to hold one below 13. OpenCV (a wheel of 50 MB or more) is not.
MISSING = "webdataset hydra-core omegaconf antlr4-python3-runtime braceexpand simplejpeg zlib-ng pillow"
OURS = {
    "output": "",
    "cifar": "",
    "limit": "64",
    "packages": MISSING.replace(" ", ","),
    "wheels": "true",
    "python": "3.12",
}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pinned(packages: list[str]) -> list[str]:
    """Returns "NAME==VERSION" by constraints.txt. Raises SystemExit for a package that is not in it."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    known = {line.split("==")[0].lower(): line.split(" ")[0].strip() for line in lines if "==" in line}
    if unknown := [name for name in packages if name.lower() not in known]:
        raise SystemExit(f"packages={','.join(unknown)}: constraints.txt names no version")
    return [known[name.lower()] for name in packages]


def fetch(wheels: Path, packages: list[str], python: str) -> None:
    """Fetches wheels one by one, and builds one where there is none."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    for one in pinned(packages):
        only = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]
        found = subprocess.run([*pip, "download", *only, "-d", str(wheels), one], capture_output=True, text=True)
        if found.returncode == 0:
            continue
        built = subprocess.run([*pip, "wheel", "--no-deps", "-w", str(wheels), one], capture_output=True, text=True)
        name = one.split("==")[0].replace("-", "_")
        if built.returncode or not list(wheels.glob(f"{name}-*-none-any.whl")):
            raise SystemExit(
                f"{one}: no wheel for Python {python}, nor one of pure Python: {found.stderr.strip()[-300:]}"
            )


def pack(tar: Path, goal: Path) -> None:
    partial = goal.with_suffix(".writing")
    with tar.open("rb") as wide, lzma.open(partial, "wb", preset=6) as narrow:
        shutil.copyfileobj(wide, narrow, 1 << 20)
    partial.replace(goal)


def tracked() -> int:
    """Returns the bytes of the files that travel with a checkout, 0 outside one."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return sum((ROOT / name).stat().st_size for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


def main() -> int:
    words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if wrong := [word for word in sys.argv[1:] if word.split("=")[0] not in OURS or "=" not in word]:
        raise SystemExit(f"{' '.join(wrong)}: words are {', '.join(f'{k}=' for k in OURS)}")
    given = OURS | words
    if not given["output"] or not given["cifar"]:
        print(f"{__doc__}\nnot run: it needs output= and cifar=")
        return 0
    output, tar = Path(given["output"]), Path(given["cifar"])
    if not tar.is_file():
        raise SystemExit(f"cifar={tar}: no such file")
    wheels = output / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    if given["wheels"] == "true":
        for old in wheels.glob("*.whl"):  # two versions of one package cannot be installed
            old.unlink()
        fetch(wheels, [name for name in given["packages"].split(",") if name], given["python"])
    pack(tar, output / f"{tar.name}.xz")
    sizes = {path.name: path.stat().st_size for path in sorted(output.rglob("*")) if path.is_file()}
    sizes["tracked files of the checkout"] = tracked()
    for name, size in sizes.items():
        print(f"{size / 2**20:8.2f} MB  {name}")
    total, limit = sum(sizes.values()) / 2**20, float(given["limit"])
    fits = total <= limit
    print(f"{total:8.2f} MB  in all, of {limit:g}: {'fits' if fits else 'does NOT fit; carry fewer packages or data'}")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
