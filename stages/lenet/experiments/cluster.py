"""Experiments on a cluster: Dask's scheduler and workers, and the program that submits to them.

The scheduler only knows who runs what. What is done is in the Git remote and the DVC remote, so that a scheduler, a
worker or the submitter can be lost at any time. TLS, if it is used, is set up in Dask's own configuration
(`distributed.comm.tls`).
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import dask.config
from distributed import Client, Future, Scheduler, Security, Status, Worker, fire_and_forget, get_worker
from distributed.client import ClosedClientError
from distributed.comm import get_address_host, parse_address, parse_host_port

from lenet.cli import Stopped
from lenet.errors import InputError
from lenet.experiments.sweep import Lost
from lenet.experiments.task import Outcome, Task, attempt

NOWHERE = "127.0.0.1:0"
"""Dask has an HTTP server that cannot be left out, and knows no certificates: it serves nothing, to this machine."""

RECONNECT = 1.0
"""Seconds between two attempts to reach a scheduler."""


def host_folder() -> Path:
    """Where this host keeps what its tasks share: $LENET_FOLDER, or lenet/HOSTNAME in the user's cache folder.

    Other hosts must not have the same, because a task removes what those have left that run here no more.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LENET_FOLDER") or Path(cache, "lenet", socket.gethostname())).absolute()


def run_task(text: str) -> list[Any]:
    """Run a task on a worker of Dask's: JSON in, its outcome and the host out."""
    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        # Dask lets a thread go on whose task was cancelled, or whose worker has lost the scheduler.
        task = worker.state.tasks.get(key)
        return worker.status in (Status.running, Status.paused) and task is not None and task.state == "executing"

    try:
        outcome = attempt(Task.from_json(text), host_folder(), is_wanted)
    except OSError as error:
        outcome = Outcome("failed", 0, message=str(error))
    return [outcome, get_address_host(worker.address)]


class Cluster:
    """A cluster that tasks are submitted to."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._tasks: dict[str, Future[list[Any]]] = {}
        self._submitted: Counter[str] = Counter()
        self._hosts: dict[str, tuple[Task, set[str]]] = {}
        logging.disable(logging.ERROR)  # What Dask would say of a lost connection, the caller says in one line.
        _tls()
        try:
            _host_and_port(address)
            self._client = Client(address, timeout=10)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"--scheduler {address}: {_cause(error)}; does `lenet scheduler` run there, with the same certificate?"
            ) from None

    def submit(self, tasks: Sequence[Task], avoid: str = "") -> bool:
        with _or_lost():
            hosts = {get_address_host(worker) for worker in self._workers()} - {avoid} if avoid else set()
            if avoid and not hosts:
                return False
            # A key that says what is run, and for the how many-th time: another submitter of the same task waits for
            # the one that is running, but what has failed is not answered from Dask's memory.
            texts = [json.dumps(task) for task in tasks]
            whats = [f"{text} {self._submitted[task.name]}" for task, text in zip(tasks, texts, strict=True)]
            self._submitted.update(task.name for task in tasks)
            digests = [hashlib.sha256(what.encode()).hexdigest()[:16] for what in whats]
            # Dask keeps tasks of one kind, which the key begins with, in a queue until a worker is free.
            keys = [("lenet", task.name, digest) for task, digest in zip(tasks, digests, strict=True)]
            futures = self._client.map(run_task, texts, key=keys, pure=False, workers=list(hosts) or None)
            fire_and_forget(futures)
            self._tasks |= {task.name: future for task, future in zip(tasks, futures, strict=True)}
            self._hosts |= {task.name: (task, hosts) for task in tasks}
            return True

    def ended(self) -> list[tuple[str, Outcome, str]]:
        found = []
        for name, future in [(name, future) for name, future in self._tasks.items() if future.done()]:
            if self._client.status != "running":
                break
            if future.status in ("lost", "cancelled"):  # By another submitter of the same task.
                found.append((name, Outcome("stopped", 0), ""))
            elif future.status == "error":
                # Nothing that the task does, whose errors are outcomes: Dask's own, such as workers lost each time.
                found.append((name, Outcome("failed", 0, message=_cause(future.exception())), "a lost worker"))
            else:
                try:
                    with _or_lost():
                        outcome, host = future.result()
                except Lost:
                    break
                found.append((name, Outcome(*outcome), host))
            del self._tasks[name]
        if not found and self._client.status != "running":
            raise Lost
        return found

    def running(self) -> dict[str, str]:
        names = {future.key: name for name, future in self._tasks.items()}
        order = {key: place for place, key in enumerate(names)}
        with _or_lost():
            processing, threads = self._client.processing(), self._workers()
            there = {get_address_host(worker) for worker in threads}
            for name in self._tasks:
                task, hosts = self._hosts[name]
                if hosts and not hosts & there:  # Dask would wait for them for ever.
                    self._client.cancel([self._tasks[name]], force=True)
                    self.submit([task])
        found: dict[str, str] = {}
        for worker, keys in processing.items():
            # A worker may have more than it runs: those that were submitted later wait.
            mine = sorted((key for key in keys if key in names), key=order.__getitem__)
            found |= {names[key]: get_address_host(worker) for key in mine[: threads.get(worker, 0)]}
        return found

    def _workers(self) -> dict[str, int]:
        """The workers' addresses, with how many tasks each can run at once."""
        # Not scheduler_info(), which gives old news if the scheduler does not answer.
        workers = self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"]
        return {address: about["nthreads"] for address, about in workers.items()}

    def reconnect(self) -> None:
        self._tasks.clear()
        self._submitted.clear()
        self._client.close(timeout=1)
        while True:
            try:
                # First without a client, each of which leaves a thread behind if it does not connect.
                socket.create_connection(_host_and_port(self._address), timeout=10).close()
                with _or_lost():
                    self._client = Client(self._address, timeout=10)
                return
            except (Lost, OSError):
                time.sleep(RECONNECT)

    def close(self, cancel: bool) -> None:
        if cancel and self._tasks:
            with contextlib.suppress(Lost), _or_lost():
                self._client.cancel(list(self._tasks.values()), force=True)
        self._client.close(timeout=5)


@contextlib.contextmanager
def _or_lost() -> Iterator[None]:
    """Turn what Dask raises without a connection into `Lost`."""
    try:
        yield
    except (OSError, RuntimeError, ClosedClientError, asyncio.CancelledError, CancelledError) as error:
        raise Lost from error


def serve(host: str, port: int) -> None:
    """Run a scheduler until a signal ends it."""

    async def run() -> None:
        security = _security(host)
        # A worker gets a task only when it can start it, so that no task waits behind a long one.
        settings = {"distributed.scheduler.worker-saturation": 1.0, "distributed.scheduler.http.routes": []}
        with dask.config.set(settings):
            async with Scheduler(
                host=host,
                port=port,
                protocol=_protocol(security),
                security=security,
                dashboard=False,
                dashboard_address=NOWHERE,
            ) as scheduler:
                print(f"scheduler: {scheduler.address}", flush=True)
                await scheduler.finished()

    _run(run, f"{host}:{port}")


def work(scheduler: str, host: str, jobs: int) -> None:
    """Run a worker until a signal ends it; if the scheduler is lost, wait for the next one at its address."""

    async def run() -> None:
        security = _security(host)
        _host_and_port(scheduler)
        if scheduler.startswith("tls://") and not security.require_encryption:
            raise InputError(f"{scheduler}: this host has no certificate; docs/cluster.md says how to set up TLS")
        dask.config.set({"distributed.worker.http.routes": []})
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
                    dashboard_address=NOWHERE,
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


def _run(program: Callable[[], Coroutine[Any, Any, None]], where: str) -> None:
    """Run a server until a signal ends it."""
    stopped: list[signal.Signals] = []

    async def run() -> None:
        task, loop = asyncio.ensure_future(program()), asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            if not stopped:  # A second signal must not interrupt the clean-up.
                task.cancel()
            stopped.append(number)

        # asyncio swallows what the handlers of `lenet.cli` raise, if it happens to be running a callback.
        for number in [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) != signal.SIG_IGN]:
            loop.add_signal_handler(number, stop, number)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    try:
        asyncio.run(run())
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: {_cause(error)}") from None
    if stopped:
        raise Stopped(stopped[0])


def _host_and_port(address: str) -> tuple[str, int]:
    """Of a scheduler.

    Raises
    ------
    ValueError
        It is not an address such as tls://host:8786.
    """
    host, port = parse_host_port(parse_address(address)[1])
    return host, port


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
