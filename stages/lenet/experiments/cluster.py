"""Experiments on a cluster: Dask's scheduler and workers, and the program that submits to them.

The scheduler only knows who runs what. What is done is in the Git remote and the DVC remote, so that a scheduler, a
worker or the submitter can be lost at any time. TLS, if it is used, is set up in Dask's own configuration
(`distributed.comm.tls`).
"""

import asyncio
import hashlib
import ipaddress
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask.config
from distributed import Client, Future, Scheduler, Security, Status, Worker, fire_and_forget, get_worker
from distributed.comm import get_address_host

from lenet.errors import InputError
from lenet.experiments.sweep import Lost
from lenet.experiments.task import Outcome, Task, attempt

RECONNECT = 1.0
"""Seconds between two attempts to reach a scheduler."""


def host_folder() -> Path:
    """Where this host keeps what its tasks share: $LENET_FOLDER, or `lenet` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LENET_FOLDER") or Path(cache, "lenet")).absolute()


def run_task(text: str) -> list[Any]:
    """Run a task on a worker of Dask's: JSON in, its outcome and the host out."""
    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        # Dask lets a thread go on whose task was cancelled, or whose worker has lost the scheduler.
        task = worker.state.tasks.get(key)
        return worker.status in (Status.running, Status.paused) and task is not None and task.state == "executing"

    return [attempt(Task.from_json(text), host_folder(), is_wanted), get_address_host(worker.address)]


class Cluster:
    """A cluster that tasks are submitted to."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._tasks: dict[str, Future[list[Any]]] = {}
        logging.disable(logging.ERROR)  # What Dask would say of a lost connection, the caller says in one line.
        _tls()
        try:
            self._client = Client(address, timeout=10)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"--scheduler {address}: {_cause(error)}; does `lenet scheduler` run there, with the same certificate?"
            ) from None

    def submit(self, tasks: Sequence[Task], avoid: str = "") -> bool:
        workers = [worker for worker in self._workers() if get_address_host(worker) != avoid] if avoid else None
        if workers == []:
            return False
        # A key that says what is run: whoever submits the same task again waits for the one that is running.
        texts = [json.dumps(task) for task in tasks]
        digests = [hashlib.sha256(f"{text} {avoid}".encode()).hexdigest()[:16] for text in texts]
        # Dask keeps tasks of one kind, which the key begins with, in a queue until a worker is free.
        keys = [("lenet", task.name, digest) for task, digest in zip(tasks, digests, strict=True)]
        futures = self._client.map(run_task, texts, key=keys, pure=False, workers=workers)
        fire_and_forget(futures)
        self._tasks |= {task.name: future for task, future in zip(tasks, futures, strict=True)}
        return True

    def ended(self) -> list[tuple[str, Outcome, str]]:
        found = []
        for name, future in [(name, future) for name, future in self._tasks.items() if future.done()]:
            if future.status in ("lost", "cancelled") or self._client.status != "running":
                raise Lost
            del self._tasks[name]
            if future.status == "error":
                # Nothing that the task does, whose errors are outcomes: of Dask's own, such as a worker lost each time.
                found.append((name, Outcome("failed", 0, message=_cause(future.exception())), ""))
            else:
                outcome, host = future.result()
                found.append((name, Outcome(*outcome), host))
        if self._client.status != "running":
            raise Lost
        return found

    def running(self) -> dict[str, str]:
        names = {future.key: name for name, future in self._tasks.items()}
        try:
            processing, threads = self._client.processing(), self._workers()
        except OSError:
            raise Lost from None
        found: dict[str, str] = {}
        for worker, keys in processing.items():
            # A worker may have more than it runs: those that were submitted later wait.
            mine = sorted((key for key in keys if key in names), key=list(names).index)
            found |= {names[key]: get_address_host(worker) for key in mine[: threads.get(worker, 0)]}
        return found

    def _workers(self) -> dict[str, int]:
        """The workers' addresses, with how many tasks each can run at once."""
        return {
            address: about["nthreads"]
            for address, about in self._client.scheduler_info(n_workers=-1)["workers"].items()
        }

    def reconnect(self) -> None:
        self._tasks.clear()
        self._client.close(timeout=1)
        while True:
            try:
                self._client = Client(self._address, timeout=10)
                return
            except OSError:
                time.sleep(RECONNECT)

    def close(self, cancel: bool) -> None:
        if cancel and self._tasks:
            self._client.cancel(list(self._tasks.values()), force=True)
        self._client.close(timeout=5)


def serve(host: str, port: int) -> None:
    """Run a scheduler until a signal ends it."""

    async def run() -> None:
        security = _security(host)
        # A worker gets a task only when it can start it, so that no task waits behind a long one.
        with dask.config.set({"distributed.scheduler.worker-saturation": 1.0}):
            async with Scheduler(
                host=host, port=port, protocol=_protocol(security), security=security, dashboard=False
            ) as it:
                print(f"scheduler: {it.address}", flush=True)
                await it.finished()

    _run(run, f"{host}:{port}")


def work(scheduler: str, host: str, jobs: int) -> None:
    """Run a worker until a signal ends it; if the scheduler is lost, wait for the next one at its address."""

    async def run() -> None:
        security = _security(host)
        waiting = False
        while True:
            try:
                async with Worker(
                    scheduler,
                    host=host,
                    protocol=_protocol(security),
                    security=security,
                    nthreads=jobs,
                    memory_limit=0,  # Tasks are programs of their own.
                    dashboard=False,
                    local_directory=str(host_folder() / "dask"),
                ) as worker:
                    print(f"worker: {worker.address} of {scheduler}, {jobs} at once, in {host_folder()}", flush=True)
                    waiting = False
                    await worker.finished()
            except (OSError, RuntimeError) as error:
                if not waiting:
                    print(f"worker: waiting for {scheduler}: {_cause(error)}", flush=True)
                waiting = True
            await asyncio.sleep(RECONNECT)

    _run(run, host)


def _run(program: Callable[[], Any], where: str) -> None:
    try:
        asyncio.run(program())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: {_cause(error)}") from None


def _protocol(security: Security) -> str:
    return "tls://" if security.require_encryption else "tcp://"


def _security(host: str) -> Security:
    """TLS as Dask is configured. Without it, only this machine may connect: who connects may run anything.

    Raises
    ------
    InputError
            TLS is not configured, and the address is not this machine's own; or a file of the configuration is missing.
    """
    security = _tls()
    if not security.require_encryption:
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = host == "localhost"
        if not local:
            raise InputError(
                f"--host {host}: who can connect may run any program here, so other addresses than 127.0.0.1 need TLS; "
                "docs/cluster.md says how to set it up"
            )
    return security


def _tls() -> Security:
    """TLS as Dask is configured.

    Raises
    ------
    InputError
        A file that the configuration names is missing.
    """
    security = Security()
    for field in [field for field in Security.__slots__ if field.endswith(("_file", "_key", "_cert"))]:
        name = getattr(security, field)
        if name and "\n" not in name and not Path(name).is_file():  # It may be the text itself.
            raise InputError(f"{name}: no such file; Dask's configuration names it, in distributed.comm.tls")
    return security


def _cause(error: BaseException | None) -> str:
    """The first reason of an error, in one line."""
    while error and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    return " ".join(str(error).split()) or type(error).__name__
