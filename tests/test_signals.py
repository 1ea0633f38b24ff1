"""From the first module of the program on, a request to stop ends it with 75 and one JSON line, and nothing is lost.

Moments are counted from a byte that this module writes (SEER_STARTED_FD): what comes before is Python's own start.
"""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

import pytest

from seer.core.signals import SIGNALS
from seer.data import synthetic as sample
from tests.program import ROOT, SMALL, Ended, environment, last_of_each, losses, wait

pytestmark = [pytest.mark.slow, pytest.mark.alone]
START = ("-m", "seer")
OLD_START = ("-c", "from seer.cli.main import entry; entry()")  # what console scripts of older installations do
Begin = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """A function that starts the program and returns when its first module runs."""
    started = []

    def start(
        *words: str, how: tuple[str, ...] = START, names: dict[str, str] | None = None, **more: object
    ) -> subprocess.Popen[str]:
        ear, mouth = os.pipe()
        names = {**environment(), "SEER_STARTED_FD": str(mouth), **(names or {})}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, **more}
        process = subprocess.Popen(
            [sys.executable, *how, *last_of_each(words)], text=True, env=names, pass_fds=[mouth], **streams
        )
        started.append(process)
        os.close(mouth)
        assert os.read(ear, 1) == b"."
        os.close(ear)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for key, fields in sample.samples(64, seed=3):
        (folder / f"{key}.jpg").write_bytes(fields["jpg"])
    return folder


def until(true: Callable[[], bool], process: subprocess.Popen[str], limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


def stopped(ended: Ended, number: int) -> None:
    assert ended.status == ended.result.get("exit") == 75, (signal.Signals(number).name, ended)
    assert signal.Signals(number).name in ended.result["error"] and "Traceback" not in ended.words


def logged(run: Path) -> int:
    return len(losses(run)) if (run / "metrics.jsonl").exists() else 0


def words_of(run: Path, images: Path, steps: int) -> tuple[str, ...]:
    return ("pretrain", *SMALL, f"steps={steps}", f"data.source={images}", f"output={run}")


def undisturbed(begin: Begin, words: tuple[str, ...], run: Path) -> float:
    """Runs to the end; returns the seconds from the first module to the first step."""
    process, since = begin(*words), time.monotonic()
    until(lambda: logged(run) > 0, process)
    first = time.monotonic() - since
    assert wait(process).status == 0
    return first


def goes_on_to_the_same_end(begin: Begin, words: tuple[str, ...], quiet: Path, rough: Path) -> None:
    ended = wait(begin(*words))
    assert ended.status == 0, ended.words
    assert losses(rough) == losses(quiet) and len(losses(quiet)) > 0


def test_a_request_in_each_phase_of_a_start_ends_with_75_and_the_run_ends_in_the_same_bits(begin, images, tmp_path):
    quiet, rough = tmp_path / "quiet", tmp_path / "rough"
    undisturbed(begin, words_of(quiet, images, 40), quiet)  # not over before this process sees the second step
    words = words_of(rough, images, 40)
    phases = {  # in this order: no run folder before the third
        signal.SIGTERM: lambda: True,
        signal.SIGUSR1: lambda: b"libtorch" in Path(f"/proc/{process.pid}/maps").read_bytes(),
        signal.SIGHUP: lambda: (rough / "config.yaml").exists(),
        signal.SIGUSR2: lambda: logged(rough) > 1,
    }
    for at, (number, reached) in enumerate(phases.items()):
        process = begin(*words)
        until(reached, process)
        process.send_signal(number)
        ended = wait(process, 60)
        stopped(ended, number)
        assert rough.exists() == (at >= 2)
        if at >= 2:
            assert json.loads((rough / "result.json").read_text()) == ended.result
    assert ended.result["steps"] >= 2
    goes_on_to_the_same_end(begin, words, quiet, rough)


@pytest.mark.long
def test_at_twenty_moments_from_the_first_module_to_training(begin, images, tmp_path):
    """Twelve spread evenly up to the first step, eight in training."""
    quiet, rough = tmp_path / "quiet", tmp_path / "rough"
    first, chance, waited = undisturbed(begin, words_of(quiet, images, 60), quiet), random.Random(0), []
    words = words_of(rough, images, 60)
    for moment in range(20):
        number = SIGNALS[moment % len(SIGNALS)]
        process, before = begin(*words), logged(rough)
        if moment < 12:
            time.sleep(moment / 11 * first)
        else:
            until(lambda least=before + 1 + moment % 3: logged(rough) >= least, process)
            time.sleep(chance.uniform(0, 0.3))
        process.send_signal(number)
        since = time.monotonic()
        stopped(wait(process, 60), number)
        waited.append(f"{signal.Signals(number).name} {time.monotonic() - since:.1f}")
    assert 8 <= logged(rough) < 60
    print(f"first step after {first:.1f} s; seconds from the signal to the end: {', '.join(waited)}")
    goes_on_to_the_same_end(begin, words, quiet, rough)


@pytest.mark.parametrize("how", [START, OLD_START])
@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_while_torch_is_imported(begin, number, how):
    process = begin("pretrain", "recipe=sample", how=how)
    time.sleep(0.2)
    process.send_signal(number)
    stopped(wait(process, 60), number)


def test_verbs_that_may_be_writing_clean_up_and_end_with_75_though_their_processes_hear_it_too(begin, images, tmp_path):
    for image in list(images.iterdir()):
        for copy in range(40):
            os.link(image, images / f"{copy}-{image.name}")
    words = (
        "shard",
        f"source={images}",
        f"output={tmp_path / 'shards'}",
        "per_shard=20",
        "processes=2",
        "quality=80",
    )
    process = begin(*words, start_new_session=True)
    until(lambda: len(list((tmp_path / "shards").glob("*.tar"))) > 2, process)
    os.killpg(process.pid, signal.SIGTERM)  # as SLURM does
    ended = wait(process, 60)
    stopped(ended, signal.SIGTERM)
    assert json.loads((tmp_path / "shards" / "result.json").read_text()) == ended.result
    assert wait(begin(*words)).result["pictures"] == 64 * 41


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_for_another_ends_within_seconds(begin, tmp_path, rank):
    names = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    names["MASTER_PORT"] = str(20000 + os.getpid() % 10000 + rank)
    process = begin("pretrain", *SMALL, f"output={tmp_path / 'run'}", "data.source=null", "data.drawn=32", names=names)
    until(lambda: has_a_socket(process.pid), process)
    process.send_signal(signal.SIGTERM)
    since = time.monotonic()
    ended = wait(process, 60)
    assert time.monotonic() - since < 10 and ended.status == 75  # a request that no handler hears ends it after 15 s
    assert ended.result.get("exit") == (75 if rank == 0 else None)  # of several ranks the first tells
    assert not (tmp_path / "run").exists()


def has_a_socket(pid: int) -> bool:
    """Returns whether a process has come to the rendezvous: rank 0 listens there, others try to connect."""
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(file).startswith("socket:"):
                return True
    return False


def test_signals_that_are_ignored_at_the_start_stay_ignored(begin, images, tmp_path):
    """As under nohup. The run that hears nothing ends by itself."""
    run = tmp_path / "run"
    ignored = lambda: [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGUSR2)]  # noqa: E731
    process = begin(*words_of(run, images, 4), preexec_fn=ignored)
    process.send_signal(signal.SIGHUP)
    for reached in (lambda: (run / "config.yaml").exists(), lambda: logged(run) > 1):
        until(reached, process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR2)
    ended = wait(process)
    assert ended.status == ended.result["exit"] == 0 and len(losses(run)) == 4


def test_a_run_whose_terminal_is_closed_saves_and_exits_75(begin, images, tmp_path):
    """The kernel sends SIGHUP, and nothing can be written to where standard output and error were."""
    run = tmp_path / "run"
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        ioctl(0, termios.TIOCSCTTY, 0)

    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "preexec_fn": own_terminal}
    process = begin(*words_of(run, images, 400), **terminal)
    os.close(theirs)
    until(lambda: logged(run) > 1, process)
    os.close(ours)
    assert process.wait(60) == 75
    result = json.loads((run / "result.json").read_text())
    assert result["exit"] == 75 and "SIGHUP" in result["error"]
    assert json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["step"] == result["steps"] >= 2


def test_a_result_that_nobody_reads_leaves_the_status_as_it_is(begin):
    ear, mouth = os.pipe()
    os.close(ear)
    assert begin("pretrian", stdout=mouth, stderr=mouth).wait(60) == 78
    os.close(mouth)


def test_importing_the_library_installs_no_handler():
    poll = "import signal; print([signal.getsignal(n) for n in range(1, 65) if n not in (9, 19, 32, 33)])"
    code = f"{poll}; import seer, seer.__main__, seer.cli.main, seer.engine.stop_request, seer.cli.pretrain; {poll}"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    before, after = told.stdout.splitlines()
    assert before == after


def held(code: str) -> subprocess.CompletedProcess[str]:
    """Runs a process that listens and trains in name only."""
    begun = (
        "import signal; from seer.core import signals; from seer.engine.stop_request import StopRequest; "
        "signals.listener.listen(); stop = StopRequest(); stop.__enter__(); stop._held = True; "
    )
    return subprocess.run([sys.executable, "-c", begun + code, "pretrain"], capture_output=True, text=True, cwd=ROOT)


def test_a_second_request_ends_a_save_at_once_with_75_too():
    twice = "signal.raise_signal(signal.SIGTERM); "
    ended = held(f"signals.TWICE_S = 0; {twice * 2} print('still here')")
    assert ended.returncode == 75 and json.loads(ended.stdout)["exit"] == 75


def test_the_kernel_asks_anew_each_second_of_processor_time_and_means_the_same_request():
    ended = held("signals.TWICE_S = 0; [signal.raise_signal(signal.SIGXCPU) for _ in range(3)]; print(stop.asked)")
    assert ended.returncode == 0 and ended.stdout == "SIGXCPU\n"
