import re
import time

import pytest

from bebygan.errors import ConfigError, DataError, ServiceError, WeightsError
from tests.components.train.trainings import NAME, Watcher, forbidden, spec
from tests.standins.kubernetes import PODS, ApiServer
from tests.standins.trainer import Controllers


def test_each_node_has_its_rank_and_only_the_log_of_the_first_is_printed(controllers: Controllers) -> None:
    script = 'echo "node $PET_NODE_RANK of $PET_NNODES, $PET_NPROC_PER_NODE processes"'
    lines = Watcher(spec(script, nodes=3, gpus=2)).finish()
    assert [line for line in lines if line.startswith("node ")] == ["node 0 of 3, 2 processes"]
    assert controllers.starts == 1


def test_the_log_is_complete_and_in_order_after_broken_connections(server: ApiServer) -> None:
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    pod = server.add_pod(NAME)
    pod.run()
    said = []
    for number in range(600):
        # Some lines are equal, as those of a progress bar may be.
        said.append(f"line {number}" if number % 3 else "the same line")
        pod.say(said[-1])
        if number % 100 == 50:
            seen = len(watcher.lines)
            watcher.until(lambda seen=seen: len(watcher.lines) > seen)
            server.break_lines()
    pod.end(0)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert watcher.finish()[2:-1] == said
    assert server.broken_lines >= 3


@pytest.mark.parametrize(("path", "verb"), [(f"{PODS}/.*/log", "get pods/log"), (f"{PODS}$", "list pods")])
def test_missing_permissions_for_pods_or_logs_do_not_fail_the_training(
    path: str, verb: str, controllers: Controllers, server: ApiServer
) -> None:
    server.fail("GET", path, forbidden(*verb.split(" ")))
    lines = Watcher(spec("sleep 0.5; echo hidden")).finish()
    assert controllers.starts == 1
    assert len([line for line in lines if f"may not {verb} in namespace team" in line]) == 1
    assert "hidden" not in lines
    assert lines[-1] == f"TrainJob team/{NAME} is complete"


def test_a_training_without_pods_logs_one_hint(server: ApiServer) -> None:
    watcher = Watcher(spec(), first_pod=0.1)
    watcher.until(lambda: len(watcher.lines) == 2)
    time.sleep(0.3)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert watcher.finish()[1:-1] == [
        f"no pod yet; to see why: kubectl -n team describe job {NAME}-node-0; "
        f"kubectl -n team describe trainjob,jobset {NAME}"
    ]


@pytest.mark.parametrize("index", [0, 1])
def test_the_log_reports_once_why_a_pod_cannot_start(server: ApiServer, index: int) -> None:
    watcher = Watcher(spec(nodes=2))
    server.wait_until(lambda: server.created)
    server.add_pod(NAME, index).condition("PodScheduled", "False", "Unschedulable", "0/3 nodes have a GPU")
    watcher.until(lambda: len(watcher.lines) == 2)
    server.change(NAME, suspend=True)
    watcher.until(lambda: len(watcher.lines) == 3)
    time.sleep(0.3)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    _, trouble, suspended, _ = watcher.finish()
    assert trouble.endswith("cannot be scheduled (Unschedulable: 0/3 nodes have a GPU)")
    assert suspended == f"TrainJob team/{NAME} is suspended: it waits in a queue"


@pytest.mark.parametrize(
    ("code", "starts", "kind"), [(2, 1, ConfigError), (3, 1, DataError), (4, 4, ServiceError), (1, 4, RuntimeError)]
)
def test_a_failed_training_raises_its_own_error(
    code: int, starts: int, kind: type[Exception], controllers: Controllers
) -> None:
    script = f"echo working; echo 'error: what went wrong'; echo and so on; exit {code}"
    with pytest.raises(
        kind, match=rf"exit code {code}: what went wrong; for details: kubectl -n team describe trainjob"
    ) as caught:
        Watcher(spec(script)).finish()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert controllers.starts == starts


@pytest.mark.parametrize(("echo", "reason"), [(75, None), (143, None), (137, "ContainerStatusUnknown")])
def test_the_error_is_that_of_the_node_that_failed_first(echo: int, reason: str | None, server: ApiServer) -> None:
    watcher = Watcher(spec(nodes=3))
    server.wait_until(lambda: server.created)
    for index, (code, why) in enumerate(((echo, reason), (5, None), (echo, reason))):
        pod = server.add_pod(NAME, index)
        pod.run()
        pod.say(f"error: of node {index}")
        pod.end(code, why)
    server.end(NAME, "Failed", "FailJobSetAction", "failed")
    with pytest.raises(
        WeightsError, match=rf"pod {NAME}-node-0-1-\w+ ended with exit code 5: of node 1; for details: kubectl"
    ):
        watcher.finish()


def test_the_error_names_an_exceeded_time_or_memory_limit(server: ApiServer) -> None:
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    server.end(NAME, "Failed", "DeadlineExceeded", "TrainJob exceeded its activeDeadlineSeconds")
    with pytest.raises(ConfigError, match="it took longer than its hours"):
        watcher.finish()
    watcher = Watcher(spec())
    server.wait_until(lambda: len(server.created) == 2)
    pod = server.add_pod(NAME)
    pod.run()
    pod.end(137, "OOMKilled")
    server.end(NAME, "Failed", "ReachedMaxRestarts", "failed")
    with pytest.raises(ConfigError, match=r"exceeded its memory limit: allow more, or lower train\.batch"):
        watcher.finish()


def test_the_hint_for_a_refused_pod_names_its_job(controllers: Controllers) -> None:
    controllers.refusal = 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'
    watcher = Watcher(spec("echo it ran"), first_pod=0.1)
    watcher.until(lambda: len(watcher.lines) == 2)
    named = re.search(r"kubectl -n team describe job (\S+);", watcher.lines[1])
    assert named
    assert controllers.events[named[1]] == [f"FailedCreate: {controllers.refusal}"]
    with controllers.server.changed:
        controllers.refusal = None
        controllers.server.changed.notify_all()
    assert watcher.finish()[-2] == "it ran"
