"""Runs a verb, `seer VERB word=value …`, prints its result, turns failures into one sentence and an exit status.

Standard output carries one line, the result as JSON, from the first rank alone; people read standard error. The verb's
output folder gets the same as `result.json`, with `exit`, since torchrun hides exit statuses behind 1.
"""

import difflib
import errno
import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seer import __version__
from seer.core import launcher, log, streams
from seer.core.errors import WRONG_PATH, RequestError
from seer.core.secrets import cleaned
from seer.core.signals import listener

VERBS = {
    "pretrain": "train a backbone from images that nobody labelled",
    "adapt": "heads on a backbone, frozen or fine-tuned: classes, tags, numbers, maps, boxes",
    "shard": "images -> tar shards with an index beside each",
    "evaluate": "what the features are worth: kNN, linear, low-shot, RankMe",
    "plan": "what a training step needs of each GPU, before a job is queued",
    "export": "a backbone that loads elsewhere, with a parity check",
    "measure": "an exported program: milliseconds, memory, accuracy of the file itself",
}
STORAGE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
}  # failures that it answers for
GONE = {errno.EPIPE, errno.EIO}  # of standard output: whoever read it, or the terminal; a disk would say more
HELP = ("-h", "--help", "help")
VERSION = ("--version", "-V", "-v", "version")
EXIT_HELP = "exit status: 0 done, 75 saved on request (run again), 65 bad data, 74 storage, 78 wrong request, 70 defect"

HELP_TEXT = "\n".join(
    [
        "usage: seer VERB key=value …",
        *(f"  seer {name:<10}{what}" for name, what in VERBS.items()),
        "begin with the built-in images, or with a folder of your own:",
        "  seer pretrain recipe=sample",
        "  seer pretrain recipe=swav_small data.source=/path/to/images output=runs/mine",
        "more: seer VERB --help [GROUP], seer VERB … --print-config, seer --version, seer --completion bash|zsh",
        EXIT_HELP,
    ]
)


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        rank, wrong = launcher.adopt(os.environ).rank, None
    except RequestError as error:
        rank, wrong = 0, str(error)  # which rank cannot be known: each tells
    log.setup(rank)
    if not words:
        print(HELP_TEXT, file=sys.stderr)
        return 78
    if (status := _shown(words, rank)) is not None:
        return status
    verb, words = words[0], words[1:]
    given = tuple(words)
    if verb not in VERBS:
        return _no_verb(verb, rank)
    if wrong:
        return _end({"verb": verb, "exit": 78, "error": wrong}, rank)
    result: dict[str, Any] = {"verb": verb, "exit": 0}
    reports = rank == 0  # whether this rank speaks; of failures the one that failed first, or the lowest that is left
    output: list[Path] = []  # the verb appends its output folder as soon as it owns it
    try:
        from seer.cli import config  # Hydra costs half of what `--help` may cost

        settings = config.read(verb, words)  # before torch is imported, which costs seconds
        module = importlib.import_module(f"seer.cli.{verb}")
        gc.enable()  # see `seer.__main__`
        listener.owns(
            output, unwinds=verb not in ("pretrain", "adapt")
        )  # which write nothing before they own their folder
        result.update(module.run(settings, output))
        listener.result_begins()
    except KeyboardInterrupt as asked:
        listener.result_begins()
        by = f" by {asked.args[0]}" if asked.args else ""
        result.update(exit=75, error=f"interrupted{by} before anything had to be saved; run the same command again")
    except Exception as error:  # the one place where failures become statuses
        listener.result_begins()
        status = getattr(error, "exit_status", 78 if isinstance(error, ValueError | FileNotFoundError) else 70)
        words = str(error) or type(error).__name__
        if isinstance(error, OSError) and (path := _wrong_path(error, given)):
            status, words = 78, f"{path}: {error.strerror}; give another path"
        elif isinstance(error, OSError) and error.errno in STORAGE:
            status, words = 74, f"{words}; see to the storage or make room, and run the same command again"
        result.update(getattr(error, "result", {}), exit=status, error=words)
        reports = getattr(error, "reports", rank == 0)
        if reports and not hasattr(error, "exit_status") and status == 70:  # nobody foresaw it
            with suppress(OSError):  # the terminal was closed
                traceback.print_exc()
    return _end(result, rank, output[0] if output else None, reports)


def entry(closed: Sequence[str] = ()) -> None:
    """Runs the program and ends the process with the status of `main`. closed: standard streams that were.

    Of several ranks, at once: threads of gloo may abort while the interpreter unwinds ("terminate called without an active
    exception"), which would turn a finished run into a failed one. All that matters is on the disk by then.
    """
    closed = closed or streams.complete()
    listener.listen()  # scripts of older installations come here first
    try:
        status = main()
        if "stdout" in closed:
            log.log.error("the result cannot be printed: standard output is closed")
    except OSError as error:  # of help: all else becomes a status in `main`
        if error.errno not in GONE | STORAGE:
            raise
        status = 0 if error.errno in GONE else 74
    except KeyboardInterrupt as asked:  # in the few lines around what `main` catches
        listener.end(str(asked) or "SIGINT")
        raise
    listener.over()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # whoever read it is gone; the interpreter would try again, and make the status 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1"):
        os._exit(status)
    raise SystemExit(status)


def _wrong_path(error: OSError, words: Sequence[str]) -> str | None:
    """Returns the word whose path the system does not take: too long, below a file, where a file is, not permitted. None for
    errors of files that no word names."""
    for key, _, value in (word.partition("=") for word in words):
        path = os.path.expanduser(value.strip("'\""))
        where = str(error.filename or "")
        if error.errno in WRONG_PATH and path and (where == path or where.startswith(f"{path}/")):
            return f"{key}={value if len(value) <= 100 else f'{value[:60]}… ({len(value)} letters)'}"
    return None


def _end(result: dict[str, Any], rank: int, output: Path | None = None, reports: bool | None = None) -> int:
    listener.result_begins()
    result = cleaned(result)
    status, reports = int(result["exit"]), rank == 0 if reports is None else reports
    if "error" in result and reports:
        log.log.error(f"seer {result['verb']}: {f'rank {rank}: ' if rank else ''}{result['error']}")
    if reports:
        line = json.dumps(result)
        if output is not None and output.is_dir():
            try:
                temporary = output / ".result.json.writing"
                temporary.write_text(line + "\n", encoding="utf-8")
                temporary.replace(output / "result.json")
            except OSError as error:
                message = f"{output / 'result.json'} cannot be written: {error.strerror}"
                log.log.error(message)
                if status == 0:  # whoever asks the folder must not be told that all is done
                    status, line = 74, json.dumps({**result, "exit": 74, "error": message})
        try:
            print(line, flush=True)
        except OSError as error:
            log.log.error(f"the result cannot be printed: {error.strerror}")
            if status == 0 and error.errno not in GONE:
                status = 74
    return status


def _asked_for_help(words: Sequence[str]) -> tuple[str, list[str], list[str]] | None:
    """Returns the verb ("" for all of them), its other words and the groups asked about, of a call for help; None of any other."""
    words = list(words)
    if words and words[0] in HELP:
        words = [*words[1:2], "--help", *words[2:]]
    verb, rest = ("", words) if not words or words[0] in HELP else (words[0], words[1:])
    if not any(word in HELP or word.startswith("--help=") for word in rest):
        return None
    at = next(i for i, word in enumerate(rest) if word in HELP or word.startswith("--help="))
    after = [word for word in rest[at + 1 :] if word not in HELP]
    named = [rest[at].partition("=")[2], *(word for word in after if "=" not in word and word[:1] != "-")]
    others = [*rest[:at], *(word for word in after if "=" in word or word[:1] == "-")]
    return verb, others, [word for word in named if word]


def _shown(words: Sequence[str], rank: int) -> int | None:
    """Prints what needs no verb to run: help, version, config. Returns the exit status; None where a verb is to run."""
    if words and (words[0] in VERSION or (words[0] in VERBS and "--version" in words)):
        return _print(f"seer {__version__}")
    if words and words[0].partition("=")[0] == "--completion":
        return _completion([*words[0].split("=")[1:], *words[1:]], rank)
    asked = _asked_for_help(words)
    if asked is None and "--print-config" not in words:
        return None
    verb, others, named = asked or (words[0], [word for word in words[1:] if word != "--print-config"], [])
    if not verb or verb not in VERBS:
        return _no_verb(verb, rank) if verb else _print(HELP_TEXT)
    from seer.cli import help  # Hydra costs half of what `--help` may cost

    try:
        return _print(help.of_verb(verb, VERBS[verb], others, named) if asked else help.print_config(verb, others))
    except RequestError as error:
        return _end({"verb": verb, "exit": 78, "error": str(error)}, rank)


def _completion(shells: Sequence[str], rank: int) -> int:
    from seer.cli import completion

    try:
        return _print(completion.script(shells, VERBS))
    except RequestError as error:
        return _end({"verb": "--completion", "exit": 78, "error": str(error)}, rank)


def _print(text: str) -> int:
    """Prints what was asked for on standard output, where `| less` finds it. Returns 0."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _no_verb(verb: str, rank: int) -> int:
    from seer.cli.foreign import VERBS as FOREIGN

    near = difflib.get_close_matches(verb.lower(), VERBS, n=1)
    answer = FOREIGN.get(verb.lower().lstrip("-")) or (f"did you mean {near[0]!r}?" if near else "")
    error = f"no verb {verb!r}{'; ' if answer else ''}{answer}; there are {', '.join(VERBS)}"
    return _end({"verb": verb, "exit": 78, "error": error}, rank)
