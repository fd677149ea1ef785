#!/bin/bash
# Plain torchrun, the same command on every host; rank numbers are agreed on at the first one.
#   NODES=2 HEAD=10.0.0.1 train/launch/torchrun.sh train/configs/kosmos1.yaml run=runs/kosmos1 --resume
# One host: train/launch/torchrun.sh CONFIG run=DIR
set -euo pipefail
: "${NODES:=1}" "${HEAD:=localhost}" "${PORT:=29500}" "${PROCESSES:=gpu}" "${RESTARTS:=0}" "${PYTHON:=python}"

exec "$PYTHON" -m kosmos_train.launcher \
    --nnodes "$NODES" \
    --nproc-per-node "$PROCESSES" \
    --rdzv-id kosmos \
    --rdzv-backend c10d \
    --rdzv-endpoint "$HEAD:$PORT" \
    --max-restarts "$RESTARTS" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout 270 \
    -m kosmos_train.pretrain "$@"
