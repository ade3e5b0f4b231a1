// Which table of kernels runs here.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace onepass {

namespace {

struct Variant {
  const char* name;
  const KernelTable& table;
  bool usable;
};

#ifdef ONEPASS_X86_64
// The features of the processor that -march=x86-64-v3 and -v4 use. clang++ before 18 does not know the names of these
// levels here. No processor has these features and lacks the others of its level, such as f16c.
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// Best first.
const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
#ifdef ONEPASS_X86_64
      {"avx512", avx512::table, has_avx512()},
      {"avx2", avx2::table, has_avx2()},
#endif
      {"baseline", baseline::table, true},
  };
  return all;
}

const Variant& choose() {
  const char* wanted = std::getenv("ONEPASS_ISA");
  for (const Variant& v : variants())
    if (v.usable && (!wanted || !*wanted || std::strcmp(wanted, v.name) == 0)) return v;
  std::string usable;
  for (const char* name : usable_isas()) usable += std::string(usable.empty() ? "" : ", ") + name;
  throw std::runtime_error(std::string("ONEPASS_ISA=") + wanted + " is not available on this machine; use one of " +
                           usable + ", or unset it");
}

const Variant& chosen() {
  static const Variant& v = choose();
  return v;
}

}  // namespace

const Kernels& kernels(const KernelKey& key) {
  return chosen().table[index_of(key.storage)][static_cast<int>(key.rule)];
}

const char* isa() {
  return chosen().name;
}

std::vector<const char*> usable_isas() {
  std::vector<const char*> names;
  for (const Variant& v : variants())
    if (v.usable) names.push_back(v.name);
  return names;
}

}  // namespace onepass
