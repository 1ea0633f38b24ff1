"""Imports the libraries that an export is checked in, or says in one line which to install.

Surprising: a library that is not here is no failure of `to=all`, which tells it and goes on; asked for by name it is.
"""

from __future__ import annotations

from importlib import import_module

from seer.core.errors import RequestError


class NotInstalledError(RequestError):
    """Says that a target's library cannot be imported here, and what installs it: exit 78."""


def needs(target: str, modules: tuple[str, ...], *, install: str) -> None:
    """Raises NotInstalledError unless all modules can be imported. install: what `pip install` is to be given."""
    for name in modules:
        try:
            import_module(name)
        except ImportError as error:
            raise NotInstalledError(
                f"to={target} is checked in {', '.join(modules)}, of which {name} cannot be imported ({error}): "
                f"pip install {install}"
            ) from error
