"""Answers words of other programs (lightly-train, Lightning, timm, solo-learn, torchrun, Hydra) with ours.

A word of another program is never taken: two names for one thing would make every command line a question. The answer is the whole
line as it should read, to be copied. An entry is a template of our words, with {} for the value; or a function of the value that
returns such words; or, where nothing here does that, a sentence, which begins with "-".
"""

import re
import shlex
from collections.abc import Callable, Sequence

Entry = str | Callable[[str], str]

ON = ("true", "1", "yes", "on", "")
OFF = ("false", "0", "no", "off", "none", "null")
PRECISIONS = {
    **dict.fromkeys(("16", "16-mixed", "16-true", "float16", "half", "fp16-mixed"), "fp16"),
    **dict.fromkeys(("bf16-mixed", "bf16-true", "bfloat16"), "bf16"),
    **dict.fromkeys(("32", "32-true", "float32", "float", "64", "64-true"), "fp32"),
    **dict.fromkeys(("amp", "mixed"), "auto"),
}
SCRIPT = "torchrun --standalone --nproc_per_node={} -m seer pretrain …"
AGAIN = "- the same command again goes on from the last checkpoint"


def _switch(on: str, off: str) -> Callable[[str], str]:
    return lambda value: off if value.lower() in OFF else on


def _precision(value: str) -> str:
    word = value.lower().removeprefix("torch.")
    return f"precision={PRECISIONS.get(word, word)}"


def _gpus(value: str) -> str:
    several = re.findall(r"\d+", value)
    if value.lower() in ("auto", "-1"):
        return "- " + SCRIPT.format("gpu")
    if len(several) > 1:
        return f"- CUDA_VISIBLE_DEVICES={','.join(several)} " + SCRIPT.format(len(several))
    if several and int(several[0]) > 1:
        return "- " + SCRIPT.format(several[0])
    return "parallel.device=cpu" if several and several[0] == "0" else "parallel.device=cuda"


def _device(value: str) -> str:
    word = value.lower().partition(":")[0]
    if word in ("mps", "tpu", "xpu", "hpu", "npu"):
        return f"- {word} is not supported: parallel.device=auto|cpu|cuda"
    return f"parallel.device={'cuda' if word == 'gpu' else word}"


def _strategy(value: str) -> str:
    word = value.lower()
    return "parallel.mode=" + next((mode for mode in ("fsdp", "fairscale", "ddp") if mode in word), "auto")


def _model(value: str) -> str:
    word = value.lower().rpartition("/")[2].replace("-", "_").replace("regnet_y_", "regnety_")
    word = re.sub(r"^(resnet)(\d)", r"\1_\2", word)
    if not re.match(r"regnety_|resnet_50$|resnext_", word):
        return f"- {NETWORKS}"
    return f"model={word}"


def _method(value: str) -> str:
    return "task=swav" if value.lower() == "swav" else f"- {METHODS}"


def _resume(value: str) -> str:
    return (
        AGAIN
        if value.lower() in (*ON, *OFF, "auto", "last", "latest")
        else f"{AGAIN}; weights={value} starts anew from it"
    )


def _weights(value: str) -> str:
    return (
        f"weights={value}" if value.lower() not in (*ON, *OFF) else "- weights=FILE starts from weights that are here"
    )


def _sizes(value: str) -> str:
    side = re.findall(r"\d+", value)
    if not side:
        return "augment.sizes=[224,96]"
    large = int(side[0])
    return f"augment.sizes=[{large},{max(8, round(large * 3 / 7 / 8) * 8)}]"


def _optimizer(value: str) -> str:
    word = value.lower()
    return f"optim={word if word in ('sgd', 'lars', 'adamw') else 'adamw' if 'adam' in word else 'lars'}"


def _schedule(value: str) -> str:
    word = value.lower()
    return "schedule=" + ("cosine_restarts" if "restart" in word else "warmup_cosine")


def _time(value: str) -> str:
    """Returns the length of a run from a time like ours, 8h, or like Lightning's, 00:08:00:00 for days to seconds."""
    parts = value.split(":")
    if len(parts) == 1 or not all(part.isdecimal() for part in parts):
        return f"steps={value}"
    seconds = sum(int(part) * unit for part, unit in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if seconds % size == 0)
    return f"steps={seconds // size}{unit}"


def _share(value: str) -> str:
    return f"schedule.warmup={float(value) * 100:g}%" if re.fullmatch(r"0?\.\d+", value) else f"schedule.warmup={value}"


NETWORKS = "networks here are RegNetY, ResNet-50 and ResNeXt-101 (`seer pretrain --help model`; docs/zoo.md)"
OTHER_NETWORKS = re.compile(
    r"vit|deit|swin|dino|convnext|net\d|net_\d|efficientnet|mobilenet|densenet|mixer|clip|eva|beit"
)
OTHER_METHODS = re.compile(r"dino|simclr|moco|mae|byol|barlow|vicreg|simsiam|ibot|distill|densecl|jepa|clip")
METHODS = "what learns here is SwAV (task=swav) and, from labels, task=heads"
_NO_TRACKER = (
    "- nothing is sent anywhere: numbers are in RUN/metrics.jsonl and, by log.tensorboard=true, in TensorBoard"
)
_LABELLED = "- labelled images for the kNN probe: eval.train=LABELLED/train eval.test=LABELLED/val"
_BY_TORCHRUN = "- torchrun sets it: torchrun --nnodes=N --nproc_per_node=M … -m seer pretrain …"
_PLAN = "- `seer plan …` with the same words says what a step needs; steps=1 trains one"
_ALWAYS = "- it is always so here; leave it out"


def _each(entry: Entry, *names: str) -> dict[str, Entry]:
    return dict.fromkeys(names, entry)


TRAINING: dict[str, Entry] = {
    **_each("schedule.peak={}", "lr", "learning_rate", "base_lr", "blr", "max_lr", "peak_lr", "init_lr", "optimizer_lr"),
    **_each("schedule.final={}", "min_lr", "final_lr", "eta_min", "lr_min", "lr_end"),
    **_each("schedule.start={}", "warmup_lr", "start_warmup", "warmup_start_lr", "warmup_init_lr"),
    **_each("schedule.warmup={}ep", "warmup_epochs"),
    **_each("schedule.warmup={}", "warmup_steps", "warmup_iters", "num_warmup_steps", "warmup_t"),
    **_each(_share, "warmup", "warmup_ratio", "warmup_fraction"),
    **_each(_schedule, "scheduler", "lr_scheduler", "sched", "lr_schedule", "lr_scheduler_type"),
    **_each("steps={}ep", "epochs", "max_epochs", "num_epochs", "n_epochs", "num_train_epochs", "train_epochs", "ep"),
    **_each("steps={}", "max_steps", "num_steps", "iterations", "iters", "max_iters", "total_steps", "train_steps"),
    **_each(_time, "max_time", "time_limit", "max_duration", "train_time"),
    **_each("steps={}h", "hours", "max_hours"),
    **_each("batch={}", "batch_size", "batchsize", "bs", "b", "train_batch_size", "global_batch_size"),
    **_each("- batch= is that of all GPUs together: batch=(this times the GPUs)", "batch_size_per_gpu",
            "batch_size_per_device", "per_device_train_batch_size", "micro_batch_size"),
    **_each("data.threads={}", "num_workers", "workers", "j", "dataloader_num_workers", "n_workers", "threads", "num_threads"),
    **_each("data.prefetch={}", "prefetch_factor", "prefetch"),
    **_each(_ALWAYS, "pin_memory", "persistent_workers", "drop_last", "shuffle", "ddp_find_unused_parameters"),
    **_each(_gpus, "gpus", "devices", "num_gpus", "ngpus", "n_gpus", "gpu", "gpu_ids", "num_devices", "nproc_per_node",
            "world_size", "ngpu"),
    **_each(_BY_TORCHRUN, "num_nodes", "nnodes", "node_rank", "local_rank", "rank", "dist_url", "dist_backend", "master_addr",
            "master_port", "rdzv_endpoint", "standalone"),
    **_each(_device, "device", "accelerator"),
    **_each(_strategy, "strategy", "distributed_backend", "ddp", "fsdp", "parallelism"),
    **_each(_switch("parallel.batch_norm_group=0", "parallel.batch_norm_group=1"), "sync_bn", "sync_batchnorm", "sync_batch_norm"),
    **_each(_model, "backbone", "arch", "architecture", "encoder", "net", "network", "model_name", "timm_model", "backbone_name"),
    **_each(_switch("precision=fp16", "precision=fp32"), "fp16", "half", "use_fp16"),
    **_each(_switch("precision=bf16", "precision=fp32"), "bf16", "use_bf16"),
    **_each(_switch("precision=auto", "precision=fp32"), "amp", "use_amp", "mixed_precision", "autocast", "native_amp"),
    **_each(_precision, "amp_dtype", "dtype", "precision_dtype"),
    **_each(_NO_TRACKER, "wandb", "use_wandb", "wandb_project", "project", "entity", "mlflow", "logger", "loggers", "report_to",
            "comet", "neptune", "logger_name"),
    **_each(_switch("log.tensorboard=true", "log.tensorboard=false"), "tensorboard", "use_tensorboard", "tb", "log_tensorboard"),
    **_each(_resume, "resume", "auto_resume", "resume_from", "resume_from_checkpoint", "resume_interrupted", "ckpt_path",
            "checkpoint", "ckpt", "load_from", "last_ckpt", "resume_training"),
    **_each(_weights, "pretrained", "pretrained_weights", "init_weights", "pretrained_feature_extractor", "finetune",
            "checkpoint_path", "initial_checkpoint", "load_weights", "init_from"),
    **_each("recipe={}", "config", "config_file", "cfg", "config_name", "config_path", "cn", "c", "yaml", "preset", "experiment_config"),
    **_each(_method, "method", "ssl_method", "algorithm", "algo", "ssl", "objective"),
    **_each("data.source={}", "data", "data_dir", "data_path", "dataset", "dataset_path", "dataset_root", "root", "train_dir", "train_data",
            "train_path", "train_data_path", "input", "input_dir", "path", "images", "image_dir", "img_dir", "imagefolder",
            "source", "data_root", "train_data_dir", "i"),
    **_each(_LABELLED, "val", "val_dir", "val_path", "val_data", "val_data_path", "test_dir", "valdir", "validation", "knn"),
    **_each("output={}", "out", "output_dir", "out_dir", "outdir", "save_dir", "log_dir", "logdir", "work_dir", "workdir", "o",
            "default_root_dir", "exp_dir", "experiment_dir", "results_dir", "result_dir", "checkpoint_dir", "dump_path", "dst",
            "run_dir", "save_path"),
    **_each("output=runs/{}", "name", "run_name", "exp_name", "experiment", "experiment_name", "run_id", "tag", "exp"),
    **_each("- a folder is never written over; give another output=", "overwrite", "force", "exist_ok", "overwrite_output_dir"),
    **_each(_sizes, "img_size", "image_size", "input_size", "crop_size", "resolution", "imgsz", "size", "global_crop_size",
            "image_resolution", "local_crop_size"),
    **_each("augment.sizes={}", "size_crops", "crop_sizes"),
    **_each("augment.counts={}", "nmb_crops", "num_crops", "n_crops", "num_crops_per_aug", "crops_number"),
    **_each("data.channels={}", "in_channels", "in_chans", "channels", "num_channels", "input_channels", "image_channels"),
    **_each("augment.jitter={}", "color_jitter", "color_jitter_prob", "jitter"),
    **_each("augment.flip={}", "hflip", "horizontal_flip_prob", "horizontal_flip", "hflip_prob"),
    **_each("augment.blur={}", "gaussian_blur", "gaussian_blur_prob", "blur_prob"),
    **_each("augment.grayscale={}", "gray_scale", "gray_scale_prob", "grayscale_prob", "random_gray_scale"),
    **_each("optim.weight_decay={}", "wd", "weight_decay", "decay", "l2"),
    **_each("optim.momentum={}", "momentum", "sgd_momentum"),
    **_each("optim.betas={}", "betas", "adam_betas", "opt_betas"),
    **_each("optim.eps={}", "eps", "opt_eps", "adam_epsilon"),
    **_each(_optimizer, "opt", "optimizer", "optimizer_name", "optimiser"),
    **_each("precision.clip={}", "clip", "clip_grad", "grad_clip", "gradient_clip_val", "clip_grad_norm", "max_grad_norm"),
    **_each("accumulate={}", "accumulate_grad_batches", "gradient_accumulation_steps", "grad_accum", "accum_iter", "update_freq",
            "grad_accum_steps"),
    **_each("seed={}", "seed_everything", "random_seed", "manual_seed", "s"),
    **_each("every.log={}", "log_every_n_steps", "log_interval", "print_freq", "log_freq", "logging_steps", "log_every"),
    **_each("every.checkpoint={}", "save_steps", "save_every", "every_n_train_steps", "checkpoint_interval", "ckpt_every",
            "checkpoint_every", "save_interval"),
    **_each("every.checkpoint={}ep", "save_freq", "checkpoint_freq", "every_n_epochs", "save_every_epochs", "checkpoint_frequency"),
    **_each("every.keep={}", "save_top_k", "save_total_limit", "keep_last", "checkpoint_hist", "max_to_keep"),
    **_each("every.evaluate={}ep", "check_val_every_n_epoch", "eval_freq", "val_freq", "val_interval", "eval_every"),
    **_each("every.evaluate={}", "val_check_interval", "eval_steps", "eval_interval"),
    **_each("task.prototypes={}", "nmb_prototypes", "num_prototypes", "n_prototypes"),
    **_each("task.iterations={}", "sinkhorn_iterations", "sinkhorn_iters", "n_sinkhorn_iterations"),
    **_each("task.embedding={}", "feat_dim", "proj_output_dim", "output_dim", "projection_dim", "embedding_dim"),
    **_each("task.hidden=[{}]", "hidden_mlp", "proj_hidden_dim", "hidden_dim"),
    **_each("task.queue={}", "queue_length", "queue_size"),
    **_each("task.queue_from={}ep", "epoch_queue_starts", "queue_start_epoch"),
    **_each("task.assign={}", "crops_for_assign"),
    **_each("task.temperature={}", "temp", "temperature", "tau", "softmax_temperature"),
    **_each("task.epsilon={}", "epsilon", "sinkhorn_epsilon"),
    **_each("groups=[{{pattern: '^head.prototypes', frozen_steps: {}}}]", "freeze_prototypes_niters"),
    **_each("parallel.channels_last={}", "channels_last"),
    **_each("parallel.compile={}", "compile", "torch_compile", "torchcompile", "compile_model"),
    **_each("parallel.deterministic={}", "deterministic"),
    **_each(_switch("parallel.remat=block", "parallel.remat=none"), "grad_checkpointing", "gradient_checkpointing",
            "activation_checkpointing", "use_checkpoint", "checkpointing"),
    **_each(_PLAN, "dry_run", "fast_dev_run", "debug", "dryrun", "limit_train_batches", "overfit_batches"),
    **_each("- there is no teacher here; ema=0.999 keeps an average of the weights", "teacher", "momentum_teacher"),
    **_each(_switch("ema=0.999", "ema=0"), "model_ema", "use_ema"),
    **_each("ema={}", "ema_decay", "model_ema_decay"),
    **_each("- classes are those of the labels (task=heads); pretraining has none", "num_classes", "nb_classes"),
    **_each("- the log is quiet already: errors and one line in twenty seconds", "verbose", "quiet", "v", "q", "progress"),
}  # fmt: skip

EVALUATION: dict[str, Entry] = {
    **_each("weights={}", "model", "checkpoint", "ckpt", "ckpt_path", "pretrained", "run", "backbone", "checkpoint_path", "resume"),
    **_each("data.train={}", "train", "train_dir", "train_data", "train_path", "train_data_path", "eval.train"),
    **_each("data.test={}", "test", "val", "val_dir", "test_dir", "val_data", "val_path", "valdir", "eval.test", "data.val"),
    **_each("- labelled images: data.train=LABELLED/train data.test=LABELLED/val", "data", "data_dir", "dataset", "data_path",
            "data.source"),
    **_each("eval.k={}", "k", "neighbors", "n_neighbors", "num_neighbors", "nb_knn", "knn_k"),
    **_each("eval.temperature={}", "temperature", "temp", "knn_t"),
    **_each("eval.penalty={}", "penalty", "wd", "weight_decay"),
    **_each("- eval=linear is solved to its end and has no learning rate and no epochs", "lr", "learning_rate", "epochs", "max_epochs"),
    **_each("batch={}", "batch_size", "bs", "b"),
    **_each("threads={}", "num_workers", "workers", "j", "data.threads", "n_workers"),
    **_each(lambda value: _device(value).replace("parallel.", ""), "accelerator", "parallel.device", "gpu"),
    **_each(_switch("dtype=bf16", "dtype=fp32"), "amp", "bf16", "fp16", "mixed_precision"),
    **_each(lambda value: _precision(value).replace("precision=", "dtype=").replace("fp16", "bf16"), "precision"),
    **_each("output={}", "out", "output_dir", "out_dir", "o", "save_dir"),
    **_each("data.size={}", "image_size", "img_size", "input_size", "crop_size", "resolution", "size"),
    **_each("data.labels={}", "labels"),
    **_each("eval={}", "metric", "metrics", "method", "task", "probe", "protocol"),
}  # fmt: skip

EXPORT: dict[str, Entry] = {
    **_each("weights={}", "model", "checkpoint", "ckpt", "ckpt_path", "run", "input", "i", "pretrained"),
    **_each("to={}", "format", "target", "f", "library"),
    **_each("output={}", "out", "output_dir", "out_dir", "o", "file", "dst", "output_file", "save_path"),
    **_each("licence={}", "license"),
    **_each("source={}", "data", "images", "data.source", "data_dir"),
    **_each(_switch("int8=true", "int8=false"), "quantize", "quantise", "quantization", "ptq"),
    **_each("calibration={}", "calib", "calibration_data", "representative_dataset"),
    **_each("outputs={}", "head", "output_names"),
    **_each("- to=onnx writes ONNX of torch's own opset, which the result tells", "opset", "opset_version", "onnx"),
}

MEASURE: dict[str, Entry] = {
    **_each("file={}", "model", "weights", "program", "onnx", "path", "input", "i", "checkpoint"),
    **_each("against={}", "reference", "baseline", "compare", "other"),
    **_each("data.test={}", "test", "data", "images", "dataset", "val", "data.source", "source", "data_dir"),
    **_each("data.labels={}", "labels"),
    **_each("data.most={}", "most", "limit", "num_images", "max_images"),
    **_each("runs={}", "iterations", "iters", "n", "repeat", "num_runs", "repetitions"),
    **_each("threads={}", "num_threads", "intra_op_num_threads", "t", "nthreads", "cpu_threads"),
    **_each("output={}", "out", "output_dir", "out_dir", "o"),
    **_each("- one image at a time is measured, as a device sees them", "batch", "batch_size", "bs", "b"),
}

SHARDS: dict[str, Entry] = {
    **_each(
        "source={}",
        "data",
        "input",
        "data.source",
        "data_dir",
        "src",
        "path",
        "root",
        "input_dir",
        "i",
        "images",
        "dataset",
    ),
    **_each("output={}", "out", "output_dir", "out_dir", "o", "dst", "dest", "output_folder"),
    **_each(
        "per_shard={}", "maxcount", "samples_per_shard", "shard_size", "number_sample_per_shard", "images_per_shard"
    ),
    **_each("processes={}", "num_workers", "workers", "j", "jobs", "threads", "processes_count", "nproc"),
    **_each("max_side={}", "image_size", "resize", "max_size", "img_size"),
    **_each("quality={}", "jpeg_quality", "encode_quality"),
    **_each("holdout={}", "val", "val_size", "test_size", "val_split", "n_test", "split"),
    **_each(_switch("labels=folder", "labels=null"), "classes", "label"),
}

OF_SWAV = ("task.", "augment.sizes=", "augment.counts=")  # heads learn from one view an image, without prototypes
ADAPTING: dict[str, Entry] = {
    **{
        name: entry
        for name, entry in TRAINING.items()
        if not (entry("1") if callable(entry) else entry).startswith(OF_SWAV)
    },
    **_each(
        "augment.size={}",
        "image_size",
        "img_size",
        "imgsz",
        "input_size",
        "resolution",
        "image_resolution",
        "crop_size",
        "size",
    ),
    **_each("task.mixup={}", "mixup", "mixup_alpha"),
    **_each("task.cutmix={}", "cutmix", "cutmix_alpha"),
}

TABLES: dict[str, dict[str, Entry]] = {
    "pretrain": TRAINING, "adapt": ADAPTING, "plan": TRAINING, "evaluate": EVALUATION, "export": EXPORT, "measure": MEASURE,
    "shard": SHARDS,
}  # fmt: skip
# what other programs put before a dot: trainer.max_epochs, optimizer.lr, cfg.data.batch_size
PREFIXES = ("trainer", "model", "data", "optim", "optimizer", "optimiser", "scheduler", "cfg", "args", "hparams", "train", "run",
            "method_kwargs", "optim_args", "model_args", "loader_args", "transform_args", "augmentations", "auto_resume",
            "checkpoint", "loader", "training", "dataset", "logger", "wandb", "knn_eval", "parallel")  # fmt: skip

# verbs of others -> ours, or a sentence
VERBS = {
    **dict.fromkeys(("train", "fit", "pretraining", "pre-train", "run", "learn", "ssl"), "seer pretrain data.source=… output=…"),
    **dict.fromkeys(
        ("finetune", "fine-tune", "finetuning", "train_task", "classify", "supervised"),
        "seer adapt weights=RUN heads=classify data.source=LABELLED output=… (recipe=finetune trains the whole network)",
    ),
    **dict.fromkeys(
        ("embed", "predict", "extract", "features", "infer", "inference", "encode"),
        "in Python: seer.load(RUN) makes features; `seer evaluate` says what they are worth",
    ),
    **dict.fromkeys(
        ("resume", "continue", "restart", "go-on"),
        "run the same `seer pretrain …` again: it goes on from its last checkpoint",
    ),
    **dict.fromkeys(("info", "list", "ls", "models", "list_models", "list_methods", "show"), "seer pretrain --help model"),
    **dict.fromkeys(("config", "cfg", "print_config", "print-config"), "seer pretrain … --print-config"),
    **dict.fromkeys(
        ("test", "eval", "knn", "linear", "linear_probe", "probe", "validate", "val", "benchmark", "rankme"),
        "seer evaluate eval=alignment|head|knn|linear|lowshot|rankme|suite|uniformity weights=RUN data.train=… data.test=…",
    ),
    **dict.fromkeys(("convert", "save", "onnx", "to"), "seer export to=torchvision|timm|huggingface|safetensors|onnx weights=RUN output=…"),
    **dict.fromkeys(("latency", "bench", "speed", "timeit"), "seer measure file=PROGRAM [against=PROGRAM] [data.test=LABELLED]"),
    **dict.fromkeys(("prepare", "pack", "index", "preprocess", "shards", "tar", "dataset"), "seer shard source=… output=…"),
    **dict.fromkeys(("memory", "estimate", "dry-run", "profile", "summary"), "seer plan recipe=… gpus=… gpu_memory=…"),
}  # fmt: skip


def ours(verb: str, key: str, value: str) -> str | None:
    """Returns our words for a key of another program with its value, or a sentence that begins with "-"; None for one that
    nobody knows."""
    table = TABLES[verb]
    name = key.lower().replace("-", "_")
    *before, last = name.split(".")
    entry = table.get(name) or (table.get(last) if before and all(part in PREFIXES for part in before) else None)
    if entry is None:
        return None
    return entry(value) if callable(entry) else entry.format(value)


def answer(verb: str, words: Sequence[str], known: Sequence[str], groups: Sequence[str]) -> str | None:
    """Returns the answer to the foreign ones among words, with the whole line as it should read; None where there is none, or
    another unknown word comes first."""
    line: list[str] = []
    said: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        mine = None if key in known or key in groups else ours(verb, key, value)
        if mine is not None and not mine.startswith("-") and not _known(mine, known, groups):
            mine = f"- nothing here does that ({mine.partition('=')[0]} is no key of these choices)"
        if key not in known and key not in groups and mine is None and not said:
            return None
        if mine is None:
            line.append(word)
        elif mine.startswith("-"):
            said.append(f"unknown key {key!r}: {mine.lstrip('- ')}")
        else:
            line.append(mine)
            said.append(f"unknown key {key!r}; did you mean {mine.partition('=')[0]!r}, {mine}?")
    if not said:
        return None
    return f"{' '.join(said)} The line: seer {verb} {shlex.join(line)}"


def _known(word: str, known: Sequence[str], groups: Sequence[str]) -> bool:
    key = word.partition("=")[0]
    return key in known or key in groups


def choice_told(group: str, choice: str) -> str | None:
    """Returns what to say of a choice that another program has; None where the nearest of ours will do."""
    word = choice.lower()
    if group == "precision":
        return f"did you mean {PRECISIONS[word]!r}?" if word in PRECISIONS else None
    if group == "model":
        mine = _model(choice)
        return mine.lstrip("- ") if mine.startswith("-") and OTHER_NETWORKS.search(word) else None
    if group == "task":
        return METHODS if OTHER_METHODS.search(word) else None
    if group == "data":
        return f"did you mean data.source={choice}?"
    return None
