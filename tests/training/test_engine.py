import asyncio
import gc
import threading
import time
import weakref

import pytest
import torch

from node.core.errors import OutOfDeviceMemory
from node.training.engine import Engine, Priority


@pytest.fixture
async def engine():
    engine = Engine(num_threads=1)
    yield engine
    await engine.close()


async def hold(engine: Engine) -> tuple[threading.Event, asyncio.Task]:
    """Keep the engine busy until the event is set."""
    release, begun = threading.Event(), threading.Event()

    def wait():
        begun.set()
        release.wait(10)

    task = asyncio.create_task(engine.run(Priority.OWN, wait))
    await asyncio.to_thread(begun.wait, 10)
    return release, task


async def test_jobs_run_by_priority_and_then_in_the_order_they_came(engine):
    release, held = await hold(engine)
    order = []
    wanted = [Priority.OWN, Priority.FORWARD, Priority.BACKWARD, Priority.OWN, Priority.BACKWARD, Priority.FORWARD]
    jobs = [asyncio.create_task(engine.run(p, order.append, (p, i))) for i, p in enumerate(wanted)]
    await asyncio.sleep(0.01)

    release.set()
    await asyncio.gather(held, *jobs)

    assert order == sorted((p, i) for i, p in enumerate(wanted))


async def test_all_jobs_run_on_one_thread_that_is_not_the_callers(engine):
    threads = {await engine.run(p, threading.get_ident) for p in Priority for _ in range(3)}

    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_result_and_arguments_pass_through(engine):
    assert await engine.run(Priority.OWN, sorted, [3, 1, 2], reverse=True) == [3, 2, 1]


async def test_an_error_reaches_its_awaiter_and_the_engine_goes_on(engine):
    with pytest.raises(ZeroDivisionError):
        await engine.run(Priority.OWN, lambda: 1 // 0)

    assert await engine.run(Priority.OWN, lambda: 5) == 5


async def test_cancelling_drops_a_job_that_has_not_begun(engine):
    release, held = await hold(engine)
    ran = []
    job = asyncio.create_task(engine.run(Priority.OWN, ran.append, 1))
    await asyncio.sleep(0.01)

    job.cancel()
    await asyncio.sleep(0)
    release.set()
    await held
    await engine.run(Priority.OWN, lambda: None)

    assert job.cancelled()
    assert ran == []


async def test_cancelling_a_job_that_runs_leaves_the_engine_usable(engine):
    release, held = await hold(engine)

    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    release.set()

    assert held.cancelled()
    assert await engine.run(Priority.OWN, lambda: 7) == 7


async def test_closing_runs_what_is_queued_and_refuses_what_comes_later():
    engine = Engine()
    release, held = await hold(engine)
    ran = []
    job = asyncio.create_task(engine.run(Priority.OWN, ran.append, 1))
    await asyncio.sleep(0.01)

    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.01)
    with pytest.raises(RuntimeError, match="closed"):
        await engine.run(Priority.BACKWARD, lambda: None)
    release.set()
    await closing
    await engine.close()
    await asyncio.gather(held, job)

    assert ran == [1]


async def test_running_out_of_memory_says_what_to_do(engine):
    with pytest.raises(OutOfDeviceMemory, match="does not fit") as caught:
        await engine.run(Priority.OWN, torch.empty, 1 << 59)

    assert "micro_batch_size" in caught.value.hint


async def test_an_idle_engine_does_not_hold_the_last_jobs_tensors(engine):
    tensor = torch.zeros(10)
    gone = weakref.ref(tensor)
    await engine.run(Priority.OWN, torch.clone, tensor)

    del tensor
    for _ in range(100):
        gc.collect()
        if gone() is None:
            break
        await asyncio.sleep(0.01)

    assert gone() is None


async def test_a_job_costs_little(engine):
    costs = []
    for _ in range(7):
        began = time.perf_counter()
        for _ in range(200):
            await engine.run(Priority.OWN, int)
        costs.append((time.perf_counter() - began) / 200)

    assert min(costs) < 0.2e-3, f"{min(costs) * 1e6:.0f} us a job"
