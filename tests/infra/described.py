"""What the manifests of the single node say about its containers, and clients of its servers."""

import json
import re
from base64 import b64encode
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from boto3.session import Session

from pipelines.kubeflow.manifests import containers
from tests.infra.manifest_checks import Manifest, pod_template

POD = {"metadata.namespace": "bebygan", "status.podIP": "10.1.2.3"}
"""What the API server would fill in."""


@dataclass(frozen=True)
class Described:
    """Manifests of the single node and its secrets, by kind and name."""

    objects: dict[str, Manifest]

    def container(self, workload: str, name: str) -> Any:
        [found] = [each for each in containers(self.template(workload)) if each["name"] == name]
        return found

    def template(self, workload: str) -> Any:
        return pod_template(self.objects[workload])

    def values(self, kind: str, name: str) -> dict[str, str]:
        found = self.objects[f"{kind} {name}"]
        return dict(found.get("data", {}) | found.get("stringData", {}))

    def environment(self, container: Any) -> dict[str, str]:
        """A container's variables, with what they refer to."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                found |= self.values(kind, source[key]["name"]) if key in source else {}
        for variable in container.get("env", []):
            origin = variable.get("valueFrom", {})
            if secret := origin.get("secretKeyRef"):
                found[variable["name"]] = self.values("Secret", secret["name"])[secret["key"]]
            else:
                found[variable["name"]] = variable.get("value") or POD[origin["fieldRef"]["fieldPath"]]
        return found

    def command(self, container: Any) -> list[str]:
        """A container's command and arguments, with $(NAME) filled in as a kubelet does."""
        environment = self.environment(container)
        words = [*container.get("command", []), *container.get("args", [])]
        return [re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word) for word in words]


def client(described: Described, store: str, secret: str) -> Any:
    keys = described.values("Secret", secret)
    return Session(keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1").client(
        "s3", endpoint_url=store
    )


def ask(
    address: str, path: str, login: str = "", host: str = "mlflow:5000", *, body: object = None, method: str = ""
) -> tuple[int, bytes]:
    """Status and text of the answer; a body makes it a POST of JSON, bytes a PUT."""
    headers = {"Host": host, "Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    method = method or ("GET" if body is None else "PUT" if isinstance(body, bytes) else "POST")
    sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    with closing(connection):
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
