#!/usr/bin/env bash
# One rank a GPU, on one machine or on several. Copy this file and change the lines.
set -u                              # not -e: torchrun's own status is looked at below

RUN=runs/first                      # on several machines: a folder that all of them see
SOURCE=images/                     # a folder, a tar, a glob, shards {000000..000099}.tar, or several with commas
GPUS=8                              # ranks on this machine
NODES=1                             # machines; the same lines run on each of them
HEAD=localhost:29500                # several machines: name and free port of one of them, the same on all

# An old result must not be taken for this run's, should the job be killed before it writes one.
rm -f "$RUN/result.json"
TOLD=$(mktemp)
trap 'rm -f "$TOLD"' EXIT
exec 3> >(trap "" INT TERM HUP USR1; exec tee "$TOLD")     # no signal may end it before the last line
tee=$!

# Seconds from the signal that ends a run to SIGKILL, instead of torchrun's 30: longer than one step and one save.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600

# The rendezvous finds the ranks' order by itself; --max-restarts=0: a run resumes when this script is started again;
# --signals-to-handle: without it SIGUSR1, which schedulers send before they end a job, would kill torchrun alone.
python -m torch.distributed.run --nnodes="$NODES" --nproc_per_node="$GPUS" --max-restarts=0 \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --rdzv_backend=c10d --rdzv_endpoint="$HEAD" --rdzv_id="$(basename "$RUN")" \
    -m seer pretrain data.source="$SOURCE" output="$RUN" "$@" >&3
status=$?
exec 3>&-
wait "$tee"

# torchrun makes every failure 1, so the run's own status is read where it was written, or where it ended before it had its
# folder, in the last line that it printed:
# 0 done · 75 saved on request, run it again · 65 bad data · 74 storage · 78 wrong request · 70 a defect.
if [ -f "$RUN/result.json" ]; then cat "$RUN/result.json" > "$TOLD"; fi
exit "$(tail -n 1 "$TOLD" | python -c 'import json, sys; print(json.load(sys.stdin)["exit"])' 2>/dev/null || echo "$status")"
