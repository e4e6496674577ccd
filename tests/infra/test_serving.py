"""The image server on a cluster: what it reaches, what it holds, how it ends, how many there are."""

import copy

from pipelines import cli
from pipelines.serving.server import SECONDS_TO_END
from tests.infra.manifest_checks import Manifest, findings, flow_allowed, pod_template
from tests.infra.test_manifests import TASK, TRAINING, container, named, part


def test_the_image_server_reaches_the_tracking_server_alone_and_no_pod_of_ours_reaches_it(
    manifests: list[Manifest],
) -> None:
    serve = named("bebygan-serve")
    ends = [TASK, TRAINING, *map(named, ("mlflow", "seaweedfs", "postgres", "backup"))]
    ports = (5000, 8080, 8333, 5432, 443)
    assert [(b, port) for b in ends for port in ports if flow_allowed(manifests, serve, b, port)] == [
        (named("mlflow"), 5000)
    ]
    assert not [a for a in ends for port in ports if flow_allowed(manifests, a, serve, port)]


def test_an_autoscaler_beside_a_number_of_pods_is_found(manifests: list[Manifest], secrets: list[Manifest]) -> None:
    broken = copy.deepcopy(manifests)
    part(broken, "Deployment bebygan-serve")["spec"]["replicas"] = 2
    [found] = findings(broken, secrets)
    assert found.startswith(
        "HorizontalPodAutoscaler bebygan-serve: Deployment bebygan-serve is missing, or sets its own"
    )


def test_the_image_server_has_no_credential_but_its_own_account_and_the_time_that_it_needs_to_end(
    manifests: list[Manifest],
) -> None:
    one = container(manifests, "Deployment bebygan-serve")
    assert "envFrom" not in one
    sources = [each["valueFrom"] for each in one["env"]]
    used = [source["secretKeyRef"]["name"] for source in sources if "secretKeyRef" in source]
    assert used == ["bebygan-serve-mlflow"] * 2
    assert not [name for each in one["env"] if (name := each["name"]).startswith(("AWS_", "PG"))]
    pause = int(one["lifecycle"]["preStop"]["exec"]["command"][1])
    pod = pod_template(part(manifests, "Deployment bebygan-serve"))
    assert pod is not None
    assert pod["spec"]["terminationGracePeriodSeconds"] >= pause + SECONDS_TO_END + 5
    words = [*one["command"], *one["args"]]
    options = cli._parser().parse_args(words[1:])
    assert options.port == one["ports"][0]["containerPort"]
