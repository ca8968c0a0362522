#!/usr/bin/env node
// A client of `dewar serve`: launches a task, watches it, reads its log, kills it, removes it.
//
//     npm ci
//     node client.js unix:///run/dewar/dewar.sock hello-1
"use strict";

const path = require("node:path");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const protos = path.resolve(__dirname, "../../../proto");
const definitions = protoLoader.loadSync(
  ["dewar/v1/runner_service.proto", "dewar/v1/observer_service.proto"],
  { includeDirs: [protos], keepCase: true, enums: String, longs: String, defaults: true, oneofs: true },
);
const { RunnerService, ObserverService } = grpc.loadPackageDefinition(definitions).dewar.v1;

/** A call that answers once, as a promise; a call without an end of its own is given one minute. */
function call(client, method, request) {
  const deadline = Date.now() + 60_000;
  return promisify(client[method]).call(client, request, new grpc.Metadata(), { deadline });
}

async function launch(runner, taskId) {
  const cmdline = "echo hello from $DEWAR_TASK_ID; exec sleep 300";
  const task = { name: "hello", processes: [{ name: "greet", cmdline }] };
  const request = { task_id: taskId, task, labels: { client: "node" } };
  // A launch may be repeated, when its answer was lost say: it is the same task.
  for (let times = 0; times < 2; times += 1) {
    const launched = await call(runner, "Launch", request);
    console.log("launched:", launched.is_new ? "new" : "known");
  }
}

async function firstLine(observer, taskId) {
  const pieces = observer.ReadLogs({ task_id: taskId, process: "greet", follow: true });
  // A call that is cancelled ends in an error.
  pieces.on("error", () => {});
  let log = "";
  for await (const { data } of pieces) {
    log += data.toString();
    if (log.includes("\n")) break;
  }
  pieces.cancel();
  return log.split("\n")[0];
}

/** Tells each transition, and once the process runs, what it wrote; then has it killed. */
async function watch(runner, observer, taskId) {
  for await (const { event } of observer.WatchTasks({ task_id: taskId })) {
    if (event.run) {
      console.log("run:", event.process, event.run.run, event.run.state);
      if (event.run.state === "PROCESS_STATE_RUNNING") {
        console.log("log:", await firstLine(observer, taskId));
        await call(runner, "Kill", { task_id: taskId, grace: { seconds: 5 }, reason: "seen enough" });
      }
    } else if (event.kill) {
      console.log("kill:", event.kill.reason);
    } else if (event.task_state) {
      console.log("task:", event.task_state);
    }
  }
}

async function main(address, taskId) {
  const runner = new RunnerService(address, grpc.credentials.createInsecure());
  const observer = new ObserverService(address, grpc.credentials.createInsecure());
  await launch(runner, taskId);
  await watch(runner, observer, taskId);
  await call(runner, "Remove", { task_id: taskId, sandbox: true });
  await call(observer, "GetTask", { task_id: taskId }).catch(({ code, details }) => {
    console.log("get:", grpc.status[code], details);
  });
  runner.close();
  observer.close();
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
