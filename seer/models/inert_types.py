"""Lists the foreign types that checkpoints of other trainers hold beside their tensors, and what is made of them: nothing.

torchvision's reference scripts save their `argparse.Namespace`, timm's and Lightning's checkpoints numpy scalars, paths and
configurations. None of it is wanted here, but torch's restricted unpickler refuses a whole file for one unknown name.

Surprising: not one of these names is given its own type. A name stands for an `Inert`, which takes any arguments and any
state and keeps neither, or for an empty dict where entries follow. So the list can make no code run, whatever is on it and
whatever a file says to do with it (a reduce, a `__setstate__`, an attribute): there is nothing behind a name. A name that is
not listed is refused, with the whole file.
"""

from __future__ import annotations

from typing import Any


class Inert:
    """Stands where a file has an object of a listed type; it holds nothing."""

    __slots__ = ()

    def __new__(cls, *arguments: Any, **named: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Takes what the file says and forgets it."""

    def __setstate__(self, state: Any) -> None:
        """Takes the state that the file gives and forgets it."""


def empty_dict(*arguments: Any) -> dict[Any, Any]:
    """Returns a new dict, whose entries the file then sets."""
    return {}


# shown in messages -> the names that files use for it
_HOLDING_NOTHING: dict[str, tuple[str, ...]] = {
    "argparse.Namespace": ("argparse.Namespace",),
    "numpy.ndarray": (
        *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
        *("numpy.ndarray", "numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"),
    ),
    "numpy scalar": ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    "numpy.dtype": ("numpy.dtype",),
    "path": tuple(
        f"{module}.{kind}{front}Path"
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Pure")
        for front in ("Posix", "Windows", "")
    ),
    "builtin type": tuple(
        f"builtins.{name}"
        for name in ("bool", "dict", "float", "frozenset", "int", "list", "object", "slice", "str", "tuple")
    ),
    "datetime": ("datetime.datetime", "datetime.timedelta", "datetime.date"),
    "version": ("torch.torch_version.TorchVersion",),
    "omegaconf": (
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "typing.Any"),
        *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "Boolean", "Float", "Integer", "Path", "String")),
    ),
    "Lightning's callback": tuple(  # keys of `callbacks` before its version 1.5
        f"pytorch_lightning.callbacks.{name}"
        for name in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")
    ),
}
_EMPTY_DICTS = ("collections.defaultdict",)  # made by a call
_DICTS = (  # dicts with another name, made by `__new__`; they have no behaviour that weights need
    "vissl.config.attr_dict.AttrDict",
    "vissl.utils.hydra_config.AttrDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)

ALLOWED: list[Any] = [
    *((dict, name) for name in _DICTS),
    *((empty_dict, name) for name in _EMPTY_DICTS),
    *(
        (made, name)
        for shown, names in _HOLDING_NOTHING.items()
        for made in [type(shown, (Inert,), {"__slots__": ()})]
        for name in names
    ),
]
