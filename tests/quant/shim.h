// Runs a GPU kernel on the CPU: Metal's or CUDA's words as C++, one fiber for each GPU thread.
//
// A fiber runs until it waits for others. So what lacks a barrier is read too early every time,
// and threads that wait for different things are found (exit code 3) where a GPU would hang.
// Buffers end at a page that cannot be touched. With TYPECHECK there is only what the front end
// needs, and Metal's address spaces are those of clang.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef TYPECHECK
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(2)))
#define threadgroup static __attribute__((address_space(3)))
#define thread
typedef __bf16 bfloat16_t;
#else
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#define device
#define constant
#define threadgroup static __attribute__((section("shared")))
#define thread
struct bfloat16_t {
  uint16_t bits;
  explicit bfloat16_t(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    bits = (word + 0x7fff + (word >> 16 & 1)) >> 16;  // to the nearest, ties to even
  }
  operator float() const {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
  }
};
#endif
typedef unsigned uint;
typedef _Float16 half;
typedef half float16_t;
struct uint3 {
  uint x, y, z;
};
enum class mem_flags { mem_none, mem_device, mem_threadgroup };

#ifdef TYPECHECK
void threadgroup_barrier(mem_flags);
float simd_sum(float);
#else

enum Wait { NOTHING, LANES, GROUP, ENDED };
struct Thread {
  ucontext_t context;
  Wait wait;
  uint thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
  uint3 thread_position_in_grid, threadgroup_position_in_grid, threads_per_threadgroup;
};
const uint MOST_THREADS = 1024, STACK = 1 << 16;
static Thread threads[MOST_THREADS], *here;
static uint count;  // threads of the group that runs
static char stacks[MOST_THREADS][STACK];
static ucontext_t scheduler;
static float slots[MOST_THREADS];
// What the linker calls the ends of the section; null where a kernel shares nothing.
extern "C" char __start_shared[] __attribute__((weak)), __stop_shared[] __attribute__((weak));
static void (*kernel)(void **);
static void *buffers[16];

inline void wait_for(Wait wait) {
  here->wait = wait;
  swapcontext(&here->context, &scheduler);
}
template <class F> float exchange(float value, F take) {
  slots[here->thread_index_in_threadgroup] = value;
  wait_for(LANES);
  float taken = take(slots + here->simdgroup_index_in_threadgroup * 32);
  wait_for(LANES);
  return taken;
}
inline void threadgroup_barrier(mem_flags) { wait_for(GROUP); }
inline float simd_sum(float value) {
  return exchange(value, [](float *lanes) {
    float sum = 0;
    for (int i = 0; i < 32; i++) sum += lanes[i];
    return sum;
  });
}

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ threadgroup
#define threadIdx here_thread()
#define blockIdx here->threadgroup_position_in_grid
#define blockDim here->threads_per_threadgroup
typedef half __half;
typedef bfloat16_t __nv_bfloat16;
inline uint3 here_thread() { return {here->thread_index_in_threadgroup, 0, 0}; }
inline void __syncthreads() { wait_for(GROUP); }
inline float __shfl_xor_sync(unsigned, float value, int apart) {
  return exchange(value, [=](float *lanes) {
    return lanes[here->thread_index_in_simdgroup ^ uint(apart)];
  });
}
struct Shape {
  int32_t sizes[10];
  int32_t operator[](int i) const { return sizes[i]; }
};

static void enter() {
  kernel(buffers);
  here->wait = ENDED;
}
// Whether all threads of the group came to their end.
static bool run_group() {
  if (__start_shared) memset(__start_shared, 0xff, __stop_shared - __start_shared);
  for (uint i = 0; i < count; i++) {
    Thread &t = threads[i];
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = stacks[i];
    t.context.uc_stack.ss_size = STACK;
    t.context.uc_link = &scheduler;
    makecontext(&t.context, enter, 0);
    t.wait = NOTHING;
  }
  for (bool moved = true; moved;) {
    for (uint i = 0; i < count; i++)
      if (threads[i].wait == NOTHING) {
        here = &threads[i];
        swapcontext(&scheduler, &here->context);
      }
    uint ended = 0, at_barrier = 0;
    for (uint i = 0; i < count; i++) {
      ended += threads[i].wait == ENDED;
      at_barrier += threads[i].wait == GROUP;
    }
    if (ended == count) return true;
    moved = at_barrier == count;
    if (moved)
      for (uint i = 0; i < count; i++) threads[i].wait = NOTHING;
    for (uint first = 0; first < count; first += 32) {
      uint waiting = 0, last = first + 32 < count ? first + 32 : count;
      for (uint i = first; i < last; i++) waiting += threads[i].wait == LANES;
      if (waiting < 32) continue;  // a collective needs all lanes
      for (uint i = first; i < last; i++) threads[i].wait = NOTHING;
      moved = true;
    }
  }
  return false;
}
// Standard input, in int64: grid, group, number of buffers, size of each and whether it is an
// output; then the inputs. Standard output: the outputs.
static void read_all(void *to, size_t size) {
  if (size && fread(to, size, 1, stdin) != 1) exit(4);
}
static int run(void (*to_run)(void **)) {
  struct {
    int64_t grid[3], group[3], buffers;
  } head;
  int64_t sizes[16][2];
  read_all(&head, sizeof head);
  read_all(sizes, head.buffers * sizeof *sizes);
  kernel = to_run;
  const size_t page = getpagesize();
  for (int i = 0; i < head.buffers; i++) {
    size_t pages = (sizes[i][0] + page - 1) / page * page;
    char *at = (char *)mmap(0, pages + page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at + pages, page, PROT_NONE)) return 4;
    buffers[i] = at + pages - sizes[i][0];
    if (sizes[i][1])
      memset(buffers[i], 0xff, sizes[i][0]);  // NaN where nothing is written
    else
      read_all(buffers[i], sizes[i][0]);
  }
  uint grid[3], group[3];
  for (int i = 0; i < 3; i++) {
    grid[i] = head.grid[i];
    group[i] = head.group[i] < head.grid[i] ? head.group[i] : head.grid[i];
  }
  for (uint z = 0; z * group[2] < grid[2]; z++)
    for (uint y = 0; y * group[1] < grid[1]; y++)
      for (uint x = 0; x * group[0] < grid[0]; x++) {
        const uint first[3] = {x * group[0], y * group[1], z * group[2]};
        uint size[3] = {group[0], group[1], group[2]};
#ifndef CUDA  // Metal cuts the groups at the edges, CUDA lets them reach beyond the grid
        for (int i = 0; i < 3; i++)
          if (grid[i] - first[i] < size[i]) size[i] = grid[i] - first[i];
#endif
        count = size[0] * size[1] * size[2];
        if (count > MOST_THREADS) return 4;
        for (uint i = 0; i < count; i++) {
          Thread &t = threads[i];
          t.thread_index_in_threadgroup = i;
          t.thread_index_in_simdgroup = i % 32;
          t.simdgroup_index_in_threadgroup = i / 32;
          t.threadgroup_position_in_grid = {x, y, z};
          t.threads_per_threadgroup = {size[0], size[1], size[2]};
          t.thread_position_in_grid = {first[0] + i % size[0], first[1] + i / size[0] % size[1],
                                       first[2] + i / size[0] / size[1]};
        }
        if (!run_group()) return 3;
      }
  for (int i = 0; i < head.buffers; i++)
    if (sizes[i][1]) fwrite(buffers[i], sizes[i][0], 1, stdout);
  return fflush(stdout) ? 4 : 0;
}
#endif
