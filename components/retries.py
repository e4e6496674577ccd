"""How failed calls of services are repeated. Callers adapt a policy by its `copy`, and pass it on as a parameter."""

from tenacity import Retrying, retry_if_exception_type, wait_fixed

from bebygan.errors import ServiceError

IN_BACKGROUND = Retrying(retry=retry_if_exception_type((ServiceError, OSError)), wait=wait_fixed(30.0))
"""For threads that deliver while the work goes on: every 30 seconds until they are stopped."""
