"""Creates missing buckets of a team server, and accounts of its tracking server.

`setup.py` creates the buckets BUCKETS and the accounts `retrain` and `serve`, and sets their passwords to
PIPELINE_PASSWORD and SERVE_PASSWORD. It denies the pipeline's key to delete entries of the ledger.
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
    """Deny the pipeline's key to delete entries of the ledger in a bucket."""
    denied = {
        "Effect": "Deny",
        "Principal": {"AWS": "arn:aws:iam::*:user/pipeline"},
        "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
        "Resource": f"arn:aws:s3:::{bucket}/ledger/*.json",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [denied]})
    Session().client("s3").put_bucket_policy(Bucket=bucket, Policy=policy)


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
    account = parser.parse_args().account
    try:
        if account:
            made = make_account(account, sys.stdin.readline().rstrip("\n"))
            print(f"account {account}: {'made' if made else 'has the new password'}")
            return
        for bucket in os.environ["BUCKETS"].split():
            make_bucket(bucket)
        keep_ledger("bebygan")
        for name, variable in (("retrain", "PIPELINE_PASSWORD"), ("serve", "SERVE_PASSWORD")):
            if make_account(name, os.environ[variable]):
                print(f"account {name}: made")
    except (BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"setup: {error}; check that the servers run and that the passwords are those of their first start")


if __name__ == "__main__":
    main()
