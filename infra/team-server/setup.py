"""Creates missing buckets of a team server, and accounts of its tracking server.

`setup.py` creates the buckets BUCKETS and the accounts `retrain` and `serve`, and sets their passwords to
PIPELINE_PASSWORD and SERVE_PASSWORD. It locks the bucket `ledger`, whose entries then cannot be altered or deleted.
`setup.py --ledger BUCKET` creates and locks such a bucket only. AWS_* hold the key of the bucket's administrator.
`setup.py --account NAME` creates an account that may read all runs and models, or changes the password of an existing
account. It reads the password from standard input.
"""

import argparse
import base64
import json
import os
import sys
import urllib.error
import urllib.request

from boto3.session import Session
from botocore.exceptions import BotoCoreError, ClientError


def make_bucket(name: str) -> None:
    """Create a bucket if it does not exist."""
    s3 = Session().client("s3")
    try:
        s3.create_bucket(Bucket=name)
    except (s3.exceptions.BucketAlreadyOwnedByYou, s3.exceptions.BucketAlreadyExists):
        return
    print(f"bucket {name}: made")


def keep_ledger(bucket: str) -> None:
    """Lock a bucket: what is written from now on is kept for 100 years, also if it is overwritten or deleted."""
    s3 = Session().client("s3")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    # Only an administrator may delete a version earlier.
    lock = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Years": 100}}}
    s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=lock)


def move_ledger(old: str, prefix: str, bucket: str) -> None:
    """Copy the entries of an earlier version's ledger, below a prefix of another bucket, which the ledger lacks."""
    s3 = Session().client("s3")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=old, Prefix=prefix):
        for found in page.get("Contents", ()):
            key = found["Key"].removeprefix(prefix)
            if key.endswith(".json") and not s3.list_objects_v2(Bucket=bucket, Prefix=key).get("KeyCount"):
                # Unlike a new object, SeaweedFS locks no copy.
                entry = s3.get_object(Bucket=old, Key=found["Key"])["Body"].read()
                s3.put_object(Bucket=bucket, Key=key, Body=entry)
                print(f"ledger: {key} copied from {old}/{prefix}")


def _ask(method: str, what: str, name: str, password: str) -> str:
    """Send a request about an account to the tracking server; return its error, or an empty text."""
    login = f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}"
    request = urllib.request.Request(  # noqa: S310 - the address is the administrator's
        f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/{what}",
        json.dumps({"username": name, "password": password}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=60):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode(errors='replace')[:300]}"


def make_account(name: str, password: str) -> bool:
    """Create an account of the tracking server, or change its password; return whether it was created."""
    refused = _ask("POST", "create", name, password)
    made = not refused
    if "RESOURCE_ALREADY_EXISTS" in refused:
        refused = _ask("PATCH", "update-password", name, password)
    if refused:
        sys.exit(f"setup: the tracking server rejects the account {name}: {refused}")
    return made


def main() -> None:
    """Create buckets and accounts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--account", metavar="NAME", help="create this account; password from standard input")
    parser.add_argument("--ledger", metavar="BUCKET", help="create and lock this bucket only")
    options = parser.parse_args()
    account = options.account
    try:
        if options.ledger:
            make_bucket(options.ledger)
            keep_ledger(options.ledger)
            return
        if account:
            made = make_account(account, sys.stdin.readline().rstrip("\n"))
            print(f"account {account}: {'made' if made else 'has the new password'}")
            return
        for bucket in os.environ["BUCKETS"].split():
            make_bucket(bucket)
        keep_ledger("ledger")
        move_ledger("bebygan", "ledger/", "ledger")
        for name, variable in (("retrain", "PIPELINE_PASSWORD"), ("serve", "SERVE_PASSWORD")):
            if make_account(name, os.environ[variable]):
                print(f"account {name}: made")
    except (BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"setup: {error}; check that the servers run and that the passwords are those of their first start")


if __name__ == "__main__":
    main()
