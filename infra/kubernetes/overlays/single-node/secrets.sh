#!/bin/sh
# Prints all Secrets of this overlay with random passwords:
#     ./secrets.sh | kubectl apply --namespace bebygan --filename -
# Each call prints other passwords. PostgreSQL and MLflow keep the first ones, so keep the output (encrypted).
set -eu

random() {
    head -c 512 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | head -c 32
}

# secret NAME [KEY VALUE]...
secret() {
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\nstringData:\n' "$1"
    shift
    [ $# -eq 0 ] || printf '  %s: %s\n' "$@"
}

steps_id=$(random) steps_key=$(random)
ingest_id=$(random) ingest_key=$(random)
evaluate_id=$(random) evaluate_key=$(random)
training_id=$(random) training_key=$(random)
tracker_id=$(random) tracker_key=$(random)
backup_id=$(random) backup_key=$(random)
photographer_id=$(random) photographer_key=$(random)
ledger_id=$(random) ledger_key=$(random)

# preflight and register: read photographs; read and write data versions and test objects; append to the ledger.
secret bebygan-s3 AWS_ACCESS_KEY_ID "$steps_id" AWS_SECRET_ACCESS_KEY "$steps_key"
# look and ingest, which decode foreign files: read photographs, write data versions.
secret bebygan-ingest-s3 AWS_ACCESS_KEY_ID "$ingest_id" AWS_SECRET_ACCESS_KEY "$ingest_key"
# evaluate: reads data versions and the ledger, writes nothing.
secret bebygan-evaluate-s3 AWS_ACCESS_KEY_ID "$evaluate_id" AWS_SECRET_ACCESS_KEY "$evaluate_key"
# Their account at the tracking server, which moves the champion; docs/cluster.md describes how to create it there.
secret bebygan-mlflow MLFLOW_TRACKING_USERNAME retrain MLFLOW_TRACKING_PASSWORD "$(random)"
# warmup and train, which run for days on machines with GPUs, write checkpoints.
secret bebygan-training-s3 AWS_ACCESS_KEY_ID "$training_id" AWS_SECRET_ACCESS_KEY "$training_key"
# The account of all other steps, which may log to runs and read the registry.
secret bebygan-training-mlflow MLFLOW_TRACKING_USERNAME trainer MLFLOW_TRACKING_PASSWORD "$(random)"
# The account of `bebygan serve`, with the component serve: it reads the registry and the weights.
secret bebygan-serve-mlflow MLFLOW_TRACKING_USERNAME serve MLFLOW_TRACKING_PASSWORD "$(random)"
# The tracking server itself.
secret mlflow-server POSTGRES_PASSWORD "$(random)" MLFLOW_FLASK_SERVER_SECRET_KEY "$(random)" \
    MLFLOW_AUTH_ADMIN_PASSWORD "$(random)" AWS_ACCESS_KEY_ID "$tracker_id" AWS_SECRET_ACCESS_KEY "$tracker_key"
secret backup AWS_ACCESS_KEY_ID "$backup_id" AWS_SECRET_ACCESS_KEY "$backup_key"
# Prometheus' account at the tracking server.
secret mlflow-metrics username prometheus password "$(random)"
# For people who upload photographs; no pod uses it.
secret photographer AWS_ACCESS_KEY_ID "$photographer_id" AWS_SECRET_ACCESS_KEY "$photographer_key"
# For the administrator who creates and locks the bucket of the ledger; no pod uses it.
secret ledger-keeper AWS_ACCESS_KEY_ID "$ledger_id" AWS_SECRET_ACCESS_KEY "$ledger_key"
# Permissions of the keys in the S3 store, and the key that signs calls of its administration on the gRPC port.
signing=$(random)
secret seaweedfs
cat <<END
  security.toml: |
    [jwt.filer_signing]
    key = "${signing:?no random key}"
  s3.json: |
    {"identities": [
      {"name": "steps", "credentials": [{"accessKey": "$steps_id", "secretKey": "$steps_key"}],
       "actions": ["Read:photographs", "List:photographs",
                   "Read:bebygan", "List:bebygan", "Write:bebygan", "Tagging:bebygan",
                   "Read:ledger", "List:ledger", "Write:ledger/*"]},
      {"name": "ledger-keeper", "credentials": [{"accessKey": "$ledger_id", "secretKey": "$ledger_key"}],
       "actions": ["Admin:ledger"]},
      {"name": "ingest", "credentials": [{"accessKey": "$ingest_id", "secretKey": "$ingest_key"}],
       "actions": ["Read:photographs", "List:photographs",
                   "List:bebygan", "Read:bebygan/dvc/*", "Write:bebygan/dvc/*"]},
      {"name": "evaluate", "credentials": [{"accessKey": "$evaluate_id", "secretKey": "$evaluate_key"}],
       "actions": ["List:bebygan", "Read:bebygan/dvc/*", "Read:bebygan/ledger/*", "Read:ledger", "List:ledger"]},
      {"name": "training", "credentials": [{"accessKey": "$training_id", "secretKey": "$training_key"}],
       "actions": ["List:bebygan", "Read:bebygan/checkpoints/*", "Write:bebygan/checkpoints/*"]},
      {"name": "photographer", "credentials": [{"accessKey": "$photographer_id", "secretKey": "$photographer_key"}],
       "actions": ["Read:photographs", "List:photographs", "Write:photographs", "Tagging:photographs"]},
      {"name": "mlflow", "credentials": [{"accessKey": "$tracker_id", "secretKey": "$tracker_key"}],
       "actions": ["Read:mlflow", "List:mlflow", "Write:mlflow", "Tagging:mlflow"]},
      {"name": "backup", "credentials": [{"accessKey": "$backup_id", "secretKey": "$backup_key"}],
       "actions": ["Read", "List", "Write:backup", "Tagging:backup"]}
    ]}
END
