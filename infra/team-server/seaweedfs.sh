#!/bin/sh
# Writes the permissions of the S3 store's keys to a file that only this user reads, and executes `weed server`.
# SeaweedFS opens a gRPC port beside S3, on the same address, with calls that create administrators and delete objects.
# It refuses them to callers without a token that is signed with this key. The key is new at each start; nobody has it.
set -eu

umask 077
identities=${TMPDIR:-/tmp}/s3.json
cat > "$identities" <<EOF
{"identities": [
  {"name": "admin", "credentials": [{"accessKey": "$ADMIN_KEY_ID", "secretKey": "$ADMIN_KEY"}],
   "actions": ["Admin", "Read", "List", "Write", "Tagging"]},
  {"name": "photographer", "credentials": [{"accessKey": "$PHOTOGRAPHER_KEY_ID", "secretKey": "$PHOTOGRAPHER_KEY"}],
   "actions": ["Read:photographs", "List:photographs", "Write:photographs", "Tagging:photographs"]},
  {"name": "pipeline", "credentials": [{"accessKey": "$PIPELINE_KEY_ID", "secretKey": "$PIPELINE_KEY"}],
   "actions": ["Read:photographs", "List:photographs",
               "Read:bebygan", "List:bebygan", "Write:bebygan", "Tagging:bebygan",
               "Read:ledger", "List:ledger", "Write:ledger/*"]},
  {"name": "mlflow", "credentials": [{"accessKey": "$MLFLOW_KEY_ID", "secretKey": "$MLFLOW_KEY"}],
   "actions": ["Read:mlflow", "List:mlflow", "Write:mlflow", "Tagging:mlflow"]}
]}
EOF
key=$(head -c 512 /dev/urandom | LC_ALL=C tr -dc 'A-Za-z0-9' | head -c 32)
export WEED_JWT_FILER_SIGNING_KEY="${key:?no random key for the gRPC port}"
exec weed -logtostderr=true server -s3.config="$identities" "$@"
