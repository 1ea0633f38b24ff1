"""Frozen batch norms: statistics and scales stay as they were while everything else trains, and the network keeps its names."""

import pytest
import torch
from torch import nn

from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.models.bundle import read_bundle, write_bundle
from seer.models.surgery import FrozenBatchNorm2d, freeze_batch_norm
from seer.models.zoo import build
from seer.parallel.batchnorm import group_batchnorm
from tests.export.test_export import trained
from tests.program import SMALL, seer


def test_a_frozen_network_in_training_mode_computes_what_it_did_in_evaluation_mode():
    model = build("regnety_200mf").eval()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(x)
        found = freeze_batch_norm(model).train()(x)
    assert torch.equal(found, wanted) and model.training


def test_ranks_do_not_share_statistics_that_are_frozen():
    model = freeze_batch_norm(nn.Sequential(nn.BatchNorm2d(3))).append(nn.BatchNorm2d(3))
    for device in ("cpu", "cuda"):  # as it would be converted for that device
        group_batchnorm(model, object(), torch.device(device))  # type: ignore[arg-type]
        assert type(model[0]) is FrozenBatchNorm2d and not isinstance(model[1], FrozenBatchNorm2d)
        assert type(model[1]) is not nn.BatchNorm2d
        model[1] = nn.BatchNorm2d(3)


@pytest.mark.slow
def test_a_run_with_surgery_leaves_statistics_and_scales_alone_and_trains_the_rest(tmp_path, capfd):
    before = trained(build("regnety_200mf"))
    write_bundle(tmp_path / "weights", before, card={})
    write_shards(sample.samples(48, seed=1), tmp_path / "pictures", total=48, per_shard=48)
    words = (f"data.source={tmp_path / 'pictures'}", f"output={tmp_path / 'run'}", "steps=2", "schedule.warmup=0")
    ended = seer(
        capfd, "pretrain", *SMALL, *words, f"weights={tmp_path / 'weights'}", "surgery=freeze_batch_norm", "groups=[]"
    )
    assert ended.status == 0, ended.words
    after, _ = read_bundle(tmp_path / "run" / "bundle")
    kept = {name: torch.equal(value, before.state_dict()[name]) for name, value in after.state_dict().items()}
    wrong = [name for name, same in kept.items() if same != (".bn." in name) and "num_batches" not in name]
    assert wrong == []
