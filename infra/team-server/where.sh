# shellcheck shell=sh
# Where backup.sh and restore.sh find PostgreSQL's tools and a Python with boto3: in the containers of compose.yaml, or,
# where BEBYGAN_DIRECT is set, on this machine, by PG*, AWS_* and BUCKETS of the environment.
here=$(cd "$(dirname "$0")" && pwd)

if [ -n "${BEBYGAN_DIRECT:-}" ]; then
    scripts=$here
    in_postgres() { "$@"; }
    in_tracker() { "$@"; }
else
    scripts=/team-server
    compose() { docker compose --project-directory "$here/.." --file "$here/../compose.yaml" "$@"; }
    in_postgres() { compose exec -T postgres "$@"; }
    # As who calls, so that what is saved is theirs; at the same path inside as outside.
    in_tracker() {
        # shellcheck disable=SC2154 # set by the caller
        compose run --rm --no-deps -T --user "$(id -u):$(id -g)" --volume "$folder:$folder" setup "$@"
    }
fi
