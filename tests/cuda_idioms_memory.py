"""CUDA idioms about device memory."""

import torch


def memory_is_allocated_and_freed() -> None:
    before = torch.cuda.memory_allocated()
    x = torch.empty(1 << 20, device="cuda")
    assert torch.cuda.memory_allocated() >= before + (4 << 20)
    del x
    assert torch.cuda.memory_allocated() == before


def memory_by_device() -> None:
    x = torch.empty(1024, device="cuda:1")
    assert torch.cuda.memory_allocated("cuda:1") >= x.nbytes
    assert torch.cuda.memory_allocated(device=torch.device("cuda:1")) >= x.nbytes
    assert torch.cuda.memory_allocated(1) >= x.nbytes


def memory_is_reserved() -> None:
    x = torch.empty(1024, device="cuda")
    assert torch.cuda.memory_reserved() >= torch.cuda.memory_allocated() >= x.nbytes


def memory_peak() -> None:
    torch.cuda.reset_peak_memory_stats()
    x = torch.empty(1 << 20, device="cuda")
    peak = torch.cuda.max_memory_allocated()
    assert peak >= x.nbytes
    del x
    assert torch.cuda.max_memory_allocated() == peak
    assert torch.cuda.max_memory_reserved() >= peak


def memory_peak_is_reset() -> None:
    x = torch.empty(1 << 20, device="cuda")
    nbytes = x.nbytes
    del x
    torch.cuda.reset_peak_memory_stats("cuda:0")
    assert torch.cuda.max_memory_allocated() < torch.cuda.memory_allocated() + nbytes
    torch.cuda.reset_max_memory_allocated()
    torch.cuda.reset_accumulated_memory_stats()


def memory_cache_is_emptied() -> None:
    x = torch.empty(1 << 22, device="cuda")
    del x
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before


def memory_free_and_total() -> None:
    free, total = torch.cuda.mem_get_info()
    assert 0 < free <= total
    assert torch.cuda.mem_get_info("cuda:1")[1] == total
    assert torch.cuda.mem_get_info(device=torch.device("cuda:0"))[1] == total


def memory_used_by_anybody() -> None:
    free, total = torch.cuda.mem_get_info()
    assert 0 <= torch.cuda.device_memory_used() <= total
    assert torch.cuda.cudart().cudaMemGetInfo(0)[1] == total
    assert free <= total


def memory_statistics() -> None:
    x = torch.empty(1024, device="cuda")
    statistics = torch.cuda.memory_stats()
    assert statistics["allocated_bytes.all.current"] >= x.nbytes
    assert "num_alloc_retries" in torch.cuda.memory_stats_as_nested_dict()


def memory_summary_is_text() -> None:
    assert "Allocated memory" in torch.cuda.memory_summary(device="cuda", abbreviated=True)


def memory_snapshot_is_a_list() -> None:
    x = torch.empty(1024, device="cuda")
    assert isinstance(torch.cuda.memory_snapshot(), list)
    assert x.is_cuda


def memory_history() -> None:
    torch.cuda.memory._record_memory_history(max_entries=100)
    x = torch.empty(1024, device="cuda")
    snapshot = torch.cuda.memory._snapshot()
    torch.cuda.memory._record_memory_history(enabled=None)
    assert x.is_cuda and "segments" in snapshot


def memory_functions_of_the_submodule() -> None:
    from torch.cuda.memory import empty_cache, max_memory_allocated, memory_allocated

    empty_cache()
    assert max_memory_allocated() >= memory_allocated()
    assert torch.cuda.memory.memory_reserved() >= memory_allocated()


def memory_fraction() -> None:
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.set_per_process_memory_fraction(1.0, device="cuda:0")
    assert torch.cuda.get_per_process_memory_fraction() == 1.0


def memory_that_runs_out_raises() -> None:
    caught = False
    try:
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        caught = True
    assert caught


def memory_pool() -> None:
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = torch.empty(1024, device="cuda")
    assert x.is_cuda


def memory_of_the_allocator() -> None:
    pointer = torch.cuda.caching_allocator_alloc(1024)
    torch.cuda.caching_allocator_delete(pointer)
    assert torch.cuda.get_allocator_backend() in ("native", "cudaMallocAsync")


def memory_of_a_host() -> None:
    assert isinstance(torch.cuda.host_memory_stats(), dict)


def interprocess_memory_is_collected() -> None:
    torch.cuda.ipc_collect()
