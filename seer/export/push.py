"""Pushes an exported folder to the hub of Hugging Face, or to a server that speaks its protocol (HF_ENDPOINT).

Surprising:
- Nothing leaves before it was told, file by file, and before what is to leave was searched for paths and names of this machine. A find
  is refused, not removed: whoever wrote it there should know.
- A repository that exists is left alone, unless it is as private as was asked for and holds nothing yet: so a push that was cut off
  can be run again.
- Files go by HTTP (LFS), which every server of this protocol has. With hf_xet, which comes along, the library would take Xet without
  asking whether the server offers it, try for a minute or two where it does not, and send to hosts that nobody named.
- The token is that of HF_TOKEN, or what `hf auth login` stored. No file of ours names one, nor whom to push to.
- huggingface_hub comes with the extra `[huggingface]`, imported here when asked for; it is the only part of SEER that talks to a network.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.export.optional import needs

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# /a/b of a file system, behind no letter, digit, dot, colon or slash: not those inside of https://a/b/c or a/b/c
ABSOLUTE = re.compile(r"(?<![\w.:/~-])(?:~|/[\w.@+-]+)(?:/[\w.@+-]+)+|\b[A-Za-z]:\\[\w.\\-]+")
NETWORK = (
    "httpx",
    "httpx2",
    "httpcore",
    "requests",
    "urllib3",
    "hf_xet",
)  # whose errors are those of the way to the hub
BEGUN = frozenset({".gitattributes"})  # what a new repository holds


@dataclass(frozen=True)
class Destination:
    """Says where an export goes. repository: USER/NAME. api: huggingface_hub's, with endpoint and token."""

    repository: str
    private: bool
    api: Any


def destination(repository: str, private: bool) -> Destination:
    """Returns where to push. Raises RequestError for what is no USER/NAME, and without a token or the library."""
    if not NAME.fullmatch(repository):
        raise RequestError(f"push={repository}: USER/NAME of the repository, of letters, digits, '.', '_' and '-'")
    needs("huggingface", ("huggingface_hub",), install="'seer-pretrain[huggingface]'")
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise RequestError(f"push={repository}: no token; set HF_TOKEN, or run `hf auth login` once")
    return Destination(repository, private, HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token))


def push(to: Destination, files: Sequence[Path], names: Sequence[str] = ()) -> dict[str, Any]:
    """Creates the repository and commits the files to it; returns what the result says of it.

    names: more words that must not leave, like paths that were typed. Raises RequestError for a find of such, for a token that is
    not taken and a repository that is there already, and StorageError where the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd

    check(files, names)
    api, kind = to.api, "private" if to.private else "PUBLIC"
    sizes = [{"name": file.name, "bytes": file.stat().st_size} for file in files]
    listed = ", ".join(f"{one['name']} ({one['bytes']:,} bytes)" for one in sizes)
    log.info(f"leaves this machine for {api.endpoint}/{to.repository}, {kind}: {listed}")
    with _told(to), ExitStack() as opened:
        _create(to)
        # opened, not named: so the library goes by HTTP (LFS) though hf_xet is there
        parts = [CommitOperationAdd(file.name, opened.enter_context(file.open("rb"))) for file in files]
        made = api.create_commit(to.repository, parts, commit_message="Export a backbone")
    url = f"{api.endpoint}/{to.repository}"
    log.info(f"pushed: {url}")
    return {"repository": to.repository, "url": url, "private": to.private, "commit": made.oid, "files": sizes}


def _create(to: Destination) -> None:
    """Makes the repository. Raises RequestError where it is there already and holds anything, or is not as private as asked."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        to.api.create_repo(to.repository, private=to.private)
        return
    except HfHubHTTPError as error:
        if _status(error) != 409:
            raise
    there = to.api.model_info(to.repository)
    held = {one.rfilename for one in there.siblings or ()} - BEGUN
    if held or bool(there.private) != to.private:
        kind = f"holds {len(held)} files" if held else f"is {'private' if there.private else 'public'}"
        raise RequestError(
            f"push={to.repository}: it exists on {to.api.endpoint} and {kind}; give another name, or delete it there"
        )


@contextmanager
def _told(to: Destination) -> Iterator[None]:
    """Turns what the hub and the way to it say into RequestError or StorageError."""
    try:
        yield
    except (RequestError, StorageError):
        raise
    except Exception as error:  # of several libraries, by what is installed
        deepest = _of_the_way(error)  # the library wraps what broke an upload off
        if deepest is None:
            raise
        status, where = _status(deepest), f"push={to.repository}: {to.api.endpoint}"
        words = (str(deepest).strip() or type(deepest).__name__).splitlines()[0]
        if status in (401, 403):
            raise RequestError(
                f"{where} answers {status}: the token of HF_TOKEN or `hf auth login` may not write there ({words})"
            ) from error
        if status is not None and 400 <= status < 500 and status not in (408, 429):
            raise RequestError(f"{where} refuses, status {status}: {words}") from error
        raise StorageError(
            f"{where} was not reached, or broke off: {words}. The folder here is whole; run it again to push, or push it later"
        ) from error


def _of_the_way(error: BaseException | None) -> Exception | None:
    """Returns the first of an error and its causes that an answer of the hub, the network or the system gave; None where none is."""
    while isinstance(error, Exception):
        if _status(error) is not None or isinstance(error, OSError) or type(error).__module__.split(".")[0] in NETWORK:
            return error
        error = error.__cause__
    return None


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def check(files: Sequence[Path], names: Sequence[str] = ()) -> None:
    """Raises RequestError for a file that names a place of this machine: its host, an absolute path, or one of `names`."""
    host = socket.gethostname()
    own = {host, host.partition(".")[0], str(Path.home()), os.getcwd(), *(name for name in names if "/" in name)}
    words = [re.escape(word) for word in own if len(word.strip("/")) > 1]
    patterns = [ABSOLUTE, *([re.compile(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])")] if words else [])]
    for file in files:
        text = _text(file)
        for found in filter(None, (pattern.search(text) for pattern in patterns)):
            line = text.count("\n", 0, found.start()) + 1
            raise RequestError(
                f"{file}, line {line}: {found[0]!r} names a place of this machine, and would leave it; nothing was pushed. Take it out "
                "of what the weights say (licence, recipe), or push the folder yourself"
            )


def _text(file: Path) -> str:
    """Returns what can be read of a file: all of a text, and of safetensors the header, behind which are numbers alone."""
    if file.suffix != ".safetensors":
        return file.read_text(encoding="utf-8")
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        return opened.read(size).decode("utf-8")


KEPT_OUT = ("source", "output", "weights", "train", "test", "exclude", "replay", "labels", "fields", "mask")


def without_paths(recipe: Any) -> Any:
    """Returns a recipe (JSON of dotted keys, as runs keep it) without what names files: those settings say where the images of a
    training lie, and are of no use elsewhere. Any other text is returned as it is."""
    try:
        settings = json.loads(recipe)
    except (TypeError, ValueError):
        return recipe
    if not isinstance(settings, dict):
        return recipe
    kept = {key: value for key, value in settings.items() if not _names_files(key, value)}
    return json.dumps(kept)


def _names_files(key: str, value: Any) -> bool:
    words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    texts = [one for one in words if isinstance(one, str)]
    last = key.rpartition(".")[2]
    if any("/" in one or "\\" in one or one.startswith("~") for one in texts):
        return True
    return bool(texts) and last in KEPT_OUT and texts != ["auto"]
