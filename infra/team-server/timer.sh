#!/bin/sh
# Runs a command again and again, INTERVAL seconds after it ended, until it is asked to stop (SIGTERM).
#     INTERVAL=3600 LAST_RUN=file timer.sh bebygan run ...
# LAST_RUN holds the last run's exit code and end; 75 means stopped while training, which goes on in the next run.
# After exit code 4, a server that is away, the next run begins in 30 seconds, then in twice as many, up to INTERVAL: when
# a machine starts, the first run may begin before the servers are ready.
set -u

stop() {
    trap '' TERM INT
    # The run, or the pause.
    kill -TERM "${!:-}" 2> /dev/null
    wait
    exit 0
}
trap stop TERM INT

soon=30
while :; do
    "$@" &
    wait "$!"
    code=$?
    now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    echo "$code $now" > "$LAST_RUN.part" && mv "$LAST_RUN.part" "$LAST_RUN"
    pause=$INTERVAL
    if [ "$code" -ne 4 ]; then
        soon=30
    elif [ "$soon" -lt "$INTERVAL" ]; then
        pause=$soon
        soon=$((soon * 2))
    fi
    [ "$code" -eq 0 ] || echo "timer: the run of $now ended with exit code $code; the next begins in $pause s" >&2
    sleep "$pause" &
    wait "$!"
done
