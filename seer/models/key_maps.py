"""Says what a RegNetY's tensors are called in our state dicts, and in those of torchvision, VISSL, timm and
Hugging Face.

Five tables and one rule. A key is the path of a block, a part inside it and a leaf; the five differ in how they spell the
first two and from where they count. Surprising:
- VISSL puts squeeze-and-excitation into an `nn.Sequential` (0 and 2, the ReLU between them has 1), calls the last batch
  norm of a block `final_bn` and the shortcut's `bn`, and numbers residual stages from `res2`.
- Its 10B model, cut for activation checkpointing, has one more element in the path, `block3-part1`, that is left out here.
- timm's stem is spelled like ours, so only blocks tell whose names these are.
- What wrappers put in front of or between the elements (DDP, fairscale's FSDP, torch.compile, VISSL's trunk and feature
  extractor, Hugging Face's classifier) is no part of a name: `unwrapped` takes it away.

Sources: facebookresearch/vissl and ClassyVision, torchvision.models.regnet, timm.models.regnet, transformers'
modeling_regnet; the tests hold the same tables written out key by key. Legend: S stage from 1, i block from 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_LEAVES = frozenset(LEAVES)
_BETWEEN = {"_fsdp_wrapped_module", "_fpw_module", "_orig_mod", "_checkpoint_wrapped_module"}
_IN_FRONT = {"module", "base_model", "trunk", "_feature_blocks", "regnet"}
_CHECKPOINTED_PART = re.compile(r"block\d{1,4}-part\d{1,6}")


@dataclass(frozen=True)
class Names:
    """Holds one library's spelling. `parts` and `stem`: our part -> theirs; `block`: (S, i) -> the path of a block."""

    library: str
    stem: Mapping[str, str]
    parts: Mapping[str, str]
    block: Callable[[int, int], str]
    numbers: re.Pattern[str]  # finds `stage` and `block` in the path of a block, as this library counts
    first: tuple[int, int] = (1, 0)  # what it calls our stage 1 and our block 0
    heads: re.Pattern[str] = field(default=re.compile(r"(?!)"))  # what stands on the backbone and is left out

    @cached_property
    def _ours(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in {**self.stem, **self.parts}.items()}

    def from_ours(self, key: str) -> str | None:
        """Returns their key for ours, or None when it is none of ours."""
        path, _, leaf = key.rpartition(".")
        if leaf not in _LEAVES:
            return None
        if path in self.stem:
            return f"{self.stem[path]}.{leaf}"
        found = _OUR_BLOCK.fullmatch(path)
        part = self.parts.get(found["part"]) if found else None
        return f"{self.block(int(found['stage']), int(found['block']))}.{part}.{leaf}" if found and part else None

    def to_ours(self, key: str) -> str | None:
        """Returns our key for theirs, unwrapped, or None when it is none of theirs."""
        path, _, leaf = key.rpartition(".")
        if leaf not in _LEAVES:
            return None
        if path in self.stem.values():
            return f"{self._ours[path]}.{leaf}"
        found = self.numbers.match(path)
        if not found:
            return None
        stage, block = int(found["stage"]) - self.first[0] + 1, int(found["block"]) - self.first[1]
        front = f"{self.block(stage, block)}."  # spelled back: numbers said twice must agree, and "block01" is no name
        ours = self._ours.get(path.removeprefix(front))
        if stage < 1 or block < 0 or ours not in self.parts:
            return None
        return f"stage{stage}.block{block}.{ours}.{leaf}"


_PARTS = (
    "a.conv",
    "a.bn",
    "b.conv",
    "b.bn",
    "se.reduce",
    "se.expand",
    "c.conv",
    "c.bn",
    "shortcut.conv",
    "shortcut.bn",
)
_STEM = ("stem.conv", "stem.bn")
_OUR_BLOCK = re.compile(r"stage(?P<stage>\d{1,4})\.block(?P<block>\d{1,6})\.(?P<part>[a-z.]+)")


def _names(words: str, ours: Iterable[str]) -> dict[str, str]:
    return dict(zip(ours, words.split(), strict=True))


OURS = Names(
    library="ours",
    stem=_names("stem.conv stem.bn", _STEM),
    parts=_names(" ".join(_PARTS), _PARTS),
    block=lambda s, i: f"stage{s}.block{i}",
    numbers=re.compile(r"stage(?P<stage>\d{1,4})\.block(?P<block>\d{1,6})\."),
)
TORCHVISION = Names(
    library="torchvision",
    stem=_names("stem.0 stem.1", _STEM),
    parts=_names("f.a.0 f.a.1 f.b.0 f.b.1 f.se.fc1 f.se.fc2 f.c.0 f.c.1 proj.0 proj.1", _PARTS),
    block=lambda s, i: f"trunk_output.block{s}.block{s}-{i}",
    numbers=re.compile(r"trunk_output\.block\d{1,4}\.block(?P<stage>\d{1,4})-(?P<block>\d{1,6})\."),
    heads=re.compile(r"fc\.(weight|bias)"),
)
VISSL = Names(
    library="VISSL",
    stem=_names("conv1.stem.0 conv1.stem.1", _STEM),
    parts=_names("f.a.0 f.a.1 f.b.0 f.b.1 f.se.excitation.0 f.se.excitation.2 f.c f.final_bn proj bn", _PARTS),
    block=lambda s, i: f"res{s + 1}.block{s}-{i}",
    numbers=re.compile(r"res\d{1,4}\.block(?P<stage>\d{1,4})-(?P<block>\d{1,6})\."),
    heads=re.compile(r"(heads\.)?\d{1,3}\.(projection_head|prototypes\d{1,3}|clf|channel_bn)\..+"),
)
TIMM = Names(
    library="timm",
    stem=_names("stem.conv stem.bn", _STEM),
    parts=_names(
        "conv1.conv conv1.bn conv2.conv conv2.bn se.fc1 se.fc2 conv3.conv conv3.bn downsample.conv downsample.bn",
        _PARTS,
    ),
    block=lambda s, i: f"s{s}.b{i + 1}",
    numbers=re.compile(r"s(?P<stage>\d{1,4})\.b(?P<block>\d{1,6})\."),
    first=(1, 1),
    heads=re.compile(r"head\.fc\.(weight|bias)"),
)
HUGGING_FACE = Names(
    library="Hugging Face",
    stem=_names("embedder.embedder.convolution embedder.embedder.normalization", _STEM),
    parts=_names(
        "layer.0.convolution layer.0.normalization layer.1.convolution layer.1.normalization layer.2.attention.0 "
        "layer.2.attention.2 layer.3.convolution layer.3.normalization shortcut.convolution shortcut.normalization",
        _PARTS,
    ),
    block=lambda s, i: f"encoder.stages.{s - 1}.layers.{i}",
    numbers=re.compile(r"encoder\.stages\.(?P<stage>\d{1,4})\.layers\.(?P<block>\d{1,6})\."),
    first=(0, 0),
    heads=re.compile(r"classifier\.1\.(weight|bias)"),
)
LIBRARIES = (OURS, TORCHVISION, VISSL, TIMM, HUGGING_FACE)


def unwrapped(key: str) -> str:
    """Returns a key without what wrappers added to it: `module._feature_blocks.res2.block1-part0.block1-0.…` ->
    `res2.block1-0.…`."""
    elements = [
        element for element in key.split(".") if element not in _BETWEEN and not _CHECKPOINTED_PART.fullmatch(element)
    ]
    while elements and elements[0] in _IN_FRONT:
        del elements[0]
    return ".".join(elements)


def recognise(keys: Iterable[str]) -> Names | None:
    """Returns whose names most of these unwrapped keys are, judged by blocks alone; None when no key is anybody's."""
    counts = dict.fromkeys(range(len(LIBRARIES)), 0)
    for key in keys:
        for number, names in enumerate(LIBRARIES):
            counts[number] += bool(names.numbers.match(key))
    best = max(counts, key=lambda number: counts[number])
    return LIBRARIES[best] if counts[best] else None
