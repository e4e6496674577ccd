#!/bin/sh
# Runs a command, waits INTERVAL seconds after it has ended, and repeats, until it gets SIGTERM.
#     INTERVAL=3600 LAST_RUN=file timer.sh bebygan run ...
# LAST_RUN contains the exit code and the end of the last run; 75 means stopped while training, which the next run resumes.
# After exit code 4, a server that is unreachable, the next run starts in 30 seconds, then in twice as many, up to INTERVAL:
# after a reboot, the first run may start before the servers are ready.
set -u

stop() {
    trap '' TERM INT
    # Stops the run, or the pause.
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
    [ "$code" -eq 0 ] || echo "timer: the run of $now ended with exit code $code; the next starts in $pause s" >&2
    sleep "$pause" &
    wait "$!"
done
