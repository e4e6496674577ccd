"""Policies for repeating calls of services that failed. Callers adapt one by its `copy`; tests pass a faster one."""

from tenacity import Retrying, retry_if_exception_type, wait_fixed

from bebygan.errors import ServiceError

IN_BACKGROUND = Retrying(retry=retry_if_exception_type((ServiceError, OSError)), wait=wait_fixed(30.0))
"""For threads that deliver while a step works: every 30 seconds until they are stopped."""
