"""The dispatcher: the one process that is connected to Ray, and passes the requests of stages on to it.

Started and held by :class:`bitdistiller.cluster.client.Cluster`. It serves a socket in a private folder: a client sends
one line, a request, and gets one line back, the answer. A client that goes away calls its task off; when standard input
ends, all are called off and the dispatcher ends, and with it what runs for it on the cluster.
"""

import asyncio
import json
import os
import socket
import sys
from contextlib import suppress

from bitdistiller.cluster import machine
from bitdistiller.cluster.machine import PreemptedError, answer

_LARGEST_REQUEST = 1 << 28
_CONNECT_SECONDS = 10
_OBJECT_STORE_BYTES = 100 * 2**20  # only short texts go through Ray's memory; it would take 30% of the machine


def main() -> None:
    """Serve at the socket of the options, which are the JSON of the first argument, until standard input ends."""
    options = json.loads(sys.argv[1])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_NUM_REDIS_GET_RETRIES"] = "1"  # of 45 s each; Ray's default is 20
    import ray

    try:
        _connect(options["address"])
    except (OSError, ValueError, RuntimeError) as error:
        _say({"error": " ".join(str(error).split())})
        return
    try:
        asyncio.run(_Dispatcher(options).serve(options["socket"]))
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    import ray

    quiet = {"log_to_driver": False, "logging_level": "WARNING"}
    if address == "local":
        # Without the monitor, a machine short of memory ends a stage, which fails; with it, Ray would begin the stage
        # again, for ever. And a stage has the priority that it has without Ray.
        system = {"memory_monitor_refresh_ms": 0, "worker_niceness": 0}
        options = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES, "_system_config": system}
        ray.init("local", **options, **quiet)
        return
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()  # says at once what is wrong
    ray.init(address, **quiet)


def _say(message: dict) -> None:
    print(json.dumps(message), flush=True)


def run_stage(request: str) -> str:
    """The Ray task."""
    import ray

    os.environ["BITDISTILLER_NODE"] = ray.get_runtime_context().get_node_id()[:8]
    return machine.run_stage(request)


class _Dispatcher:
    def __init__(self, options: dict):
        import ray

        self._retries = options["retries"]
        self._cpus = options["cpus"]
        self._gpus = options["gpus"]
        if self._gpus is None:
            self._gpus = int(any(node["Resources"].get("GPU", 0) for node in _alive()))
        self._task = ray.remote(run_stage).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_retries=self._retries,
            retry_exceptions=[PreemptedError],
            scheduling_strategy="SPREAD",
        )

    async def serve(self, path: str) -> None:
        """Until standard input ends."""
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, ended.set)  # nothing is ever written to standard input
        server = await asyncio.start_unix_server(self._serve_client, path, limit=_LARGEST_REQUEST)
        _say({"error": None, "slots": self._slots(), "cpus": self._cpus, "gpus": self._gpus, "machines": len(_alive())})
        await ended.wait()
        server.close()

    def _slots(self) -> int:
        """Stages that the machines which are there now hold at the same time."""
        return sum(self._room(node["Resources"]) for node in _alive())

    def _room(self, resources: dict) -> int:
        needs = {"CPU": self._cpus, "GPU": self._gpus}
        return min(int(resources.get(name, 0) // count) for name, count in needs.items() if count)

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        with suppress(ConnectionError):
            reply = str(self._slots()) if line == b"slots\n" else await self._run(line.decode(), reader)
            if reply is not None:
                writer.write(f"{reply}\n".encode())
                await writer.drain()
        writer.close()

    async def _run(self, request: str, reader: asyncio.StreamReader) -> str | None:
        """The answer to a request; None if nobody waits for it any more."""
        import ray

        task = self._task.remote(request)
        result = asyncio.wrap_future(task.future())
        gone = asyncio.ensure_future(reader.read())
        await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            ray.cancel(task, force=True)
            result.add_done_callback(lambda done: done.cancelled() or done.exception())  # which nobody wants to see
            return None
        gone.cancel()
        try:
            return result.result()
        except ray.exceptions.RayError as error:
            return json.dumps(answer(1, error=self._sentence(error), output=str(error)))

    def _sentence(self, error: Exception) -> str:
        import ray

        lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
        if isinstance(error, lost) or isinstance(getattr(error, "cause", None), PreemptedError):
            times = self._retries + 1
            return f"its machine was lost {times} times out of {times}; run it again, or find out what it dies of"
        return f"its machine could not begin it, because {str(error).strip().splitlines()[-1]}"


def _alive() -> list[dict]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]
