#!/usr/bin/env bash
# One process on this machine: a laptop, or one GPU. Copy this file and change the lines.
set -eu

RUN=runs/first                      # the run folder; start the same line again to go on where it stopped
SOURCE=images/                     # a folder, a tar, a glob, shards {000000..000099}.tar, or several with commas

# The last line on stdout is the result as JSON; progress goes to stderr and to $RUN/train.log.
# Exit: 0 done · 75 saved on request, run it again · 65 bad data · 74 storage · 78 wrong request · 70 a defect.
exec seer pretrain data.source="$SOURCE" output="$RUN" "$@"
