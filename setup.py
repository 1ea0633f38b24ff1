"""What `pip install` needs to know of SEER; tool settings are in pyproject.toml, the tried versions in constraints.txt.

Surprising: the folder `configs/`, which lies at the top of a checkout where people look for it, is installed as the
package `seer.configs`, so that an installed wheel needs no checkout. Editable installs of such a mapping need PEP 660,
hence setuptools >= 77 in pyproject.toml.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"


def version() -> str:
    """Read `__version__` without importing `seer`: an isolated build has none of its requirements."""
    for line in (HERE / "seer" / "__init__.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise SystemExit('seer/__init__.py has no line `__version__ = "…"`; setup.py reads the version there')


setup(
    name="seer-pretrain",
    version=version(),
    description="Self-supervised pretraining of vision backbones from images that nobody labelled or selected",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The SEER authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["seer", "seer.*"]), "seer.configs"],
    package_dir={"seer.configs": "configs"},
    package_data={"seer.configs": ["*.yaml", "**/*.yaml"]},
    zip_safe=False,
    install_requires=[
        "torch>=2.11",  # torch.load(weights_only=True) was escaped below 2.10
        "torchvision>=0.26",  # the release that goes with torch 2.11
        "webdataset>=1.0",
        "hydra-core>=1.3.7,<1.4",  # what a _target_ may name: holes closed in 1.3.4 and 1.3.7; 1.4 changes the API
        "omegaconf>=2.3,<2.4",  # what hydra-core 1.3 is written for
        "PyYAML>=6",  # a run's config.yaml; comes with omegaconf
        "numpy>=2.0",
        "pillow>=13.0",  # fixes of out-of-bounds accesses in decoders came in 12.2, 12.3 and 13.0
        "simplejpeg>=1.9",  # sound JPEGs 1.4 times as fast, same pixels (MIT, 1 MB; libjpeg-turbo inside)
        "zlib-ng>=1.0",  # CRC32 of what is read, four times as fast as the usual zlib's (PSF, 0.4 MB)
        "opencv-python-headless>=4.12",  # mirrored views; color and blur where a CPU trains, six times as fast (Apache-2.0, 153 MB)
        "safetensors>=0.5",
        "tqdm>=4.66",
        "tensorboard>=2.18",
    ],
    extras_require={
        # setuptools: tests/test_packaging.py builds a wheel without fetching anything. timm: to=timm is checked in timm
        # itself (Apache-2.0; 42 MB with the nine packages that it pulls in; 1.0.15 reads local-dir:).
        # onnx (Apache-2.0), onnxruntime (MIT), onnxscript (MIT; torch.onnx writes with it): to=onnx, 120 MB with three more
        # packages. transformers (Apache-2.0, 154 MB and 14 more packages; 5 names what it could not load): to=huggingface is
        # checked in it. None of these is asked for by the tests: where they are installed, tests use them.
        # executorch (BSD-3), torchao (BSD-3; its quantizer): to=executorch, 541 MB and 41 packages in all,
        # coremltools and pandas among them; both follow torch closely, so a release that was not tried is not taken.
        # pytest-xdist (MIT, 0.3 MB with execnet; of pytest's own people): two tests at a time.
        # scikit-learn (BSD-3, 51 MB; scipy, BSD, 113 MB, and three small packages with it) and pycocotools (FreeBSD, 1.7 MB, needs
        # numpy alone): figures are held against theirs; where they are not installed, these tests are left out.
        # fairscale (BSD, 0.3 MB, a source package without upkeep since 2022): parallel.mode=fairscale, for comparison.
        "device": ["executorch>=1.5,<1.6", "torchao>=0.18,<0.19"],
        "fairscale": ["fairscale==0.4.13"],
        # pycocotools (FreeBSD, 1.7 MB, needs numpy alone): figures of heads=mask_rcnn are its own.
        "coco": ["pycocotools>=2.0.8"],
        "huggingface": ["transformers>=5", "huggingface_hub>=1"],
        "onnx": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],
        "test": ["fairscale==0.4.13", "pytest>=9.0", "pytest-xdist>=3.8", "ruff>=0.15", "mypy>=1.19", "setuptools>=77"]
        + ["timm>=1.0.15", "scikit-learn>=1.6", "pycocotools>=2.0.8"],
    },
    entry_points={"console_scripts": ["seer = seer.__main__:entry"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
