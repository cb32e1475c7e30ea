// The library leaves the floating-point environment as it is: rounding mode, and on x86 the control
// bits of MXCSR (flush to zero, denormals are zero, exception masks).
#include <cfenv>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include "attention_case.h"
#include "check.h"
#include "tests.h"

namespace cattn::test {
namespace {

// Everything but the sticky exception flags, which any arithmetic sets.
unsigned control_bits() {
#if defined(__x86_64__)
  return _mm_getcsr() & ~0x3fu;
#else
  return 0;
#endif
}
void set_control_bits([[maybe_unused]] unsigned bits) {
#if defined(__x86_64__)
  _mm_setcsr(bits);
#endif
}

template <class T>
void check_unchanged(const Attention<T>& attention, const std::string& name) {
  const unsigned before = control_bits();
  const int rounding = std::fegetround();
  attention.compute({.threads = 2});
  check(control_bits() == before, name + ": changed the control bits");
  check(std::fegetround() == rounding, name + ": changed the rounding mode");
}

template <class T>
void test_dtype(const Case& c) {
  constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  const Attention<T> attention(c);
  const unsigned usual = control_bits();
  for (const std::string& isa : available_isas()) {
    cattn_set_isa(isa.c_str());
    check_unchanged(attention, isa);
    set_control_bits(usual | kFlushToZero | kDenormalsAreZero);
    check_unchanged(attention, isa + " with FTZ and DAZ");
    set_control_bits(usual);
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
      std::fesetround(mode);
      check_unchanged(attention, isa + " with directed rounding");
      std::fesetround(FE_TONEAREST);
    }
  }
}

}  // namespace

void test_environment() {
  Case c;
  c.rows = 150;
  c.keys = 300;
  c.head_dim = c.value_dim = 32;
  c.causal = true;
  c.weights = c.dlse = c.dbias = true;
  c.bias = Shape{150, 300};
  c.nonfinite = 0.001;
  test_dtype<float>(c);
  test_dtype<double>(c);
}

}  // namespace cattn::test
