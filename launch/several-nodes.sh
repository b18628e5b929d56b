#!/usr/bin/env bash
# Pre-train on several machines that share a file system: the same command on each of them.
#
#   HEAD=node01 NODES=4 launch/several-nodes.sh DATA --out /shared/RUN --model large …
#
# HEAD is the machine that all can reach on PORT (29500); JOB tells two jobs on the same machines apart.
set -euo pipefail

: "${HEAD:?name the first machine}" "${NODES:?say how many machines}"

# A store of its own for each attempt: in the agents' shared one, restarted processes find dead ones' addresses.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export RENDEZVOUS="--nnodes $NODES --rdzv-backend c10d --rdzv-endpoint $HEAD:${PORT:-29500} --rdzv-id ${JOB:-openmae}"
exec "$(dirname "$0")/one-node.sh" "$@"
