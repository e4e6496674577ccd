#!/bin/sh
# Prints the passwords of a new team server. Run it once, and keep its output with your other passwords.
#     (umask 077; infra/team-server/secrets.sh > infra/.env)
# PostgreSQL and MLflow keep the passwords of their first start; docs/team-server.md describes how to change each.
set -eu

random() {
    head -c 512 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | head -c 32
}

cat <<EOF
COMPOSE_PROJECT_NAME=bebygan

# PostgreSQL's user mlflow, who owns the database of the tracking server.
POSTGRES_PASSWORD=$(random)

# The tracking server: signs sessions; its administrator \`admin\`; the accounts \`retrain\` and \`serve\`.
MLFLOW_SECRET_KEY=$(random)
MLFLOW_ADMIN_PASSWORD=$(random)
PIPELINE_PASSWORD=$(random)
SERVE_PASSWORD=$(random)

# The S3 store: everything; put photographs; run the pipeline; keep the tracking server's artifacts.
ADMIN_KEY_ID=$(random)
ADMIN_KEY=$(random)
PHOTOGRAPHER_KEY_ID=$(random)
PHOTOGRAPHER_KEY=$(random)
PIPELINE_KEY_ID=$(random)
PIPELINE_KEY=$(random)
MLFLOW_KEY_ID=$(random)
MLFLOW_KEY=$(random)
EOF
