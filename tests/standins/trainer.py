"""Plays the controllers of Trainer, JobSet and Job beside `tests.standins.kubernetes`: pods are processes here.

What becomes of a TrainJob is what the manifest of its TrainingRuntime says: pod template, podFailurePolicy and JobSet's
failurePolicy are read from it, patched and obeyed as those controllers' sources do. A pod's process gets the variables
that its container would get and no others; its network is the loopback interface.
"""

import copy
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import free_ports
from tests.standins.kubernetes import ApiServer, Object, Pod

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "infra" / "kubernetes" / "components" / "trainer" / "training-runtime.yaml"


def _merged(base: Any, patch: Any) -> Any:
    """A strategic merge, as far as TrainJobs use it: lists of named things are merged by name, others replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {name: _merged(base.get(name), value) for name, value in patch.items()}
    if isinstance(base, list) and isinstance(patch, list) and all("name" in each for each in base + patch):
        named = {each["name"]: each for each in base}
        return list((named | {each["name"]: _merged(named.get(each["name"]), each) for each in patch}).values())
    return copy.deepcopy(patch)


def job_of(runtime: Object, trainjob: Object) -> Object:
    """The batch/v1 Job that Trainer and JobSet make of a TrainJob."""
    template = copy.deepcopy(runtime["spec"]["template"])
    for patch in trainjob["spec"].get("runtimePatches", []):
        template = _merged(template, patch["trainingRuntimeSpec"]["template"])
    [replicated] = template["spec"]["replicatedJobs"]
    job, trainer, name = replicated["template"], trainjob["spec"]["trainer"], trainjob["metadata"]["name"]
    job["spec"] |= {"parallelism": trainer["numNodes"], "completions": trainer["numNodes"]}
    [container] = job["spec"]["template"]["spec"]["containers"]
    container |= {"image": trainer["image"], "command": trainer["command"], "resources": trainer["resourcesPerNode"]}
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    # Trainer's torch plugin; where requests are missing it counts one process.
    processes = trainer["numProcPerNode"] if trainer["resourcesPerNode"].get("requests") else 1
    container["env"] = [
        *trainer["env"],
        {"name": "PET_NNODES", "value": str(trainer["numNodes"])},
        {"name": "PET_NPROC_PER_NODE", "value": str(processes)},
        {"name": "PET_NODE_RANK", "valueFrom": index},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": "29500"},
    ]
    job["metadata"] = _merged(job["metadata"], {"name": f"{name}-node-0"})
    return {"apiVersion": "batch/v1", "kind": "Job", **job}


class Controllers:
    """Use it as a context manager around what creates TrainJobs."""

    def __init__(self, server: ApiServer, app: Path) -> None:
        self.server = server
        self.app = app
        """Working folder of the containers."""
        self.runtime: Object = yaml.safe_load(RUNTIME.read_text())
        self.sources: dict[str, dict[str, str]] = {}
        """What config maps and secrets hold, by their names."""
        self.starts = 0
        """How often all nodes of a training were started."""
        self.actions: list[str] = []
        """What JobSet's failurePolicy did after each failure."""
        self.refusal: str | None = None
        """Why pods are refused, as by PodSecurity or a quota; None creates them."""
        self.events: dict[str, list[str]] = {}
        """Events by the name of the Job that `kubectl describe job` shows."""
        self.closing = False
        self.threads: list[threading.Thread] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Controllers":
        self.server.on_create = self._begin
        self.server.on_delete = self._stop
        return self

    def __exit__(self, *_: object) -> None:
        with self.server.changed:
            self.closing = True
            self.server.changed.notify_all()
        self._stop("")
        for thread in self.threads:
            thread.join()

    def evict(self, pod: Pod, sig: signal.Signals = signal.SIGTERM) -> None:
        """Take a pod's machine away, after a warning or without one."""
        pod.condition("DisruptionTarget", "True", "EvictionByEvictionAPI", "the machine is reclaimed")
        self.processes[pod.name].send_signal(sig)

    def _stop(self, name: str) -> None:
        for pod, process in list(self.processes.items()):
            if pod.startswith(name):
                process.terminate()

    def _begin(self, trainjob: Object) -> None:
        thread = threading.Thread(target=self._train, args=(trainjob,))
        thread.start()
        self.threads.append(thread)

    def _train(self, trainjob: Object) -> None:
        name, uid = trainjob["metadata"]["name"], trainjob["metadata"]["uid"]
        job = job_of(self.runtime, trainjob)
        policy = self.runtime["spec"]["template"]["spec"]["failurePolicy"]
        counted = 0
        while True:
            self.starts += 1
            failure = self._run_job(name, job)
            if self.closing or self.server.trainjobs.get(name, {}).get("metadata", {}).get("uid") != uid:
                return
            if failure is None:
                self.server.end(name, "Complete", "AllJobsCompleted", "jobset completed successfully")
                return
            action = self._action(policy, *failure)
            self.actions.append(action)
            if action == "FailJobSet":
                self.server.end(name, "Failed", "FailJobSetAction", f"first failed job: {name}-node-0")
                return
            if action == "RestartJobSet":
                if counted == policy["maxRestarts"]:
                    self.server.end(name, "Failed", "ReachedMaxRestarts", f"first failed job: {name}-node-0")
                    return
                counted += 1
            with self.server.changed:
                for pod in [pod for pod in self.server.pods if pod.name.startswith(name)]:
                    pod.vanish()

    @staticmethod
    def _action(policy: Object, reason: str, message: str) -> str:
        for rule in policy["rules"]:
            patterns = rule.get("onJobFailureMessagePatterns", [""])
            if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
                return str(rule["action"])
        return "RestartJobSet"

    def _run_job(self, name: str, job: Object) -> tuple[str, str] | None:
        """Run all pods of a Job; return reason and message of its failure."""
        port = str(free_ports(1)[0])
        if self.refusal:
            # The Job controller tries again without end; the Job does not fail.
            self.events.setdefault(job["metadata"]["name"], []).append(f"FailedCreate: {self.refusal}")
            self.server.wait_until(lambda: self.closing or not self.refusal)
            if self.closing:
                return None
        pods = [self.server.add_pod(name, index) for index in range(job["spec"]["completions"])]
        [container] = job["spec"]["template"]["spec"]["containers"]
        readers = []
        for index, pod in enumerate(pods):
            process = subprocess.Popen(
                container["command"], cwd=self.app, env=self._environment(container["env"], index, port),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self.processes[pod.name] = process
            if self.closing:
                process.terminate()
            pod.run()
            readers.append(threading.Thread(target=self._watch, args=(pod, process)))
            readers[-1].start()
        self.server.wait_until(lambda: all(pod.ended for pod in pods) or any(_failed(pod) for pod in pods), 600)
        failed = [pod for pod in pods if _failed(pod)]
        for pod in pods:
            if not pod.ended:
                self.processes[pod.name].terminate()
        for reader in readers:
            reader.join()
        return self._reason(job["spec"]["podFailurePolicy"]["rules"], failed[0]) if failed else None

    @staticmethod
    def _watch(pod: Pod, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout
        for line in process.stdout:
            pod.say(line.decode(errors="replace").rstrip("\n"))
        code = process.wait()
        pod.end(code if code >= 0 else 128 - code)

    @staticmethod
    def _reason(rules: list[Object], pod: Pod) -> tuple[str, str]:
        """What the Job controller says; it names the rule that matched."""
        status = pod.manifest["status"]
        code = status["containerStatuses"][0]["state"]["terminated"]["exitCode"]
        for index, rule in enumerate(rules):
            matching = f"matching {rule['action']} rule at index {index}"
            for pattern in rule.get("onPodConditions", []):
                if any(pattern.items() <= condition.items() for condition in status.get("conditions", [])):
                    return "PodFailurePolicy", f"Pod team/{pod.name} has condition {pattern['type']} {matching}"
            if code in rule.get("onExitCodes", {}).get("values", []):
                said = f"Container node for pod team/{pod.name} failed with exit code {code} {matching}"
                return "PodFailurePolicy", said
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"

    def _environment(self, declared: list[Object], index: int, port: str) -> dict[str, str]:
        values = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.app),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        for each in declared:
            if "value" in each:
                values[each["name"]] = each["value"]
            elif "fieldRef" in each["valueFrom"]:
                values[each["name"]] = str(index)
            else:
                [reference] = each["valueFrom"].values()
                source = self.sources.get(reference["name"], {})
                assert reference["optional"] or reference["key"] in source
                if reference["key"] in source:
                    values[each["name"]] = source[reference["key"]]
        return values | {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}


def _failed(pod: Pod) -> bool:
    return str(pod.manifest["status"]["phase"]) == "Failed"
