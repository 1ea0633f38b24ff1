"""The project beside its peers on this machine: lightly, timm, webdataset, torchvision, SwAV's augmentation rebuilt here.

    make bench        [ARGS="images=photos.tar output=page.md areas=step,lars"]
    make bench-quick
    python benchmarks/bench.py peers=.venv-peers/bin/python [quick=true] [images=SOURCE] [output=FILE] [areas=A,B] [keep=FOLDER]

Prints one dated page: a Markdown table for each area, what has to hold and whether it does, and JSON lines. `images` is
whatever `data.source` takes; without it mosaics of drawn images stand for photographs. Without `peers`, or where that
interpreter cannot import lightly, ours are measured alone. The two sides use the same torch, which is checked.
`toy=true` does everything in seconds, at sizes whose figures say nothing. What the areas are stands in beside/areas.py.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).parent / "beside"))

import areas
import machine
import page
from measure import measure
from turns import Failed, Worker, pool

WORDS = {
    "quick": "false",
    "toy": "false",
    "images": "",
    "output": "",
    "areas": ",".join(areas.NAMES),
    "peers": "",
    "keep": "",
}


def refuse(words: str) -> NoReturn:
    print(f"bench: {words}", file=sys.stderr)
    raise SystemExit(78)


def asked(given: list[str]) -> dict[str, str]:
    """Returns the words of the command line over the defaults. SystemExit for one that is not known or cannot be used."""
    words = dict(word.partition("=")[::2] for word in given)
    wrong = [word for word in words if word not in WORDS]
    found = {**WORDS, **words}
    wrong += [f"areas={name}" for name in found["areas"].split(",") if name not in areas.NAMES]
    if wrong:
        refuse(f"{wrong[0]} is not known; words: {', '.join(WORDS)}; areas: {', '.join(areas.NAMES)}")
    output, keep = (Path(found[key]) for key in ("output", "keep"))
    if found["output"] and (output.is_dir() or not output.absolute().parent.is_dir()):
        refuse(f"output={output} is no file that can be written; give one in a folder that is there")
    if found["keep"] and keep.exists() and any(keep.iterdir()):
        refuse(f"keep={keep} has something in it; give a folder that is empty or not there")
    return found


def interpreters(peers: str) -> dict[str, str]:
    """Returns side -> interpreter. Says in one line why peers are left out. SystemExit where both sides have another torch."""
    found = {"ours": sys.executable}
    if not peers or not Path(peers).exists():
        print(f"bench: no peers ({peers or 'peers= is not given'}): ours alone", file=sys.stderr)
        return found
    theirs, ours = machine.versions(peers), machine.versions(sys.executable)
    if "lightly" not in theirs:
        print(f"bench: {peers} has no lightly: ours alone", file=sys.stderr)
        return found
    if theirs.get("torch") != ours.get("torch"):
        refuse(f"torch {ours.get('torch')} here, {theirs.get('torch')} in {peers}: nothing to compare")
    return {**found, "peers": os.path.abspath(peers)}  # not its real path, which is outside of its environment


def prepared(worker: Worker, folder: Path, words: dict[str, str], plan: areas.Plan) -> dict[str, object]:
    """Makes what both sides read. Returns what is told of the images."""
    light = words["toy"] == "true" or words["quick"] == "true"
    given = {
        **plan.given,
        "folder": str(folder),
        "images": str(Path(words["images"]).resolve()) if words["images"] else None,
        "count": 16 if words["toy"] == "true" else 256 if light else 512,
        "prepared": 4 if words["toy"] == "true" else 10,
    }
    worker.make("prepare", given)
    told = worker.ready().turn("prepare")
    source = Path(words["images"]).name if words["images"] else "mosaics of 4 x 4 drawn images"
    return {**{key: told[key] for key in ("images", "kilobytes", "megapixels")}, "source": source}


def run(words: dict[str, str], folder: Path) -> str:
    """Measures the areas that were asked for. Returns the page."""
    facts, pythons = machine.described(), interpreters(words["peers"])
    facts["python"] = sys.version.split()[0]
    versions = {side: machine.versions(python) for side, python in pythons.items()}
    plans = areas.plans(words["quick"] == "true", facts["kind"].startswith("bf16"), words["toy"] == "true")
    light, measured = words["toy"] == "true" or words["quick"] == "true", {}
    begun = time.monotonic()
    with pool(pythons, list(pythons)) as shared:
        images = prepared(shared[0], folder, words, plans["step"])
        for name in (name for name in areas.NAMES if name in words["areas"].split(",")):
            since = time.monotonic()
            # fresh processes for each area cost half of a quick run
            rows = measure(name, plans[name], pythons, {"folder": str(folder)}, shared if light else None)
            measured[name] = (plans[name], rows)
            print(f"bench: {name} {time.monotonic() - since:.0f} s", file=sys.stderr, flush=True)
    kind = "toy" if words["toy"] == "true" else "quick" if words["quick"] == "true" else "full"
    how = f"{kind}, {(time.monotonic() - begun) / 60:.1f} minutes."
    return page.page(facts, versions, images, how, measured)


def main() -> None:
    words = asked(sys.argv[1:])
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(words["keep"] or spare)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            text = run(words, folder)
        except Failed as error:
            print(f"bench: {error}", file=sys.stderr)
            raise SystemExit(70) from None
    print(text, end="")
    if words["output"]:
        Path(words["output"]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
