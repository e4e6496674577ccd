"""What somebody with a key that may append to the ledger tries against its entries."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError


def attack_ledger(s3: Any, bucket: str) -> None:
    """Overwrite and delete the entry 1 of the model `bebygan`, and try to remove its lock and its first version."""
    entry = {"Bucket": bucket, "Key": "bebygan/000001.json"}
    [*_, first] = s3.list_object_versions(Bucket=bucket, Prefix=entry["Key"])["Versions"]
    version, rule = {**entry, "VersionId": first["VersionId"]}, {"Days": 1, "Mode": "GOVERNANCE"}
    expiry = {
        "ID": "all",
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 1},
    }
    refused: list[Callable[[], Any]] = [
        lambda: s3.delete_object(**version),
        lambda: s3.delete_object(**version, BypassGovernanceRetention=True),
        lambda: s3.put_object_retention(
            **version, BypassGovernanceRetention=True, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": "2027-01-01"}
        ),
        lambda: s3.put_object_lock_configuration(
            Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": rule}}
        ),
        lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"}),
        lambda: s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [expiry]}),
        lambda: s3.put_bucket_policy(Bucket=bucket, Policy="{}"),
        lambda: s3.delete_bucket(Bucket=bucket),
    ]
    for attempt in refused:
        with pytest.raises(ClientError, match="AccessDenied"):
            attempt()
    objects = [{"Key": entry["Key"], "VersionId": first["VersionId"]}]
    batch = s3.delete_objects(Bucket=bucket, BypassGovernanceRetention=True, Delete={"Objects": objects})
    assert batch["Errors"][0]["Code"] == "AccessDenied"
    # The store accepts these; they make new versions.
    for body in (b"{}", b"not an entry"):
        s3.put_object(**entry, Body=body)
    s3.copy_object(Bucket=bucket, Key="bebygan/000002.json", CopySource=f"{bucket}/{entry['Key']}")
    s3.delete_object(**entry)
    s3.delete_object(Bucket=bucket, Key="bebygan/000002.json")
    s3.put_object(Bucket=bucket, Key="bebygan", Body=b"")
    s3.delete_object(Bucket=bucket, Key="bebygan")
