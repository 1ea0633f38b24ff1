"""Runs one program's file in a process that holds its runtime alone; `seer.export.measure` starts it as a script and asks over pipes.

Surprising:
- Nothing of SEER is imported, so memory is that of the runtime. torch is there for `.pt2`, which it runs, and for `.pte`, whose Python
  runtime takes torch's tensors; never for `.onnx`.
- Threads are set where each runtime looks: onnxruntime's options, torch's setter, and ExecuTorch's pool, which otherwise takes all cores
  whatever OMP_NUM_THREADS says. How many cores the runs really kept busy is told beside their time.
- Runtimes print to standard output, which is sent to standard error here; answers go to what it was before.

A request is a line of JSON, followed by `bytes` bytes where it says so; so is an answer. Legend: N images, C channels, S side.
"""

import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np

MB = 1_000_000


class Onnx:
    """Runs an `.onnx` file in onnxruntime, on the CPU."""

    def __init__(self, threads: int):
        import onnxruntime

        self._library, self.version = onnxruntime, f"onnxruntime {onnxruntime.__version__}"
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 3  # it warns of processors that it cannot name
        self._options.intra_op_num_threads, self._options.inter_op_num_threads = threads, 1

    def load(self, file: str, names: list[str]) -> None:
        self._session = self._library.InferenceSession(file, self._options, providers=["CPUExecutionProvider"])
        self._input, self._names = self._session.get_inputs()[0].name, names

    def feed(self, images: np.ndarray) -> Any:
        return images

    def run(self, images: Any) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(self._names, {self._input: images}), strict=True))


class TorchExport:
    """Runs a `.pt2` file in torch."""

    def __init__(self, threads: int):
        import torch

        torch.set_num_threads(threads)
        self._torch, self.version = torch, f"torch {torch.__version__}"

    def load(self, file: str, names: list[str]) -> None:
        self._program, self._names = self._torch.export.load(file).module(), names

    def feed(self, images: np.ndarray) -> Any:
        return self._torch.from_numpy(images)

    def run(self, images: Any) -> dict[str, np.ndarray]:
        with self._torch.no_grad():
            found = self._program(images)
        return {name: found[name].numpy() for name in self._names}


class ExecuTorch:
    """Runs a `.pte` file in ExecuTorch, one image a call."""

    def __init__(self, threads: int):
        import torch
        from executorch.extension.pybindings import _C
        from executorch.runtime import Runtime

        _C._unsafe_reset_threadpool(threads)  # before anything is loaded: a pool that was used is not made anew
        torch.set_num_threads(threads)
        from importlib.metadata import version

        self._torch, self._runtime, self.version = torch, Runtime.get(), f"executorch {version('executorch')}"

    def load(self, file: str, names: list[str]) -> None:
        self._program = self._runtime.load_program(file)
        self._method, self._names = self._program.load_method("forward"), names

    def feed(self, images: np.ndarray) -> Any:
        return list(self._torch.from_numpy(images).split(1))

    def run(self, images: Any) -> dict[str, np.ndarray]:
        rows = [
            [one.numpy().copy() for one in self._method.execute([image])] for image in images
        ]  # memory is used again
        return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(self._names)}


RUNTIMES: dict[str, Any] = {"onnx": Onnx, "torch_export": TorchExport, "executorch": ExecuTorch}


class Device:
    """Answers requests, one method each."""

    def __init__(self) -> None:
        self.runtime: Any = None
        self.images: Any = None
        self.how: dict[str, Any] = {}

    def start(self, target: str, threads: int, how: dict[str, Any]) -> dict[str, Any]:
        """Imports the runtime. how: of the description, `values`, `mean`, `std`."""
        self.runtime, self.how = RUNTIMES[target](threads), how
        return {"runtime": self.runtime.version, "torch": "torch" in sys.modules}

    def feed(self, levels: np.ndarray) -> dict[str, Any]:
        """Takes levels of images, uint8 [N, C, S, S], as the program is to be fed."""
        self.images = self.runtime.feed(given(levels, **self.how))
        return {}

    def load(self, file: str, names: list[str]) -> dict[str, Any]:
        """Loads the file, and tells what the idle runtime held before."""
        whole = _peak_begins()
        idle, start = _resident(), time.perf_counter()
        self.runtime.load(file, names)
        return {"ms": 1e3 * (time.perf_counter() - start), "idle_mb": idle, "peak_known": whole}

    def time(self) -> dict[str, Any]:
        """Runs the program once."""
        busy, start = time.process_time(), time.perf_counter()
        self.runtime.run(self.images)
        seconds = time.perf_counter() - start
        return {"ms": 1e3 * seconds, "busy_ms": 1e3 * (time.process_time() - busy)}

    def memory(self) -> dict[str, Any]:
        return {"resident_mb": _resident(), "peak_mb": _status("VmHWM")}

    def run(self) -> dict[str, np.ndarray]:
        return self.runtime.run(self.images)


def given(levels: np.ndarray, values: str, mean: list[float], std: list[float]) -> np.ndarray:
    """Returns what a program takes for the levels of images, by its description."""
    if values == "0 to 255":
        return levels
    unit = levels.astype(np.float32) / np.float32(255)
    if values == "0 to 1":
        return unit
    shift, scale = (np.asarray(one, dtype=np.float32)[:, None, None] for one in (mean, std))
    return (unit - shift) / scale


def _status(name: str) -> float:
    """Returns a size that Linux tells of this process, in MB."""
    with open("/proc/self/status", encoding="ascii") as opened:
        (line,) = [line for line in opened if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024 / MB


def _resident() -> float:
    return _status("VmRSS")


def _peak_begins() -> bool:
    """Makes the highest resident size begin anew, that of imports being over. Returns whether the system lets us."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as opened:
            opened.write("5")
    except OSError:
        return False
    return True


def main() -> None:
    answers, requests = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told by who asked for this process
    device = Device()
    while line := requests.readline():
        asked = json.loads(line)
        words = asked.get("words", {})
        if "shape" in asked:
            raw = requests.read(asked["bytes"])
            words["levels"] = np.frombuffer(bytearray(raw), dtype=np.uint8).reshape(asked["shape"])
        try:
            found = getattr(device, asked["do"])(**words)
        except Exception as error:  # whatever a runtime raises; it is told, and the process that asked decides
            found = {"error": f"{type(error).__name__}: {error}", "missing": isinstance(error, ImportError)}
        arrays = {name: one for name, one in found.items() if isinstance(one, np.ndarray)}
        told = {name: one for name, one in found.items() if name not in arrays}
        told["arrays"] = [[name, one.dtype.str, list(one.shape)] for name, one in arrays.items()]
        answers.write(json.dumps(told).encode() + b"\n")
        for one in arrays.values():
            answers.write(np.ascontiguousarray(one).tobytes())
        answers.flush()


if __name__ == "__main__":
    main()
