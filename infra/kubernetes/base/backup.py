"""Copies a dump of the database and the objects of BUCKETS to the bucket TARGET, and back.

`backup.py DUMP` uploads the dump, and copies new and changed objects. Deleted objects stay in the backup.
`backup.py --restore DUMP` copies objects to the buckets that they are missing from, and downloads the newest dump.
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
    """Return size in bytes and time of last change of every object, by key without the prefix."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {
        found["Key"][len(prefix) :]: (found["Size"], found["LastModified"])
        for page in pages
        for found in page.get("Contents", [])
    }


def copy(s3: Any, source: tuple[str, str], target: tuple[str, str], *, overwrite: bool) -> int:
    """Copy objects that are missing from the target (bucket, prefix) within the store, and return their number.

    With `overwrite`, also copy objects whose size differs or whose source is newer.
    """
    present = listing(s3, *target)
    copied = 0
    for key, (size, changed) in listing(s3, *source).items():
        known = present.get(key)
        # Times are whole seconds, so the source can be newer with the same time.
        if known is None or (overwrite and (known[0] != size or known[1] <= changed)):
            try:
                s3.copy({"Bucket": source[0], "Key": source[1] + key}, target[0], target[1] + key)
            except ClientError as error:
                # The object was deleted after it was listed, as a training does with old checkpoints.
                if error.response["Error"]["Code"] not in {"404", "NoSuchKey"}:
                    raise
            else:
                copied += 1
    return copied


def back_up(s3: Any, buckets: list[str], target: str, dump: Path, kept: int) -> None:
    """Save the dump as database/<time>.dump and each bucket under <bucket>/; keep only the newest `kept` dumps."""
    s3.upload_file(str(dump), target, f"database/{datetime.now(UTC):%Y%m%dT%H%M%SZ}.dump")
    for name in sorted(listing(s3, target, "database/"))[:-kept]:
        s3.delete_object(Bucket=target, Key=f"database/{name}")
    for bucket in buckets:
        print(f"{bucket}: {copy(s3, (bucket, ''), (target, f'{bucket}/'), overwrite=True)} objects copied")


def restore(s3: Any, buckets: list[str], target: str, dump: Path) -> None:
    """Copy missing objects to the buckets, and download the newest dump."""
    newest = max(listing(s3, target, "database/"), default="")
    if not newest:
        sys.exit(f"backup: s3://{target}/database/ contains no dump; correct the bucket in TARGET")
    s3.download_file(target, f"database/{newest}", str(dump))
    for bucket in buckets:
        print(f"{bucket}: {copy(s3, (target, f'{bucket}/'), (bucket, ''), overwrite=False)} objects restored")


def main() -> None:
    """Save or restore the buckets, with the settings BUCKETS, TARGET and DUMPS_KEPT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--restore", action="store_true")
    arguments = parser.parse_args()
    # An empty address means AWS.
    s3 = Session().client("s3", endpoint_url=os.environ.get("AWS_ENDPOINT_URL") or None)
    buckets, target = os.environ["BUCKETS"].split(), os.environ["TARGET"]
    try:
        if arguments.restore:
            restore(s3, buckets, target, arguments.dump)
        else:
            back_up(s3, buckets, target, arguments.dump, int(os.environ["DUMPS_KEPT"]))
    except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
        sys.exit(f"backup: {error}; check that the bucket exists and that the credentials in Secret backup may use it")


if __name__ == "__main__":
    main()
