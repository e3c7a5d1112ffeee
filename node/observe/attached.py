"""What the machine's owner has attached to this node to watch it with, for as long as it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from coordinator.scrape import from_other_threads
from node.config.local import LocalSettings
from node.core.errors import NodeError
from node.core.events import EventBus
from node.host.devices import describe, pick_device
from node.observe.metrics import NodeMetrics, serving_metrics
from node.observe.metrics_read import StatusSource


@contextlib.asynccontextmanager
async def attached(
    settings: LocalSettings, status: StatusSource, events: EventBus, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Run what the settings ask for while inside; nothing by default.

    Raises:
        ConfigError: something cannot run as it is asked for.
    """
    async with contextlib.AsyncExitStack() as stack:
        if settings.metrics is not None:
            metrics = NodeMetrics(
                from_other_threads(status, asyncio.get_running_loop()), lambda: _device_memory(settings.device)
            )
            await stack.enter_async_context(serving_metrics(metrics, settings.metrics, say))
            events.subscribe(metrics)
        yield


def _device_memory(wanted: str) -> tuple[int, int] | None:
    try:
        device = describe(pick_device(wanted))
    except (NodeError, RuntimeError):  # no such device, or one that fails just now: the node itself tells
        return None
    return device.total_bytes - device.free_bytes, device.total_bytes
