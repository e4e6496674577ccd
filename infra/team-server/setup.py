"""Makes what a new team server lacks: the buckets, and accounts of the tracking server. Again, it changes nothing.

`setup.py` makes the buckets BUCKETS and the account `retrain` with PIPELINE_PASSWORD. `setup.py --account NAME` makes
one more account, which may read all runs and models; its password is read from standard input.
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
    """Make a bucket unless it is there."""
    s3 = Session().client("s3")
    try:
        s3.create_bucket(Bucket=name)
    except (s3.exceptions.BucketAlreadyOwnedByYou, s3.exceptions.BucketAlreadyExists):
        return
    print(f"bucket {name}: made")


def make_account(name: str, password: str) -> None:
    """Make an account of the tracking server unless it is there; an existing one keeps its password."""
    login = f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}"
    request = urllib.request.Request(  # noqa: S310 - the address is the administrator's
        f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/users/create",
        json.dumps({"username": name, "password": password}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60):  # noqa: S310
            print(f"account {name}: made")
    except urllib.error.HTTPError as error:
        answer = error.read().decode(errors="replace")
        if "RESOURCE_ALREADY_EXISTS" not in answer:
            sys.exit(f"setup: the tracking server refuses the account {name}: {error.code} {answer[:300]}")


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--account", metavar="NAME", help="make one more account; password from standard input")
    account = parser.parse_args().account
    try:
        if account:
            make_account(account, sys.stdin.readline().rstrip("\n"))
            return
        for bucket in os.environ["BUCKETS"].split():
            make_bucket(bucket)
        make_account("retrain", os.environ["PIPELINE_PASSWORD"])
    except (BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"setup: {error}; see that the servers run and that the passwords are those of their first start")


if __name__ == "__main__":
    main()
