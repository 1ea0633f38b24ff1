"""Runs the console script as `python -m seer`, so that torchrun can start it: `torchrun … -m seer pretrain …`.

Surprising: it listens for signals before it imports anything else. Importing torch takes seconds, and one that came
meanwhile would end the process without a word and with a status after which no scheduler queues the job again.
"""

import gc
import os

from seer.core.signals import listener
from seer.core.streams import complete


def entry() -> None:
    """Runs the program and ends the process with its exit status."""
    closed = complete()  # before a file takes the number of a closed one
    listener.listen()
    # threads of OpenMP that wait for work spin by default, and take the core that prepares the next images; read once,
    # when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()  # until a verb runs: what imports and composing make stays, and looking for more costs a twentieth of --help
    from seer.cli.main import entry as run

    run(closed)


if __name__ == "__main__":
    entry()
