"""The coordinator as a gRPC server: services, health, reflection, certificate, limits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.access import Gatekeeper, Tokens
from coordinator.address import CoordinatorAddress
from coordinator.hub import Hub
from coordinator.listen import WrongAddress, is_local
from coordinator.metrics import coordinator_registry, standing
from coordinator.page import RunsSource
from coordinator.scrape import from_other_threads, metrics_endpoint
from coordinator.secret_files import keep_secret
from coordinator.servicer import CoordinatorServicer, OperatorServicer
from coordinator.store import Store
from coordinator.tls import Certificate
from coordinator.v1 import coordinator_pb2 as pb
from coordinator.v1 import coordinator_pb2_grpc as rpc
from coordinator.web.owner import owners_page

_MAX_MESSAGE_BYTES = 300_000
_SERVICES = tuple(pb.DESCRIPTOR.services_by_name[name].full_name for name in ("Coordinator", "Operator"))
_GRACE_S = 0.5


class CannotServe(Exception):
    """The coordinator cannot start; the text says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """How to serve."""

    state: Path
    """Folder of the memory, the tokens and the certificate."""
    host: str
    port: int
    """0: a free one."""
    public: tuple[str, int] | None = None
    """Host and port that nodes are to dial, if they are others."""
    is_plain: bool = False
    """No certificate, nothing encrypted."""
    certificate: Certificate | None = None
    """One's own; None: one that is made once."""
    names_itself: bool = True
    """The address carries the certificate's fingerprint; otherwise nodes trust the machine's authorities."""
    dashboard: str | None = None
    """HOST:PORT of a web page; None: none."""
    metrics: str | None = None
    """HOST:PORT for Prometheus; None: nowhere."""


@dataclass(frozen=True)
class Serving:
    """A coordinator that runs."""

    hub: Hub
    address: CoordinatorAddress
    """For nodes."""


@contextlib.asynccontextmanager
async def serving(settings: Settings, say: Callable[[str], None]) -> AsyncIterator[Serving]:
    """Serve for as long as it is entered.

    Raises:
        CannotServe: the port is taken, or a file cannot be used.
        StoreError: the memory cannot be used.
    """
    if settings.is_plain and not is_local(settings.host):
        say(f"Warning: nothing is encrypted at {settings.host}:{settings.port}; tokens can be read on the way.")
    hub = Hub(Store(settings.state), say)
    server = grpc.aio.server(
        interceptors=[Gatekeeper(tokens := _tokens(settings.state), hub.tally)],
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", 16),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
    )
    rpc.add_CoordinatorServicer_to_server(CoordinatorServicer(hub), server)  # type: ignore[no-untyped-call]
    rpc.add_OperatorServicer_to_server(OperatorServicer(hub), server)  # type: ignore[no-untyped-call]
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port, sha256 = _listen(server, settings)
    host, dialled = settings.public or (reachable_host(settings.host), port)
    member = CoordinatorAddress(host, dialled, tokens.member, sha256, settings.is_plain)
    _leave_for_operator(settings.state, dataclasses.replace(member, token=tokens.operator))
    await server.start()
    for service in ("", *_SERVICES):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    hub.start()
    try:
        async with _shown(hub, settings, str(member), say):
            yield Serving(hub, member)
    finally:
        await server.stop(_GRACE_S)
        await hub.close()


@contextlib.asynccontextmanager
async def _shown(hub: Hub, settings: Settings, address: str, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Serve the page and the metrics that are asked for."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            if settings.dashboard is not None:
                source = RunsSource(hub, address)
                page = owners_page(source, settings.dashboard, settings.state, say)
                await stack.enter_async_context(page)
                stack.callback(source.end)
            if settings.metrics is not None:
                read = from_other_threads(lambda: standing(hub), asyncio.get_running_loop())
                endpoint = metrics_endpoint(coordinator_registry(read), settings.metrics)
                say(f"Metrics for Prometheus:  {await stack.enter_async_context(endpoint)}")
        except WrongAddress as error:
            raise CannotServe(f"{error}. Give a free HOST:PORT of this machine.") from error
        yield


def _listen(server: grpc.aio.Server, settings: Settings) -> tuple[int, str | None]:
    """Open the port; return it, and the certificate's digest for the address."""
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    where = f"{name}:{settings.port}"
    sha256 = None
    try:
        if settings.is_plain:
            return server.add_insecure_port(where), None
        own = settings.certificate or Certificate.load_or_create(settings.state)
        sha256 = own.sha256 if settings.names_itself else None
        return server.add_secure_port(where, grpc.ssl_server_credentials([(own.key, own.chain)])), sha256
    except RuntimeError as error:
        raise CannotServe(
            f"Cannot listen on {where}: is another program there? Give another address with --listen HOST:PORT."
        ) from error
    except (OSError, ValueError) as error:
        raise CannotServe(f"The certificate in {settings.state} cannot be used: {error}.") from error


def _leave_for_operator(folder: Path, address: CoordinatorAddress) -> None:
    """Leave the operator's address where the operator's verbs find it."""
    try:
        keep_secret(folder / "operator.address", str(address).encode())
    except OSError as error:
        raise CannotServe(f"{folder}: {error.strerror}. Make room, or give another folder with --state.") from error


def _tokens(folder: Path) -> Tokens:
    try:
        return Tokens.load_or_create(folder)
    except OSError as error:
        raise CannotServe(f"{folder}: {error.strerror}. Give another folder with --state.") from error


def reachable_host(host: str) -> str:
    """Return what others dial for a host that is listened on: of a wildcard this machine's address in its network."""
    with contextlib.suppress(ValueError):
        if not ipaddress.ip_address(host).is_unspecified:
            return host
        # nothing is sent: this asks the kernel which of its addresses it would use
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        return "127.0.0.1"
    return host
