"""`recurra serve`: the HTTP service in this process, or in several (processes.py), until it is told to stop.

At SIGTERM or Ctrl-C, in this order: the listening socket closes and new requests on open connections are refused with
503; accepted ones get RECURRA_DRAIN_SECONDS to finish; what is left fails with 503 `draining`; connections close; the
engines' threads end. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import TYPE_CHECKING, Annotated

import typer
import uvicorn

from service.errors import CannotListen
from service.logs import EventLog, configure_logging
from service.processes import Place, end_with_parent, place_of, run_processes
from service.settings import load_settings, unknown_variables

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from service.dependencies import Services
    from service.settings import Settings

_ANSWER_SECONDS = 3.0  # for the 503s to those that did not finish in time

log = EventLog("serve")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; else RECURRA_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; else RECURRA_PORT. 0 takes a free one.")] = None,
) -> None:
    """Start the HTTP service. All other settings come from RECURRA_* variables."""
    settings = load_settings(host=host, port=port)
    configure_logging(settings.log_level, settings.log_format)
    for name in unknown_variables():
        log.warning("unknown_setting", name=name)
    place = place_of(os.environ)
    listener = _listen(settings) if place is None else socket.socket(fileno=place.listener)
    url = _url(listener)
    if place is None:
        typer.echo(f"Recurra listens on {url} and loads its models")
    if place is None and settings.processes > 1:
        raise typer.Exit(run_processes(settings.processes, listener))

    from service.app import create_app  # after the port is known to be free: this imports torch

    app = create_app(settings, is_first=place is None or place.is_first)
    sockets = [listener]
    served: ASGIApp = app
    if place is not None:
        from service.peers import Peers

        end_with_parent()
        served = Peers(app, place)
        sockets.append(_listen_to_peers(place))
    config = uvicorn.Config(
        served,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=settings.drain_seconds + _ANSWER_SECONDS,  # type: ignore[arg-type]  # takes fractions
    )
    services: Services = app.state.services
    if place is None or place.is_first:
        threading.Thread(target=_announce, args=(services, url), name="announce", daemon=True).start()
    _Server(config, services).run(sockets=sockets)


class _Server(uvicorn.Server):
    """Drains the engines while it waits for its connections, not after."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A thread: it waits for the engines, and a second Ctrl-C must not have to wait for it.
        threading.Thread(target=self._services.registry.close, name="drain", daemon=True).start()
        threading.Thread(target=self._services.jobs.close, name="drain-jobs", daemon=True).start()
        await super().shutdown(sockets)


def _listen(settings: Settings) -> socket.socket:
    """The listening socket, made before the models are loaded: a port in use is told at once."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listener = socket.create_server(address[:2], family=family, backlog=1024)
        # Connections inherit it. Without, the kernel holds an answer's body back until the caller has acknowledged its
        # head, which callers take 40 ms for (Nagle's algorithm and delayed acknowledgement).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as exc:
        hint = ": another program listens there; choose another port" if exc.errno == errno.EADDRINUSE else ""
        cause = (exc.strerror or str(exc)).partition(" (while")[0]  # what follows repeats the address
        raise CannotListen(f"cannot listen on {settings.host}:{settings.port}: {cause}{hint}") from exc


def _listen_to_peers(place: Place) -> socket.socket:
    peer_listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer_listener.bind(str(place.socket_path(place.number)))
    peer_listener.listen()
    return peer_listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def _announce(services: Services, url: str) -> None:
    """One line once the models are loaded, with something to try."""
    services.registry.wait_until_loaded()
    readiness = services.registry.readiness()
    if not readiness.is_ready:
        typer.echo(f"Recurra is not ready: {readiness.reason}", err=True)
        return
    names = ", ".join(name for name, state in readiness.models.items() if state == "ready")
    command = f"""curl -s {url}/translate -H 'content-type: application/json' -d '{{"text": "Hello."}}'"""
    typer.echo(f"Recurra is ready on {url} ({names}). Try: {command}")
