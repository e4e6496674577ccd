#!/bin/sh
# Restores a backup into an empty database and missing or empty buckets, while neither tracking server nor pipeline runs.
#     infra/team-server/restore.sh FOLDER/<time>
# After an interruption, the same command completes the restore.
#
# The buckets come first, so that the database never names an object that is missing.
set -eu

[ -f "${1:-}/database.dump" ] && [ -f "$1/objects.jsonl" ] ||
    { echo "usage: restore.sh FOLDER/<time>, a folder that backup.sh made" >&2; exit 2; }
backup=$(cd "$1" && pwd)
folder=$(dirname "$backup")
# shellcheck source=where.sh
. "$(dirname "$0")/where.sh"

tables=$(in_postgres psql --no-align --tuples-only \
    --command "select count(*) from information_schema.tables where table_schema = 'public'")
[ "$tables" -eq 0 ] || { echo "restore: the database is not empty: nothing was changed" >&2; exit 1; }
# Entries of the ledger are protected if their bucket is locked before they are written.
case " ${BUCKETS-ledger} " in *" ledger "*) in_tracker python "$scripts/setup.py" --ledger ledger ;; esac
in_tracker python "$scripts/buckets.py" restore "$folder" "$backup/objects.jsonl"
in_postgres pg_restore --no-owner --exit-on-error --single-transaction --dbname="${PGDATABASE:-mlflow}" \
    < "$backup/database.dump"
echo "restored $backup"
