#!/bin/sh
# Runs a command again and again, INTERVAL seconds after it ended, until it is asked to stop (SIGTERM).
#     INTERVAL=3600 LAST_RUN=file timer.sh bebygan run ...
# LAST_RUN holds the last run's exit code and end; 75 means stopped while training, which goes on in the next run.
set -u

running=
stop() {
    trap '' TERM INT
    if [ -n "$running" ]; then
        kill -TERM "$running" 2> /dev/null
        wait "$running"
    fi
    exit 0
}
trap stop TERM INT

while :; do
    "$@" &
    running=$!
    wait "$running"
    code=$?
    running=
    now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    echo "$code $now" > "$LAST_RUN.part" && mv "$LAST_RUN.part" "$LAST_RUN"
    [ "$code" -eq 0 ] || echo "timer: the run of $now ended with exit code $code; the next begins in $INTERVAL s" >&2
    sleep "$INTERVAL" &
    running=$!
    wait "$running"
    running=
done
