# shellcheck shell=sh
# Lets backup.sh and restore.sh run PostgreSQL's tools and a Python with boto3: in the containers of compose.yaml, or, if
# BEBYGAN_DIRECT is set, on this machine with PG*, AWS_* and BUCKETS of the environment.
here=$(cd "$(dirname "$0")" && pwd)

if [ -n "${BEBYGAN_DIRECT:-}" ]; then
    scripts=$here
    in_postgres() { "$@"; }
    in_tracker() { "$@"; }
else
    scripts=/team-server
    compose() { docker compose --project-directory "$here/.." --file "$here/../compose.yaml" "$@"; }
    in_postgres() { compose exec -T postgres "$@"; }
    # With the caller's user, who then owns the backup; at the same path inside and outside.
    in_tracker() {
        # shellcheck disable=SC2154 # set by the caller
        compose run --rm --no-deps -T --user "$(id -u):$(id -g)" --volume "$folder:$folder" setup "$@"
    }
fi
