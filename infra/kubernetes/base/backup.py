"""Copies a dump of the database and the named buckets into the bucket TARGET, and back.

What is there already is not copied again.

An object that is deleted stays in the backup. `backup.py DUMP` saves; `backup.py --restore DUMP` puts back what the
buckets lack and fetches the newest dump.
"""

import argparse
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from boto3.exceptions import Boto3Error
from boto3.session import Session
from botocore.exceptions import BotoCoreError, ClientError


def listing(s3: Any, bucket: str, prefix: str = "") -> dict[str, tuple[int, datetime]]:
    """Size in bytes and time of last change of every object, by its key without the prefix."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {
        found["Key"][len(prefix) :]: (found["Size"], found["LastModified"])
        for page in pages
        for found in page.get("Contents", [])
    }


def copy(s3: Any, source: tuple[str, str], target: tuple[str, str], *, overwrite: bool) -> int:
    """Copy within the store what the target (bucket, prefix) lacks; says how many objects.

    With `overwrite` also what the target has of another size, or had before the source was last changed.
    """
    present = listing(s3, *target)
    copied = 0
    for key, (size, changed) in listing(s3, *source).items():
        known = present.get(key)
        # Times are whole seconds: of two equal ones the source's may be the later.
        if known is None or (overwrite and (known[0] != size or known[1] <= changed)):
            try:
                s3.copy({"Bucket": source[0], "Key": source[1] + key}, target[0], target[1] + key)
            except ClientError as error:
                # Deleted since it was listed, as old checkpoints are while a training runs.
                if error.response["Error"]["Code"] not in {"404", "NoSuchKey"}:
                    raise
            else:
                copied += 1
    return copied


def back_up(s3: Any, buckets: list[str], target: str, dump: Path, kept: int) -> None:
    """Save the dump under database/<time>.dump and each bucket under <bucket>/; the oldest dumps beyond `kept` go."""
    s3.upload_file(str(dump), target, f"database/{datetime.now(UTC):%Y%m%dT%H%M%SZ}.dump")
    for name in sorted(listing(s3, target, "database/"))[:-kept]:
        s3.delete_object(Bucket=target, Key=f"database/{name}")
    for bucket in buckets:
        print(f"{bucket}: {copy(s3, (bucket, ''), (target, f'{bucket}/'), overwrite=True)} objects copied")


def restore(s3: Any, buckets: list[str], target: str, dump: Path) -> None:
    """Put back the objects that the buckets lack, and fetch the newest dump."""
    newest = max(listing(s3, target, "database/"), default="")
    if not newest:
        sys.exit(f"backup: s3://{target}/database/ holds no dump; name the right bucket in TARGET")
    s3.download_file(target, f"database/{newest}", str(dump))
    for bucket in buckets:
        print(f"{bucket}: {copy(s3, (target, f'{bucket}/'), (bucket, ''), overwrite=False)} objects put back")


def main() -> None:
    """Save or restore what BUCKETS, TARGET and DUMPS_KEPT say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--restore", action="store_true")
    arguments = parser.parse_args()
    # An address that is set but empty means the store of AWS.
    s3 = Session().client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL") or None)
    buckets, target = os.environ["BUCKETS"].split(), os.environ["TARGET"]
    try:
        if arguments.restore:
            restore(s3, buckets, target, arguments.dump)
        else:
            back_up(s3, buckets, target, arguments.dump, int(os.environ["DUMPS_KEPT"]))
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"backup: {error}; see that the bucket exists and that the credentials in Secret backup may use it")


if __name__ == "__main__":
    main()
