// libascendcl.so: memory. Device memory is host memory from mmap; what makes it a device's is an
// entry in a table, so that sizes, owners and the end of memory are those of a device.
#include "devices.h"
#include "faults.h"
#include "options.h"
#include "streams.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>

using namespace fake_cann;

namespace {

constexpr int kPoisonByte = 0xA5;
constexpr size_t kPoisonLimitBytes = 64u << 20;  // writing whole gigabytes would take seconds

struct Block {
  size_t bytes;
  int device;
};

std::mutex mutex;
std::map<char*, Block> device_blocks;
std::map<char*, size_t> pinned_blocks;
std::map<char*, size_t> reserved_ranges;
size_t used_bytes[64];

void* map_pages(size_t bytes, int protection) {
  return mmap(nullptr, bytes ? bytes : 1, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
              -1, 0);
}

size_t bytes_of(size_t bytes) { return bytes; }
size_t bytes_of(const Block& block) { return block.bytes; }

// The entry of the block that holds `pointer`, or end(). The caller holds the mutex.
template <class Blocks>
auto block_around(Blocks& blocks, const void* pointer) {
  char* address = const_cast<char*>(static_cast<const char*>(pointer));
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return blocks.end();
  auto candidate = std::prev(after);
  return address < candidate->first + bytes_of(candidate->second) ? candidate : blocks.end();
}

aclError out_of_memory(int device, size_t bytes) {
  int code = options().out_of_memory_code;
  if (code != ACL_ERROR_RT_MEMORY_ALLOCATION) return fail_as_cann(code, "aclrtMalloc");
  return fail(code, "device " + std::to_string(device) +
                        " is out of memory: " + std::to_string(bytes) + " bytes asked, " +
                        std::to_string(options().device_bytes - used_bytes[device]) + " free");
}

aclError allocate(void** pointer, size_t bytes) {
  int device = current_device();
  if (device < 0) return fail(ACL_ERROR_RT_CONTEXT_NULL, "device memory needs a device");
  if (aclError error = device_error(device)) return error;
  if (aclError error = refused("aclrtMalloc")) return error;
  std::lock_guard<std::mutex> guard(mutex);
  if (used_bytes[device] + bytes > options().device_bytes) return out_of_memory(device, bytes);
  void* block = map_pages(bytes, PROT_READ | PROT_WRITE);
  if (block == MAP_FAILED) return out_of_memory(device, bytes);
  if (options().poison) memset(block, kPoisonByte, std::min(bytes, kPoisonLimitBytes));
  used_bytes[device] += bytes;
  device_blocks[static_cast<char*>(block)] = {bytes, device};
  *pointer = block;
  log(2, "device %d: %zu bytes at %p", device, bytes, block);
  return ACL_SUCCESS;
}

bool is_pinned(const void* pointer) {
  std::lock_guard<std::mutex> guard(mutex);
  return block_around(pinned_blocks, pointer) != pinned_blocks.end();
}

}  // namespace

API aclError aclrtMalloc(void** pointer, size_t bytes, aclrtMemMallocPolicy) {
  return allocate(pointer, bytes);
}
API aclError aclrtMallocAlign32(void** pointer, size_t bytes, aclrtMemMallocPolicy) {
  return allocate(pointer, bytes);
}
API aclError aclrtFree(void* pointer) {
  int device;
  {
    std::lock_guard<std::mutex> guard(mutex);
    auto block = device_blocks.find(static_cast<char*>(pointer));
    if (block == device_blocks.end())
      return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtFree: not device memory");
    device = block->second.device;
  }
  wait_for_device(device);  // a queued task may still use it, and here that would end the process
  std::lock_guard<std::mutex> guard(mutex);
  auto block = device_blocks.find(static_cast<char*>(pointer));
  used_bytes[device] -= block->second.bytes;
  munmap(pointer, block->second.bytes ? block->second.bytes : 1);
  device_blocks.erase(block);
  return device_error(device);
}
API aclError aclrtMallocHost(void** pointer, size_t bytes) {
  constexpr size_t kPageBytes = 4096;
  if (posix_memalign(pointer, kPageBytes, bytes ? bytes : 1)) {
    return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "host memory is exhausted");
  }
  std::lock_guard<std::mutex> guard(mutex);
  pinned_blocks[static_cast<char*>(*pointer)] = bytes;
  return ACL_SUCCESS;
}
API aclError aclrtMallocHostWithCfg(void** pointer, uint64_t bytes, aclrtMallocConfig*) {
  return aclrtMallocHost(pointer, bytes);
}
API aclError aclrtFreeHost(void* pointer) {
  std::lock_guard<std::mutex> guard(mutex);
  pinned_blocks.erase(static_cast<char*>(pointer));
  free(pointer);
  return ACL_SUCCESS;
}

API aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free_bytes, size_t* total_bytes) {
  int device = current_device();
  if (device < 0) return fail(ACL_ERROR_RT_CONTEXT_NULL, "this thread has set no device");
  if (aclError error = device_error(device)) return error;
  std::lock_guard<std::mutex> guard(mutex);
  *total_bytes = options().device_bytes;
  *free_bytes = options().device_bytes - used_bytes[device];
  return ACL_SUCCESS;
}
API aclError aclrtPointerGetAttributes(const void* pointer, aclrtPtrAttributes* attributes) {
  memset(attributes, 0, sizeof *attributes);
  attributes->location.type = ACL_MEM_LOCATION_TYPE_UNREGISTERED;
  std::lock_guard<std::mutex> guard(mutex);
  if (block_around(pinned_blocks, pointer) != pinned_blocks.end()) {
    attributes->location.type = ACL_MEM_LOCATION_TYPE_HOST;
    return ACL_SUCCESS;
  }
  auto block = block_around(device_blocks, pointer);
  if (block == device_blocks.end()) return ACL_SUCCESS;
  attributes->location.type = ACL_MEM_LOCATION_TYPE_DEVICE;
  attributes->location.id = static_cast<uint32_t>(block->second.device);
  return ACL_SUCCESS;
}

// ---- copies
API aclError aclrtMemcpy(void* to, size_t capacity, const void* from, size_t bytes,
                         aclrtMemcpyKind) {
  if (bytes > capacity)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemcpy: more bytes than the target holds");
  if (aclError error = current_device_error()) return error;
  memmove(to, from, bytes);
  return ACL_SUCCESS;
}
API aclError aclrtMemcpyAsync(void* to, size_t capacity, const void* from, size_t bytes,
                              aclrtMemcpyKind kind, aclrtStream handle) {
  if (bytes > capacity)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemcpyAsync: more bytes than the target holds");
  Stream& stream = stream_of(handle);
  if (aclError error = device_error(stream.device)) return error;
  // Pageable host memory: the call returns only when the host's side of it is free again.
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE && options().asynchronous && !stream.capture &&
      !is_pinned(from)) {
    std::string staged(static_cast<const char*>(from), bytes);
    submit(handle, "copy from a staging buffer",
           [=](Stream&) { memcpy(to, staged.data(), staged.size()); });
    return ACL_SUCCESS;
  }
  submit(handle, "copy", [=](Stream&) { memmove(to, from, bytes); });
  if (kind == ACL_MEMCPY_DEVICE_TO_HOST && !stream.capture && !is_pinned(to)) return stream.wait();
  return ACL_SUCCESS;
}
API aclError aclrtMemset(void* to, size_t capacity, int32_t value, size_t bytes) {
  if (bytes > capacity)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemset: more bytes than the target holds");
  if (aclError error = current_device_error()) return error;
  memset(to, value, bytes);
  return ACL_SUCCESS;
}
API aclError aclrtMemsetAsync(void* to, size_t capacity, int32_t value, size_t bytes,
                              aclrtStream handle) {
  if (bytes > capacity)
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtMemsetAsync: more bytes than the target holds");
  if (aclError error = device_error(stream_of(handle).device)) return error;
  submit(handle, "memset", [=](Stream&) { memset(to, value, bytes); });
  return ACL_SUCCESS;
}

// ---- expandable segments (PYTORCH_NPU_ALLOC_CONF=expandable_segments:True): a range of addresses
// into which physical blocks are mapped one by one
API aclError aclrtReserveMemAddress(void** address, size_t bytes, size_t, void*, uint64_t) {
  void* range = map_pages(bytes, PROT_NONE);
  if (range == MAP_FAILED) return fail(ACL_ERROR_RT_MEMORY_ALLOCATION, "no address range is left");
  std::lock_guard<std::mutex> guard(mutex);
  reserved_ranges[static_cast<char*>(range)] = bytes;
  *address = range;
  return ACL_SUCCESS;
}
API aclError aclrtReleaseMemAddress(void* address) {
  std::lock_guard<std::mutex> guard(mutex);
  auto range = reserved_ranges.find(static_cast<char*>(address));
  if (range == reserved_ranges.end())
    return fail(ACL_ERROR_RT_PARAM_INVALID, "not a reserved address");
  munmap(address, range->second);
  reserved_ranges.erase(range);
  return ACL_SUCCESS;
}
API aclError aclrtMallocPhysical(aclrtDrvMemHandle* handle, size_t bytes,
                                 const aclrtPhysicalMemProp* properties, uint64_t) {
  int device = properties ? static_cast<int>(properties->location.id) : current_device();
  if (aclError error = device_error(device)) return error;
  std::lock_guard<std::mutex> guard(mutex);
  if (used_bytes[device] + bytes > options().device_bytes) return out_of_memory(device, bytes);
  used_bytes[device] += bytes;
  *handle = reinterpret_cast<aclrtDrvMemHandle>(new Block{bytes, device});
  return ACL_SUCCESS;
}
API aclError aclrtFreePhysical(aclrtDrvMemHandle handle) {
  auto* block = reinterpret_cast<Block*>(handle);
  std::lock_guard<std::mutex> guard(mutex);
  used_bytes[block->device] -= block->bytes;
  delete block;
  return ACL_SUCCESS;
}
API aclError aclrtMapMem(void* address, size_t bytes, size_t, aclrtDrvMemHandle handle, uint64_t) {
  int device = reinterpret_cast<Block*>(handle)->device;
  if (aclError error = device_error(device)) return error;
  mprotect(address, bytes, PROT_READ | PROT_WRITE);
  std::lock_guard<std::mutex> guard(mutex);
  device_blocks[static_cast<char*>(address)] = {bytes, device};
  return ACL_SUCCESS;
}
API aclError aclrtUnmapMem(void* address) {
  std::lock_guard<std::mutex> guard(mutex);
  auto block = device_blocks.find(static_cast<char*>(address));
  if (block == device_blocks.end()) return fail(ACL_ERROR_RT_PARAM_INVALID, "not a mapped address");
  madvise(address, block->second.bytes, MADV_DONTNEED);
  mprotect(address, block->second.bytes, PROT_NONE);
  device_blocks.erase(block);
  return ACL_SUCCESS;
}
