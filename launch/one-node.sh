#!/usr/bin/env bash
# Pre-train on one machine: a process for each GPU, or as many as PROCESSES says.
#
#   PROCESSES=4 launch/one-node.sh DATA --out RUN --model base …
#
# Give it again to continue. Exits with 0 complete, 3 stopped by a signal and saved, 1 failed.
set -euo pipefail

python=${PYTHON:-python}
out=
previous=
for argument in "$@"; do
  if [[ $previous == --out ]]; then out=$argument; fi
  if [[ $argument == --out=* ]]; then out=${argument#--out=}; fi
  previous=$argument
done
: "${out:?give --out RUN}"

before=$(stat -c %i "$out/summary.json" 2>/dev/null || echo none)
# A process that dies takes the others with it; all start again from the newest checkpoint, RESTARTS times at most.
# RENDEZVOUS holds several words: it is set by several-nodes.sh.
# shellcheck disable=SC2086
"$python" -m torch.distributed.run ${RENDEZVOUS:---standalone} --nproc-per-node "${PROCESSES:-auto}" \
  --max-restarts "${RESTARTS:-3}" -m openmae pretrain "$@" --resume auto &
torchrun=$!

# torchrun hands on SIGTERM and waits half a minute; SIGUSR1 would end it and leave its processes alone.
trap 'kill -TERM "$torchrun" 2>/dev/null || true' TERM INT USR1
code=0
wait "$torchrun" || code=$?
while kill -0 "$torchrun" 2>/dev/null; do # a signal ends `wait` early
  code=0
  wait "$torchrun" || code=$?
done

# torchrun's exit code is 1 for everything; what became of the run stands in its summary.
now=$(stat -c %i "$out/summary.json" 2>/dev/null || echo none)
if [ "$code" != 0 ] && [ "$now" = "$before" ]; then exit "$code"; fi # it ended before it could write one
status=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$out/summary.json" || echo none)
case $status in
  complete) exit "$code" ;;
  interrupted) exit 3 ;;
  *) exit $((code == 0 ? 1 : code)) ;;
esac
