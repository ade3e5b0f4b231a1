// Fibers: stacks that an OS thread switches between by hand. A switch saves and loads what a function call must keep
// and asks nothing of the kernel, which ucontext does twice a switch.
#pragma once

#include <cstddef>

// The registers are switched in assembly where we have it; -DEMULATED_UCONTEXT tests the way of all other machines.
#if !defined(__x86_64__) && !defined(__aarch64__) && !defined(EMULATED_UCONTEXT)
#define EMULATED_UCONTEXT
#endif

#ifdef EMULATED_UCONTEXT
#include <ucontext.h>
#endif

namespace emulated {

struct Fiber {
  // Makes the fiber's stack; `body` runs at the first switch to it and must never return. `number` tells fibers apart.
  void start(void (*body)(), size_t number);
  bool started() const { return body; }

  void (*body)() = nullptr;
  void* stack = nullptr;  // its lowest address; of the host's own stack it is known only to AddressSanitizer
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
#ifdef EMULATED_UCONTEXT
  ucontext_t context;
#else
  void* registers = nullptr;  // saved on its stack
#endif
};

// The stack that the first switch comes from, on whatever OS thread that is.
extern Fiber host;

void switch_to(Fiber& fiber);

}  // namespace emulated
