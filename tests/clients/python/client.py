#!/usr/bin/env python3
"""A client of `dewar serve`: launches a task, watches it, reads its log, kills it, removes it.

    python3 -m venv env && env/bin/pip install -r requirements.txt && mkdir gen
    env/bin/python -m grpc_tools.protoc -I ../../../proto --python_out=gen --grpc_python_out=gen ../../../proto/dewar/v1/*.proto
    PYTHONPATH=gen env/bin/python client.py unix:///run/dewar/dewar.sock hello-1
"""

import sys

import grpc
from dewar.v1 import observer_service_pb2 as observing
from dewar.v1 import observer_service_pb2_grpc as observer_service
from dewar.v1 import runner_service_pb2 as running
from dewar.v1 import runner_service_pb2_grpc as runner_service
from dewar.v1 import task_pb2 as tasks
from dewar.v1 import view_pb2 as views
from google.protobuf.duration_pb2 import Duration

DEADLINE = 60  # seconds
# Of a unix socket, gRPC makes a host name with a `%`, which HTTP servers written in Rust refuse.
OPTIONS = [("grpc.default_authority", "localhost")]


def launch(runner, task_id):
    command = "echo hello from $DEWAR_TASK_ID; exec sleep 300"
    task = tasks.Task(name="hello", processes=[tasks.Process(name="greet", cmdline=command)])
    request = running.LaunchRequest(task_id=task_id, task=task, labels={"client": "python"})
    # A launch may be repeated, when its answer was lost say: it is the same task.
    for _ in range(2):
        launched = runner.Launch(request, timeout=DEADLINE)
        print("launched:", "new" if launched.is_new else "known")


def first_line(observer, task_id):
    request = observing.ReadLogsRequest(task_id=task_id, process="greet", follow=True)
    pieces = observer.ReadLogs(request, timeout=DEADLINE)
    log = b""
    for piece in pieces:
        log += piece.data
        if b"\n" in log:
            break
    pieces.cancel()
    return log.split(b"\n")[0].decode()


def watch(runner, observer, task_id):
    """Tells each transition, and once the process runs, what it wrote; then has it killed."""
    for told in observer.WatchTasks(observing.WatchTasksRequest(task_id=task_id), timeout=DEADLINE):
        event = told.event
        if event.HasField("run"):
            print("run:", event.process, event.run.run, views.ProcessState.Name(event.run.state))
            if event.run.state == views.PROCESS_STATE_RUNNING:
                print("log:", first_line(observer, task_id))
                runner.Kill(running.KillRequest(task_id=task_id, grace=Duration(seconds=5), reason="seen enough"))
        elif event.HasField("kill"):
            print("kill:", event.kill.reason)
        elif event.HasField("task_state"):
            print("task:", views.TaskState.Name(event.task_state))


def main(address, task_id):
    with grpc.insecure_channel(address, OPTIONS) as channel:
        runner = runner_service.RunnerServiceStub(channel)
        observer = observer_service.ObserverServiceStub(channel)
        launch(runner, task_id)
        watch(runner, observer, task_id)
        runner.Remove(running.RemoveRequest(task_id=task_id, sandbox=True), timeout=DEADLINE)
        try:
            observer.GetTask(observing.GetTaskRequest(task_id=task_id), timeout=DEADLINE)
        except grpc.RpcError as error:
            print("get:", error.code().name, error.details())


if __name__ == "__main__":
    main(*sys.argv[1:])
