// Fibers: stacks between which an OS thread switches in user space. A switch saves and restores the callee-saved
// registers, without the two system calls of ucontext.
#pragma once

#include <cstddef>

// Assembly for x86-64 and aarch64, ucontext elsewhere; -DEMULATED_UCONTEXT forces ucontext, for tests.
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMULATED_UCONTEXT)
#define EMULATED_UCONTEXT
#endif

#ifdef EMULATED_UCONTEXT
#include <ucontext.h>
#endif

namespace emulated {

struct Fiber {
  // Makes the fiber's stack; `body` runs at the first switch to it and must never return. `number` is unique.
  void start(void (*body)(), size_t number);
  bool started() const { return body; }

  void (*body)() = nullptr;
  void* stack = nullptr;  // its lowest address; for the host set only with AddressSanitizer
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
#ifdef EMULATED_UCONTEXT
  ucontext_t context;
#else
  void* registers = nullptr;  // saved on its stack
#endif
};

// The stack of the OS thread that runs the grid.
extern Fiber host;

void switch_to(Fiber& fiber);

}  // namespace emulated
