#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "sanitizer.h"

namespace emulated {

Fiber host;

namespace {

Fiber* current = &host;
Fiber* previous = &host;

// For a kernel's parameters (up to 32 KiB) and its frames, which AddressSanitizer makes several times larger.
constexpr size_t stack_bytes = 256 * 1024;
constexpr size_t guard_bytes = 64 * 1024;  // a multiple of all common page sizes

void* new_stack() {
  void* memory =
      mmap(nullptr, guard_bytes + stack_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + guard_bytes, stack_bytes, PROT_READ | PROT_WRITE)) {
    std::perror("emulated: no memory for the stack of a thread");
    std::abort();
  }
  return static_cast<char*>(memory) + guard_bytes;
}

void start_switch([[maybe_unused]] Fiber& from, [[maybe_unused]] Fiber& to) {
#ifdef EMULATED_ASAN
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
}

// Called on the new stack. Records the bounds of the previous one, which for the host are not known otherwise.
void finish_switch() {
#ifdef EMULATED_ASAN
  const void* stack;
  __sanitizer_finish_switch_fiber(current->fake_stack, &stack, &previous->stack_bytes);
  previous->stack = const_cast<void*>(stack);
#endif
}

void first_switch() {
  finish_switch();
  current->body();
  std::abort();
}

}  // namespace

#ifdef EMULATED_UCONTEXT

static void switch_registers(Fiber& from, Fiber& to) {
  swapcontext(&from.context, &to.context);
}

static void prepare(Fiber& fiber, size_t) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  makecontext(&fiber.context, first_switch, 0);
}

#else

// Pushes the callee-saved registers, stores the stack pointer in *save, switches to the other stack and pops them. The
// floating-point control words are callee-saved too, but kernels do not change them. `ret`, not a jump: all fibers
// return to the same address, which the branch predictor predicts.
extern "C" void emulated_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
  .text
  .p2align 4
  .globl emulated_switch
  .hidden emulated_switch
  .type emulated_switch, @function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulated_switch, .-emulated_switch
)");
constexpr size_t saved_words = 6 + 2, entry_word = 6;  // then the return address, and a null one above it
#else
asm(R"(
  .text
  .p2align 4
  .globl emulated_switch
  .hidden emulated_switch
  .type emulated_switch, %function
emulated_switch:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
  .size emulated_switch, .-emulated_switch
)");
constexpr size_t saved_words = 20, entry_word = 1;
#endif

static void switch_registers(Fiber& from, Fiber& to) {
  emulated_switch(&from.registers, to.registers);
}

// The saved state of a fiber suspended before the first instruction of first_switch.
static void prepare(Fiber& fiber, size_t number) {
  // Stacks that all started at the same page offset would compete for a few sets of the L1 cache.
  const size_t offset = number * 576 % 32768;
  char* top = static_cast<char*>(fiber.stack) + fiber.stack_bytes - offset;
  uint64_t* saved = reinterpret_cast<uint64_t*>(top) - saved_words;
  for (size_t i = 0; i < saved_words; ++i) saved[i] = 0;
  saved[entry_word] = reinterpret_cast<uint64_t>(first_switch);
  fiber.registers = saved;
}

#endif

void Fiber::start(void (*to_run)(), size_t number) {
  body = to_run;
  stack = new_stack();
  stack_bytes = emulated::stack_bytes;
  prepare(*this, number);
}

void switch_to(Fiber& fiber) {
  if (&fiber == current) return;
  previous = current;
  current = &fiber;
  start_switch(*previous, fiber);
  switch_registers(*previous, fiber);
  finish_switch();
}

}  // namespace emulated
