#!/bin/sh
# Saves the database of the tracking server and all buckets (photographs, data versions, ledger, artifacts) while they run.
#     infra/team-server/backup.sh FOLDER
# FOLDER/<time>/ then holds database.dump and objects.jsonl, FOLDER/objects the contents, each once for all backups. To
# delete a backup, delete FOLDER/<time>; the next backup deletes contents that no other backup lists.
#
# The database is saved first: artifacts are stored before the database names them and never change, so the buckets, which
# are copied later, contain everything that the saved database names.
set -eu

[ $# -eq 1 ] || { echo "usage: backup.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
# shellcheck source=where.sh
. "$(dirname "$0")/where.sh"

umask 077
exec 9< "$folder"
flock -n 9 || { echo "backup: another backup into $folder is still running" >&2; exit 1; }
# Remains of backups that were killed.
rm -rf "$folder"/*.part
time=$(date -u +%Y%m%dT%H%M%SZ)
mkdir "$folder/$time.part"
trap 'rm -rf "$folder/$time.part"' EXIT
trap 'exit 1' HUP INT TERM
in_postgres pg_dump --format=custom --no-owner > "$folder/$time.part/database.dump"
in_tracker python "$scripts/buckets.py" save "$folder" "$folder/$time.part/objects.jsonl"
sync
mv "$folder/$time.part" "$folder/$time"
echo "$folder/$time"
