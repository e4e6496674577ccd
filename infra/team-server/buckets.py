"""Saves buckets into a folder and restores them.

`buckets.py save STORE LISTING` downloads every object of BUCKETS into STORE/objects, each content once, under its
SHA-256. Then it writes LISTING, STORE/<time>/objects.jsonl, with one JSON line for each object. It does not download
objects again that an earlier listing names with the same size and ETag, and it deletes contents that no listing names.
`buckets.py restore STORE LISTING` uploads the listed objects into buckets that are missing, empty, or contain some of
the objects already, and verifies each content's SHA-256.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

_THREADS = 8
Mark = tuple[str, str, int, str]
"""Bucket, key, size and ETag of an object."""


def _object(store: Path, sha256: str) -> Path:
    return store / "objects" / sha256[:2] / sha256


def _listed(s3: Any, bucket: str) -> Iterator[dict[str, Any]]:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for found in page.get("Contents", []):
            yield {"bucket": bucket, "key": found["Key"], "size": found["Size"], "etag": found["ETag"]}


def _read(listing: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in listing.read_text().splitlines()]
    except ValueError as error:
        raise ValueError(f"{listing} is damaged ({error}): restore it from a copy, or delete its folder") from error


def _mark(entry: dict[str, Any]) -> Mark:
    return entry["bucket"], entry["key"], entry["size"], entry["etag"]


def _fetch(s3: Any, store: Path, entry: dict[str, Any]) -> str | None:
    """Download an object into the store and return its SHA-256, or None if the object has been deleted."""
    with tempfile.NamedTemporaryFile(dir=store / "objects") as part:
        try:
            s3.download_fileobj(entry["bucket"], entry["key"], part)
        except ClientError as error:
            if error.response["Error"]["Code"] in {"404", "NoSuchKey"}:
                return None
            raise
        part.flush()
        os.fsync(part.fileno())
        part.seek(0)
        sha256 = hashlib.file_digest(part, "sha256").hexdigest()
        target = _object(store, sha256)
        target.parent.mkdir(exist_ok=True)
        # Another object may have the same content, which another thread may just have stored.
        with contextlib.suppress(FileExistsError):
            os.link(part.name, target)
    return sha256


def save(s3: Any, buckets: list[str], store: Path, listing: Path) -> None:
    """Download new objects, write the listing atomically, and delete contents that no listing names."""
    (store / "objects").mkdir(parents=True, exist_ok=True)
    earlier: dict[Mark, str] = {}
    damaged = False
    for path in sorted(store.glob(f"*/{listing.name}")):
        try:
            earlier |= {_mark(entry): entry["sha256"] for entry in _read(path)}
        except ValueError as error:
            damaged = True
            print(f"save: {error}; no contents are deleted until then", file=sys.stderr)
    kept = {mark: sha256 for mark, sha256 in earlier.items() if _object(store, sha256).exists()}
    entries = [entry for bucket in buckets for entry in _listed(s3, bucket)]
    new = [entry for entry in entries if _mark(entry) not in kept]
    with ThreadPoolExecutor(_THREADS) as pool:
        fetched = dict(zip(map(_mark, new), pool.map(lambda entry: _fetch(s3, store, entry), new), strict=True))
    # An object that was deleted after it was listed is left out.
    saved = [entry | {"sha256": sha256} for entry in entries if (sha256 := (kept | fetched)[_mark(entry)])]
    with tempfile.NamedTemporaryFile("w", prefix=".", dir=listing.parent, delete=False) as part:
        part.writelines(f"{json.dumps(entry)}\n" for entry in saved)
    os.chmod(part.name, 0o600)
    os.replace(part.name, listing)
    named = {*earlier.values(), *(entry["sha256"] for entry in saved)}
    for path in [] if damaged else list((store / "objects").rglob("*")):
        if path.is_file() and path.name not in named:
            path.unlink()
    print(f"{len(saved)} objects saved, {len(new)} of them fetched")


def _put_back(s3: Any, store: Path, entry: dict[str, Any]) -> None:
    path = _object(store, entry["sha256"])
    if not path.is_file():
        raise ValueError(f"{path} is missing: {entry['bucket']}/{entry['key']} cannot be restored")
    with path.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != entry["sha256"]:
            raise ValueError(f"{path} is damaged: {entry['bucket']}/{entry['key']} cannot be restored")
        content.seek(0)
        s3.upload_fileobj(content, entry["bucket"], entry["key"])


def restore(s3: Any, buckets: list[str], store: Path, listing: Path) -> None:
    """Upload the listed objects to their buckets, which must not contain other objects."""
    entries = [entry for entry in _read(listing) if entry["bucket"] in buckets]
    sizes = {(entry["bucket"], entry["key"]): entry["size"] for entry in entries}
    present = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for bucket in present.intersection(buckets):
        for found in _listed(s3, bucket):
            # An interrupted restore may have uploaded some objects.
            if sizes.get((bucket, found["key"])) != found["size"]:
                sys.exit(
                    f"restore: {bucket}/{found['key']} is not part of this backup: empty or delete the bucket first"
                )
    for bucket in sorted({*buckets} - present):
        s3.create_bucket(Bucket=bucket)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda entry: _put_back(s3, store, entry), entries))
    print(f"{len(entries)} objects restored")


def main() -> None:
    """Save or restore the buckets that BUCKETS names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["save", "restore"])
    parser.add_argument("store", type=Path)
    parser.add_argument("listing", type=Path)
    options = parser.parse_args()
    # Some S3-compatible stores do not support the checksums that newer clients send.
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=2 * _THREADS,
    )
    s3 = Session().client("s3", config=config)
    work = save if options.what == "save" else restore
    try:
        work(s3, os.environ["BUCKETS"].split(), options.store, options.listing)
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        sys.exit(f"{options.what}: {error}")


if __name__ == "__main__":
    main()
