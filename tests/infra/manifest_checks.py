"""What an API server, or the first pod that starts, would find wrong with manifests. Each finding is one line."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate

from pipelines.kubeflow.manifests import containers
from pipelines.kubeflow.resources import TASKS

Manifest = dict[str, Any]

CLUSTER_WIDE = {"Namespace"}
_OF_A_RUN = {"pipelines.kubeflow.org/v2_component": "true", "workflows.argoproj.io/workflow": "bebygan-retrain-x7k2p"}
# Pods that others make in our namespace.
FOREIGN_PODS = [
    *(({**_OF_A_RUN, "bebygan/task": task}, None) for task in TASKS),
    ({"app": "ml-pipeline-ui-artifact"}, None),
    ({"jobset.sigs.k8s.io/replicatedjob-name": "node", "app.kubernetes.io/name": "bebygan-training"}, None),
]
# Secrets whose absence is allowed, or that Kubeflow brings.
FOREIGN_NAMES = {"mlpipeline-minio-artifact", "kfp-launcher"}
VERBS = {"get", "list", "watch", "create", "update", "patch", "delete"}
# Verbs of Kubeflow Pipelines' own, which it asks the API server about.
VERBS_OF = {"pipelines.kubeflow.org": {"terminate", "archive", "unarchive", "retry", "enable", "disable"}}
CUSTOM_RESOURCES: dict[str, tuple[str, set[str], set[str]]] = {
    # Kind: API version, fields that specs must have, and fields that they may have beside.
    "ServiceMonitor": ("monitoring.coreos.com/v1", {"selector", "endpoints"}, {"namespaceSelector", "jobLabel"}),
    "ExternalSecret": ("external-secrets.io/v1", {"secretStoreRef", "target"}, {"refreshInterval", "data", "dataFrom"}),
    "PodDefault": ("kubeflow.org/v1alpha1", {"selector"}, {"desc", "env", "volumes", "volumeMounts"}),
    "TrainingRuntime": ("trainer.kubeflow.org/v1alpha1", {"template"}, {"mlPolicy", "podGroupPolicy"}),
}
CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def amount(quantity: object) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", str(quantity))
    assert found, quantity
    return float(found[1]) * UNITS[found[2]]


def pod_template(manifest: Manifest) -> Manifest | None:
    """The pod template of a workload, or None."""
    match manifest["kind"]:
        case "Deployment" | "StatefulSet" | "Job":
            return dict(manifest["spec"]["template"])
        case "CronJob":
            return dict(manifest["spec"]["jobTemplate"]["spec"]["template"])
        case "TrainingRuntime":
            [job] = manifest["spec"]["template"]["spec"]["replicatedJobs"]
            return dict(job["template"]["spec"]["template"])
    return None


def replicas(workload: Manifest, manifests: list[Manifest]) -> tuple[int, int]:
    """The least and the largest number of pods of a workload."""
    for each in manifests:
        if (
            each["kind"] == "HorizontalPodAutoscaler"
            and each["spec"]["scaleTargetRef"]["name"] == workload["metadata"]["name"]
        ):
            return each["spec"]["minReplicas"], each["spec"]["maxReplicas"]
    number = workload["spec"].get("replicas", 1)
    return number, number


def job_template(manifest: Manifest) -> Manifest | None:
    """The Job that a workload makes, or None."""
    if manifest["kind"] == "TrainingRuntime":
        [job] = manifest["spec"]["template"]["spec"]["replicatedJobs"]
        return dict(job["template"]["spec"])
    return dict(manifest["spec"]["jobTemplate"]["spec"]) if manifest["kind"] == "CronJob" else None


def selected(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes an object with these labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        inside = labels.get(rule["key"]) in rule.get("values", [])
        if not {"In": inside, "NotIn": not inside, "Exists": rule["key"] in labels}[rule["operator"]]:
            return False
    return True


def wrong_schemas(manifests: list[Manifest], version: str) -> Iterator[str]:
    """Unknown kinds, unknown and missing fields, wrong types, as Kubernetes of this version has them."""
    for manifest in manifests:
        bodies = [manifest]
        if manifest["kind"] in CUSTOM_RESOURCES:
            api, needed, allowed = CUSTOM_RESOURCES[manifest["kind"]]
            fields = set(manifest["spec"])
            if manifest["apiVersion"] != api or needed - fields or fields - needed - allowed:
                yield f"{name_of(manifest)}: {manifest['apiVersion']} with {sorted(fields)}"
            # What the custom resource makes of it.
            job = job_template(manifest)
            bodies = [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job}] if job else []
        for body in bodies:
            try:
                kubernetes_validate.validate(body, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                yield f"{name_of(manifest)}: no such kind in {manifest['apiVersion']} of Kubernetes {version}"
            except kubernetes_validate.ValidationError as error:
                yield f"{name_of(manifest)}: {error.message} at {'.'.join(map(str, error.path))}"


def wrong_names(manifests: list[Manifest]) -> Iterator[str]:
    """Names that are taken twice or that no object may have, and objects outside the namespace."""
    counted = Counter(name_of(manifest) for manifest in manifests)
    yield from (f"{name}: {count} times" for name, count in counted.items() if count > 1)
    for manifest in manifests:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", manifest["metadata"]["name"]):
            yield f"{name_of(manifest)}: not a DNS label"
        if (manifest["metadata"].get("namespace") is None) != (manifest["kind"] in CLUSTER_WIDE):
            yield f"{name_of(manifest)}: namespace {manifest['metadata'].get('namespace')}"
    if len({manifest["metadata"].get("namespace") for manifest in manifests} - {None}) > 1:
        yield "several namespaces"


def wrong_cron(schedule: str) -> str | None:
    """What is wrong with five fields of a CronJob's schedule, or None."""
    fields = schedule.split()
    if len(fields) != 5:
        return f"{len(fields)} fields, not 5"
    for text, (low, high) in zip(fields, CRON_RANGES, strict=True):
        for part in text.split(","):
            found = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/[1-9]\d*)?", part)
            if not found or any(not low <= int(value) <= high for value in found.groups() if value):
                return f"{text} is not within {low}-{high}"
    return None


def wrong_workloads(manifests: list[Manifest]) -> Iterator[str]:
    """Selectors, restart policies, schedules, volumes, ports and resources of pods that cannot be."""
    for manifest in manifests:
        template = pod_template(manifest)
        if template is None:
            continue
        where, pod = name_of(manifest), template["spec"]
        labels = template.get("metadata", {}).get("labels", {})
        if manifest["kind"] in {"Deployment", "StatefulSet"}:
            if not selected(manifest["spec"]["selector"], labels):
                yield f"{where}: selects none of its own pods"
            if pod.get("restartPolicy", "Always") != "Always":
                yield f"{where}: restartPolicy {pod['restartPolicy']}"
        elif pod.get("restartPolicy") not in {"Never", "OnFailure"}:
            yield f"{where}: restartPolicy {pod.get('restartPolicy')}"
        if manifest["kind"] == "CronJob" and (wrong := wrong_cron(manifest["spec"]["schedule"])):
            yield f"{where}: schedule {wrong}"
        claims = manifest["spec"].get("volumeClaimTemplates", [])
        volumes = {each["name"] for each in pod.get("volumes", [])} | {each["metadata"]["name"] for each in claims}
        names = [each["name"] for each in containers(pod)]
        if len(names) != len(set(names)):
            yield f"{where}: two containers of one name"
        for container in containers(pod):
            yield from _wrong_container(f"{where}, container {container['name']}", container, volumes)


def _wrong_container(where: str, container: Manifest, volumes: set[str]) -> Iterator[str]:
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"{where}: no volume {mount['name']}"
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    if len(paths) != len(set(paths)):
        yield f"{where}: two mounts at one path"
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port")
        if port is not None and port not in ports and port not in ports.values():
            yield f"{where}: {probe} asks port {port}"
    variables = [each["name"] for each in container.get("env", [])]
    if len(variables) != len(set(variables)):
        yield f"{where}: a variable twice"
    for text in [*container.get("command", []), *container.get("args", [])]:
        for used in re.findall(r"\$\(([A-Z_]+)\)", text):
            if used not in variables and "envFrom" not in container:
                yield f"{where}: no variable {used}"
    yield from _wrong_resources(where, container)


def _wrong_resources(where: str, container: Manifest) -> Iterator[str]:
    for limited in ("limits", "requests"):
        for resource in {"cpu", "memory"} - set(container.get("resources", {}).get(limited, {})):
            yield f"{where}: no {limited} of {resource}"
    limits = container.get("resources", {}).get("limits", {})
    for resource, request in container.get("resources", {}).get("requests", {}).items():
        if resource in limits and amount(request) > amount(limits[resource]):
            yield f"{where}: requests {request} {resource}, more than its limit {limits[resource]}"


def wrong_security(manifests: list[Manifest]) -> Iterator[str]:
    """Pods that the pod security standard 'restricted' rejects, and permissions that no pod needs."""
    for manifest in manifests:
        template = pod_template(manifest)
        if template is None:
            continue
        where, pod = name_of(manifest), template["spec"]
        context = pod.get("securityContext", {})
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.get(field):
                yield f"{where}: {field}"
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{where}: gets a token"
        for volume in pod.get("volumes", []):
            if kind := set(volume) - {"name", "configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected"}:
                yield f"{where}: volume of kind {kind}"
        for container in containers(pod):
            own = {**context, **container.get("securityContext", {})}
            yield from (f"{where}, container {container['name']}: {risk}" for risk in _risks(own))


def _risks(context: Manifest) -> Iterator[str]:
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
        yield "may be root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"capabilities {context.get('capabilities')}"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write its root filesystem"
    if context.get("privileged"):
        yield "privileged"


def _references(value: object) -> Iterator[tuple[str, str, str | None, bool]]:
    """Kind, name, key and whether it may be missing, of every object that a part of a pod refers to."""
    kinds = {
        "secretKeyRef": "Secret",
        "configMapKeyRef": "ConfigMap",
        "secretRef": "Secret",
        "configMapRef": "ConfigMap",
    }
    if isinstance(value, list):
        for each in value:
            yield from _references(each)
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if key in kinds:
            yield kinds[key], inner["name"], inner.get("key"), inner.get("optional", False)
        elif key == "configMap" and isinstance(inner, dict):
            yield "ConfigMap", inner["name"], None, inner.get("optional", False)
        elif key == "secret" and isinstance(inner, dict):
            yield "Secret", inner["secretName"], None, inner.get("optional", False)
        elif key == "persistentVolumeClaim":
            yield "PersistentVolumeClaim", inner["claimName"], None, False
        elif key == "serviceAccountName":
            yield "ServiceAccount", inner, None, False
        else:
            yield from _references(inner)


def wrong_references(manifests: list[Manifest], secrets: list[Manifest]) -> Iterator[str]:
    """Undefined names and keys that pods, bindings, monitors and addresses refer to."""
    defined = {(each["kind"], each["metadata"]["name"]): each for each in [*manifests, *secrets]}
    for manifest in manifests:
        where = name_of(manifest)
        for kind, name, key, optional in _references(pod_template(manifest)):
            target = defined.get((kind, name))
            if target is None and not optional:
                yield f"{where}: no {kind} {name}"
            elif target is not None and key and key not in {**target.get("data", {}), **target.get("stringData", {})}:
                yield f"{where}: {kind} {name} has no key {key}"
        if manifest["kind"] == "RoleBinding":
            ends = [(manifest["roleRef"]["kind"], manifest["roleRef"]["name"])]
            ends += [(each["kind"], each["name"]) for each in manifest["subjects"]]
            yield from (f"{where}: no {kind} {name}" for kind, name in ends if (kind, name) not in defined)
            spaces = {each["namespace"] for each in manifest["subjects"]}
            if spaces != {manifest["metadata"]["namespace"]}:
                yield f"{where}: subjects in {spaces}"
        if manifest["kind"] == "ServiceMonitor":
            for endpoint in manifest["spec"]["endpoints"]:
                for each in endpoint["basicAuth"].values():
                    if each["key"] not in defined.get(("Secret", each["name"]), {}).get("stringData", {}):
                        yield f"{where}: Secret {each['name']} has no key {each['key']}"
        if manifest["kind"] == "StatefulSet" and ("Service", manifest["spec"]["serviceName"]) not in defined:
            yield f"{where}: no Service {manifest['spec']['serviceName']}"
        if manifest["kind"] == "ConfigMap":
            yield from _wrong_addresses(manifest, defined)


def _wrong_addresses(manifest: Manifest, defined: Mapping[tuple[str, str], Manifest]) -> Iterator[str]:
    """A host without a dot, within the namespace, is one of its services."""
    data = manifest["data"]
    addresses = {key: value for key, value in data.items() if re.fullmatch(r"https?://\S+", value)}
    if "PGHOST" in data:
        addresses["PGHOST"] = f"postgres://{data['PGHOST']}:{data['PGPORT']}"
    for key, address in addresses.items():
        host, port = urlsplit(address).hostname or "", urlsplit(address).port
        if "." in host or host == "localhost":
            continue
        service = defined.get(("Service", host))
        if service is None or port not in {each["port"] for each in service["spec"]["ports"]}:
            yield f"{name_of(manifest)}: {key} names {host}:{port}, which is no Service"


def _pods(manifests: list[Manifest]) -> list[tuple[dict[str, str], set[int] | None]]:
    """Labels and ports of every pod; None stands for any port."""
    ours = [
        (
            dict(template.get("metadata", {}).get("labels", {})),
            {port["containerPort"] for each in containers(template) for port in each.get("ports", [])},
        )
        for template in map(pod_template, manifests)
        if template
    ]
    return [*ours, *FOREIGN_PODS]


def wrong_selectors(manifests: list[Manifest]) -> Iterator[str]:
    """Services, budgets, monitors and policies that select nothing, or ports on which no container listens."""
    pods = _pods(manifests)
    for manifest in manifests:
        where, spec = name_of(manifest), manifest.get("spec", {})
        if manifest["kind"] == "Service":
            found = [
                template
                for template in map(pod_template, manifests)
                if template and selected({"matchLabels": spec["selector"]}, template["metadata"]["labels"])
            ]
            if len(found) != 1:
                yield f"{where}: selects the pods of {len(found)} workloads"
            ports = {
                each["name"] for template in found for one in containers(template) for each in one.get("ports", [])
            }
            yield from (
                f"{where}: no port {each['targetPort']}" for each in spec["ports"] if each["targetPort"] not in ports
            )
        elif manifest["kind"] == "PodDisruptionBudget":
            found = [each for each in manifests if each["kind"] == "Deployment" and _takes(spec["selector"], each)]
            if not found:
                yield f"{where}: selects no pods"
            if any(replicas(each, manifests)[0] <= spec["minAvailable"] for each in found):
                yield f"{where}: no node with such a pod could ever be drained"
        elif manifest["kind"] == "ServiceMonitor":
            services = [
                each
                for each in manifests
                if each["kind"] == "Service" and selected(spec["selector"], each["metadata"].get("labels", {}))
            ]
            ports = {port["name"] for each in services for port in each["spec"]["ports"]}
            yield from (f"{where}: no port {each['port']}" for each in spec["endpoints"] if each["port"] not in ports)
        elif manifest["kind"] == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            if not [
                each
                for each in manifests
                if name_of(each) == f"{target['kind']} {target['name']}" and "replicas" not in each["spec"]
            ]:
                yield f"{where}: {target['kind']} {target['name']} is missing, or sets its own number of pods"
        elif manifest["kind"] == "NetworkPolicy":
            yield from _wrong_policy(where, spec, pods)


def _takes(selector: Manifest, workload: Manifest) -> bool:
    return selected(selector, workload["spec"]["template"]["metadata"]["labels"])


def _wrong_policy(where: str, spec: Manifest, pods: list[tuple[dict[str, str], set[int] | None]]) -> Iterator[str]:
    mine = [each for each in pods if selected(spec["podSelector"], each[0])]
    if not mine:
        yield f"{where}: selects no pods"
    for direction, rules in (("from", spec.get("ingress", [])), ("to", spec.get("egress", []))):
        for rule in rules:
            peers = [peer for peer in rule[direction] if set(peer) == {"podSelector"}]
            found = [[pod for pod in pods if selected(peer["podSelector"], pod[0])] for peer in peers]
            if not all(found):
                yield f"{where}: a peer that no pod is"
            listening = mine if direction == "from" else [pod for each in found for pod in each]
            for port in rule.get("ports", []):
                if listening and not any(ports is None or port["port"] in ports for _, ports in listening):
                    yield f"{where}: nobody listens on {port['port']}"


def _allowed(rules: list[Manifest], direction: str, labels: Mapping[str, str], port: int) -> bool:
    return any(
        (not rule.get("ports") or any(each["port"] == port for each in rule["ports"]))
        and any(set(peer) == {"podSelector"} and selected(peer["podSelector"], labels) for peer in rule[direction])
        for rule in rules
    )


def flow_allowed(manifests: list[Manifest], source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    """Whether a pod may open a connection to another pod of the namespace: both ends must allow it."""
    policies = [each["spec"] for each in manifests if each["kind"] == "NetworkPolicy"]
    out = [each for each in policies if "Egress" in each["policyTypes"] and selected(each["podSelector"], source)]
    into = [each for each in policies if "Ingress" in each["policyTypes"] and selected(each["podSelector"], target)]
    leaves = not out or any(_allowed(each.get("egress", []), "to", target, port) for each in out)
    return leaves and (not into or any(_allowed(each.get("ingress", []), "from", source, port) for each in into))


def wrong_rights(manifests: list[Manifest]) -> Iterator[str]:
    """Wildcards, verbs that Kubernetes does not have, access to all Secrets, and roles without a binding."""
    bound = {each["roleRef"]["name"] for each in manifests if each["kind"] == "RoleBinding"}
    for manifest in manifests:
        if manifest["kind"] != "Role":
            continue
        where = name_of(manifest)
        if manifest["metadata"]["name"] not in bound:
            yield f"{where}: nobody has it"
        for rule in manifest["rules"]:
            if "*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]:
                yield f"{where}: a wildcard"
            if (
                odd := set(rule["verbs"])
                - VERBS
                - set().union(*(VERBS_OF.get(each, set()) for each in rule["apiGroups"]))
            ):
                yield f"{where}: verbs {sorted(odd)}"
            if "secrets" in rule["resources"] and not rule.get("resourceNames"):
                yield f"{where}: all secrets"
            if "resourceNames" in rule and {"create", "list", "watch"} & set(rule["verbs"]):
                yield f"{where}: a name does not limit these verbs"


def wrong_sizes(manifests: list[Manifest]) -> Iterator[str]:
    """Servers that together do not fit into the quota, or that leave nothing of it to runs."""
    [quota] = [each["spec"]["hard"] for each in manifests if each["kind"] == "ResourceQuota"]
    for limited in ("requests", "limits"):
        for resource in ("cpu", "memory"):
            taken = sum(
                replicas(each, manifests)[1] * amount(one["resources"][limited].get(resource, 0))
                for each in manifests
                if each["kind"] in {"Deployment", "StatefulSet"}
                for one in containers(each)
            )
            if taken > amount(quota[f"{limited}.{resource}"]) / 2:
                yield f"ResourceQuota: servers take {taken:g} of {quota[f'{limited}.{resource}']} {limited}.{resource}"


def findings(manifests: list[Manifest], secrets: list[Manifest]) -> list[str]:
    """Everything above but schemas."""
    return [
        *wrong_names(manifests), *wrong_workloads(manifests), *wrong_security(manifests),
        *wrong_references(manifests, secrets), *wrong_selectors(manifests), *wrong_rights(manifests),
        *wrong_sizes(manifests),
    ]  # fmt: skip
