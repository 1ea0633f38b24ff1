"""A task that is none of SEER's, as a user would write it, and a program that trains it: `python -m tests.second_task JSON`."""

import json
import sys

import torch
from torch import nn

from seer.core.build import allow
from seer.core.protocols import Task
from seer.core.records import StepOutput
from seer.data.augment import augment_batch
from seer.run.config import RunConfig
from seer.run.session import train


class MeanColor(Task):
    """Learns the mean color of an image from its features, by least squares."""

    durations = ("quiet_until",)

    def __init__(self, backbone, transform, group=None, *, weight: float = 1.0, quiet_until: int = 0):
        self.backbone, self.head, self.transform = backbone, nn.Linear(backbone.feature_dim, 3), transform
        self.model = nn.Sequential(backbone, self.head)
        self.weight, self.quiet_until, self.step = weight, quiet_until, 0

    def modules(self):
        return {"backbone": self.backbone, "head": self.head}

    def before_step(self, step):
        self.step = step

    def loss(self, batch):
        size = self.transform.input_size
        with torch.no_grad(), torch.autocast(batch.fields[f"views/{size}"].device.type, enabled=False):
            x = augment_batch(batch.fields, size, self.transform.mean, self.transform.std)
        error = (self.model(x).float() - x.mean((2, 3))).square().mean()
        return StepOutput(self.weight * error * (self.step >= self.quiet_until), {"color/error": error.detach()})


if __name__ == "__main__":
    allow("task", "tests.second_task")
    print(json.dumps(train(RunConfig.of(json.loads(sys.argv[1])))))
