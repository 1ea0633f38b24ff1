"""Words of other programs are answered with ours, and every answer is a word that composes and does what was meant."""

import json

import pytest

from seer.cli import config, foreign
from seer.cli.main import main
from seer.core.errors import RequestError
from tests.messages import says

NEEDS = {
    "pretrain": [],
    "adapt": [],
    "plan": [],
    "shard": ["source=a", "output=b"],
    "evaluate": ["weights=w", "data.train=a", "data.test=b"],
    "export": ["weights=w", "to=all", "output=o"],
    "measure": ["file=f"],
}


def refused(verb: str, *words: str) -> str:
    with pytest.raises(RequestError) as caught:
        config.read(verb, words)
    return str(caught.value)


# what was typed, in the words of lightly-train, Lightning, timm, solo-learn, torchrun and Hydra -> what is meant here
PRETRAIN = {
    "lr=0.1": "schedule.peak=0.1",
    "optim.lr=0.1": "schedule.peak=0.1",
    "optimizer.lr=0.1": "schedule.peak=0.1",
    "learning_rate=0.1": "schedule.peak=0.1",
    "base_lr=0.1": "schedule.peak=0.1",
    "min_lr=0.001": "schedule.final=0.001",
    "warmup_epochs=5": "schedule.warmup=5ep",
    "warmup_steps=500": "schedule.warmup=500",
    "warmup_ratio=0.1": "schedule.warmup=10%",
    "scheduler=cosine": "schedule=warmup_cosine",
    "epochs=10": "steps=10ep",
    "max_epochs=10": "steps=10ep",
    "trainer.max_epochs=10": "steps=10ep",
    "max_steps=1000": "steps=1000",
    "max_time=8h": "steps=8h",
    "trainer.max_time=00:12:30:00": "steps=750min",
    "max_time=01:00:00:00": "steps=24h",
    "hours=8": "steps=8h",
    "in_channels=4": "data.channels=4",
    "in_chans=1": "data.channels=1",
    "batch_size=64": "batch=64",
    "optimizer.batch_size=64": "batch=64",
    "data.batch_size=64": "batch=64",
    "num_workers=4": "data.threads=4",
    "workers=4": "data.threads=4",
    "data.num_workers=4": "data.threads=4",
    "prefetch_factor=2": "data.prefetch=2",
    "gpus=1": "parallel.device=cuda",
    "devices=1": "parallel.device=cuda",
    "device=cuda": "parallel.device=cuda",
    "device=cuda:0": "parallel.device=cuda",
    "accelerator=gpu": "parallel.device=cuda",
    "accelerator=cpu": "parallel.device=cpu",
    "strategy=ddp_find_unused_parameters_false": "parallel.mode=ddp",
    "strategy=fsdp": "parallel.mode=fsdp",
    "sync_batchnorm=true": "parallel.batch_norm_group=0",
    "backbone=resnet50": "model=resnet_50",
    "model_name=torchvision/regnet_y_400mf": "model=regnety_400mf",
    "arch=regnety_16gf": "model=regnety_16gf",
    "fp16=true": "precision=fp16",
    "amp=true": "precision=auto",
    "amp=false": "precision=fp32",
    "bf16=true": "precision=bf16",
    "tensorboard=true": "log.tensorboard=true",
    "pretrained=w.pth": "weights=w.pth",
    "config=my.yaml": "recipe=my.yaml",
    "config_name=my.yaml": "recipe=my.yaml",
    "method=swav": "task=swav",
    "data_dir=x": "data.source=x",
    "data-dir=x": "data.source=x",
    "data_path=x": "data.source=x",
    "train_data_path=x": "data.source=x",
    "root=x": "data.source=x",
    "out=x": "output=x",
    "output_dir=x": "output=x",
    "default_root_dir=x": "output=x",
    "name=first": "output=runs/first",
    "img_size=160": "augment.sizes=[160,72]",
    "image_size=224": "augment.sizes=[224,96]",
    "size_crops=[160,96]": "augment.sizes=[160,96]",
    "nmb_crops=[2,6]": "augment.counts=[2,6]",
    "color_jitter=0.5": "augment.jitter=0.5",
    "hflip=0.3": "augment.flip=0.3",
    "wd=1e-5": "optim.weight_decay=1e-5",
    "weight_decay=1e-5": "optim.weight_decay=1e-5",
    "momentum=0.8": "optim.momentum=0.8",
    "opt=AdamW": "optim=adamw",
    "optimizer=sgd": "optim=sgd",
    "clip_grad=1": "precision.clip=1",
    "gradient_clip_val=1": "precision.clip=1",
    "seed_everything=1": "seed=1",
    "log_every_n_steps=5": "every.log=5",
    "print_freq=5": "every.log=5",
    "save_freq=5": "every.checkpoint=5ep",
    "save_top_k=3": "every.keep=3",
    "check_val_every_n_epoch=2": "every.evaluate=2ep",
    "nmb_prototypes=300": "task.prototypes=300",
    "sinkhorn_iterations=5": "task.iterations=5",
    "proj_output_dim=64": "task.embedding=64",
    "hidden_mlp=64": "task.hidden=[64]",
    "queue_length=256": "task.queue=256",
    "temperature=0.2": "task.temperature=0.2",
    "epsilon=0.04": "task.epsilon=0.04",
    "crops_for_assign=[0]": "task.assign=[0]",
    "torch_compile=true": "parallel.compile=true",
    "deterministic=true": "parallel.deterministic=true",
    "grad_checkpointing=true": "parallel.remat=block",
    "freeze_prototypes_niters=313": "groups=[{pattern: '^head.prototypes', frozen_steps: 313}]",
}
OTHERS = {
    ("evaluate", "k=5"): "eval.k=5",
    ("evaluate", "batch_size=8"): "batch=8",
    ("evaluate", "num_workers=2"): "threads=2",
    ("evaluate", "parallel.device=cpu"): "device=cpu",
    ("evaluate", "amp=true"): "dtype=bf16",
    ("evaluate", "precision=bf16-mixed"): "dtype=bf16",
    ("evaluate", "img_size=96"): "data.size=96",
    ("export", "license=MIT"): "licence=MIT",
    ("shard", "maxcount=100"): "per_shard=100",
    ("shard", "workers=2"): "processes=2",
    ("shard", "jpeg_quality=90"): "quality=90",
}
# what nothing here does -> what the answer must name
SENTENCES = {
    "gpus=8": "--nproc_per_node=8",
    "nproc_per_node=4": "--nproc_per_node=4",
    "devices=[0,2]": "CUDA_VISIBLE_DEVICES=0,2",
    "num_nodes=2": "--nnodes",
    "accelerator=mps": "parallel.device=",
    "backbone=vit_small": "docs/zoo.md",
    "wandb=true": "log.tensorboard",
    "wandb.project=x": "log.tensorboard",
    "resume=true": "same command",
    "resume_from_checkpoint=x": "same command",
    "ckpt_path=runs/x": "weights=runs/x",
    "method=dino": "task=swav",
    "val_dir=x": "eval.test=",
    "overwrite=true": "output=",
    "fast_dev_run=true": "plan",
    "pin_memory=true": "leave it out",
    "teacher=true": "no teacher",
    "model_ema=true": "ema=0.999",
    "model_ema_decay=0.99": "ema=0.99",
}


@pytest.mark.parametrize(("typed", "meant"), PRETRAIN.items())
def test_a_foreign_word_is_answered_with_ours_and_ours_composes(typed, meant):
    said = refused("pretrain", typed, "every.minutes=5")
    assert says(said, typed.partition("=")[0], meant.partition("=")[0])
    line = said.rpartition("The line: seer pretrain ")[2]
    assert line.replace("'", "").replace('"', "") == f"{meant} every.minutes=5".replace("'", "")
    if not meant.startswith("recipe="):
        config.read("pretrain", [meant, "every.minutes=5"])


@pytest.mark.parametrize(("verb", "typed", "meant"), [(*of, meant) for of, meant in OTHERS.items()])
def test_a_foreign_word_of_another_verb_is_answered_with_that_verbs_own(verb, typed, meant):
    assert says(refused(verb, *NEEDS[verb], typed), typed.partition("=")[0], meant)
    config.read(verb, [*NEEDS[verb], meant])


@pytest.mark.parametrize(("typed", "named"), SENTENCES.items())
def test_what_nothing_here_does_is_answered_with_what_does_it(typed, named):
    assert says(refused("pretrain", typed), typed.partition("=")[0], named)


@pytest.mark.parametrize("verb", foreign.TABLES)
def test_no_entry_names_a_word_that_the_verb_does_not_have(verb):
    """Of any choice of its groups."""
    known = {*config.groups_of(verb)}
    for words in (
        [],
        ["augment=one_view"],
        ["optim=adamw"],
        ["optim=sgd"],
        ["eval=linear"],
        ["schedule=cosine_restarts"],
    ):
        if not words or words[0].partition("=")[0] in known:
            if words != ["eval=linear"] or verb == "evaluate":
                known |= set(config.flat(config.read(verb, [*NEEDS[verb], *words])))
    for key, entry in foreign.TABLES[verb].items():
        for value in ("1", "true", "x"):
            mine = foreign.ours(verb, key, value)
            assert mine is not None and (mine.startswith("-") or mine.partition("=")[0] in known), key
        assert entry is foreign.TABLES[verb][key.lower().replace("-", "_")]


def test_all_foreign_words_of_a_line_are_answered_at_once_and_ours_stay():
    said = refused("pretrain", "--lr", "0.1", "batch=8", "--epochs=10", "/data/x y")
    assert said.endswith("seer pretrain 'data.source=/data/x y' schedule.peak=0.1 batch=8 steps=10ep")


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("precision=16-mixed", "'fp16'"),
        ("task=dino", "swav"),
        ("model=vit_small", "docs/zoo.md"),
        ("model=resnet50", "'resnet_50'"),
        ("data=imges", "images"),
        ("recipe=my", "recipe=./mine.yaml"),
    ],
)
def test_a_foreign_choice_is_answered(typed, named):
    assert says(refused("pretrain", typed), typed, named)


@pytest.mark.parametrize(
    ("verb", "words", "key", "value"),
    [
        ("pretrain", ["--batch", "8"], "batch", 8),
        ("pretrain", ["--data.source=a b"], "data.source", "a b"),
        ("pretrain", ["--data", "/a/b"], "data.source", "/a/b"),
        ("pretrain", ["data=/a/b", "batch=8"], "data.source", "/a/b"),
        ("pretrain", ["data=/a,/b"], "data.source", ["/a", "/b"]),
        ("pretrain", ["/a/b"], "data.source", "/a/b"),
        ("plan", ["a/{000..009}.tar"], "data.source", "a/{000..009}.tar"),
        ("pretrain", ["a/0.tar", "batch=8", "a/1.tar"], "data.source", ["a/0.tar", "a/1.tar"]),
        ("pretrain", ["--parallel.compile"], "parallel.compile", True),
        ("pretrain", ["--task.epsilon", "0.03", "--seed=1"], "task.epsilon", 0.03),
        ("shard", ["a/b", "output=o"], "source", "a/b"),
        ("evaluate", ["runs/x", "data.train=a", "data.test=b"], "weights", "runs/x"),
        ("export", ["runs/x", "to=all", "output=o"], "weights", "runs/x"),
    ],
)
def test_forms_that_can_mean_one_thing_only_are_read_so(verb, words, key, value):
    assert config.flat(config.read(verb, words))[key] == value


@pytest.mark.parametrize(
    ("verb", "words", "named"),
    [
        ("shard", ["a/b", "c/d"], "source=a/b output=c/d"),
        ("export", ["runs/x", "runs/y", "to=all", "output=o"], "2"),
        ("pretrain", ["/a", "data.source=/b"], "2"),
        ("pretrain", ["batch"], "key=value"),
        ("pretrain", ["--batch"], "batch=True"),
        ("pretrain", ["seed=0,1,2"], "for x in 0 1 2"),
        ("pretrain", ["-m", "seed=0,1"], "for x in"),
        ("pretrain", ["seed=range(0,3)"], "for x in"),
        ("pretrain", ["task.epsilon=0.02,0.03"], "for x in 0.02 0.03"),
        ("evaluate", ["optim=adamw", "weights=w", "data.train=a", "data.test=b"], "unknown key"),
    ],
)
def test_forms_that_can_mean_more_are_refused_with_the_remedy(verb, words, named):
    assert says(refused(verb, *words), named)


def test_a_path_that_is_here_needs_no_slash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "a,b").mkdir()
    assert config.read("pretrain", ["mine"])["data"]["source"] == "mine"
    assert config.read("pretrain", ["a,b"])["data"]["source"] == "a,b"
    assert config.read("shard", ["source=x", "output=one, two"])["output"] == "one, two"


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        *(("train", "seer pretrain"), ("finetune", "seer adapt"), ("embed", "seer.load"), ("resume", "same")),
        *(
            ("pretrian", "'pretrain'"),
            ("evalute", "'evaluate'"),
            ("list", "--help model"),
            ("knn", "evaluate eval="),
        ),
    ],
)
def test_a_verb_of_another_program_is_answered_with_the_command(capfd, typed, named):
    status = main([typed, "a=b"])
    result = json.loads(capfd.readouterr().out)
    assert status == result["exit"] == 78 and says(result["error"], typed, named)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["plateau.patience=5"], "schedule=constant_halving"),
        (["eval.k=5"], "eval.train"),
        (["task.queue_from=5"], "task.queue"),
        (["data.drawn=50", "data.source=x"], "data.source"),
    ],
)
def test_a_word_that_would_change_nothing_beside_the_others_is_refused(words, named):
    assert says(refused("pretrain", *words), words[0].partition("=")[0], named)


@pytest.mark.parametrize(
    "words",
    [
        ["plateau.patience=5", "schedule=constant_halving"],
        ["eval.k=5", "eval.train=a", "eval.test=b"],
        ["eval.k=5", "data=drawn"],
        ["recipe=sample", "data.source=x"],
    ],
)
def test_where_it_changes_something_it_is_taken(words):
    key, _, value = words[-1 if words[0].startswith("recipe=") else 0].partition("=")
    assert str(config.flat(dict(config.read("pretrain", words)))[key]) == value
