"""`python -m seer` is the console script, so that torchrun can start it: `torchrun … -m seer pretrain …`."""

from seer.cli.main import entry

if __name__ == "__main__":
    entry()
