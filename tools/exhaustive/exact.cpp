#include "exact.h"

#include <initializer_list>

namespace exhaustive {
namespace {

using kolm::Unary;

// Enough for the smallest subnormal's square beside 1.
constexpr mpfr_prec_t kPrecision = 700;

class Real {
 public:
  Real() { mpfr_init2(value_, kPrecision); }
  explicit Real(double x) : Real() { mpfr_set_d(value_, x, MPFR_RNDN); }
  explicit Real(const char* text) : Real() { mpfr_set_str(value_, text, 10, MPFR_RNDN); }
  Real(const Real& other) : Real() { mpfr_set(value_, other.value_, MPFR_RNDN); }
  Real& operator=(const Real& other) {
    mpfr_set(value_, other.value_, MPFR_RNDN);
    return *this;
  }
  ~Real() { mpfr_clear(value_); }
  mpfr_ptr get() { return value_; }
  mpfr_srcptr get() const { return value_; }

 private:
  mpfr_t value_;
};

using OneArgument = int (*)(mpfr_ptr, mpfr_srcptr, mpfr_rnd_t);
using TwoArguments = int (*)(mpfr_ptr, mpfr_srcptr, mpfr_srcptr, mpfr_rnd_t);

Real apply(OneArgument f, const Real& x) {
  Real y;
  f(y.get(), x.get(), MPFR_RNDN);
  return y;
}
Real apply(TwoArguments f, const Real& a, const Real& b) {
  Real y;
  f(y.get(), a.get(), b.get(), MPFR_RNDN);
  return y;
}
Real operator+(const Real& a, const Real& b) { return apply(mpfr_add, a, b); }
Real operator-(const Real& a, const Real& b) { return apply(mpfr_sub, a, b); }
Real operator*(const Real& a, const Real& b) { return apply(mpfr_mul, a, b); }
Real operator/(const Real& a, const Real& b) { return apply(mpfr_div, a, b); }
Real operator-(const Real& a) { return apply(mpfr_neg, a); }

const Real& one() {
  static const Real value(1.0);
  return value;
}
const Real& half() {
  static const Real value(0.5);
  return value;
}
Real pi() {
  Real value;
  mpfr_const_pi(value.get(), MPFR_RNDN);
  return value;
}
const Real& root_half() {
  static const Real value = apply(mpfr_sqrt, half());
  return value;
}
const Real& root_two_over_pi() {
  static const Real value = apply(mpfr_sqrt, Real(2.0) / pi());
  return value;
}

Real logistic(const Real& x) { return one() / (one() + apply(mpfr_exp, -x)); }
Real softplus(const Real& x) { return apply(mpfr_log1p, apply(mpfr_exp, x)); }
Real phi(const Real& x) { return half() * apply(mpfr_erfc, -(x * root_half())); }
Real density(const Real& x) {
  return half() * root_two_over_pi() * apply(mpfr_exp, -(half() * x * x));
}
Real twice_gelu_argument(const Real& x) {
  static const Real cubic("0.044715");
  return Real(2.0) * root_two_over_pi() * (x + cubic * x * x * x);
}
Real twice_gelu_slope(const Real& x) {
  static const Real cubic("0.134145");
  return Real(2.0) * root_two_over_pi() * (one() + cubic * x * x);
}

Real value(Unary function, const Real& x) {
  switch (function) {
    case Unary::exp: return apply(mpfr_exp, x);
    case Unary::exp2: return apply(mpfr_exp2, x);
    case Unary::expm1: return apply(mpfr_expm1, x);
    case Unary::log: return apply(mpfr_log, x);
    case Unary::log1p: return apply(mpfr_log1p, x);
    case Unary::log2: return apply(mpfr_log2, x);
    case Unary::log10: return apply(mpfr_log10, x);
    case Unary::tanh: return apply(mpfr_tanh, x);
    case Unary::erf: return apply(mpfr_erf, x);
    case Unary::erfc: return apply(mpfr_erfc, x);
    case Unary::sigmoid:
    case Unary::softplus_derivative: return logistic(x);
    case Unary::log_sigmoid_derivative: return logistic(-x);
    case Unary::log_sigmoid: return -softplus(-x);
    case Unary::silu: return x * logistic(x);
    // x / 2 * (1 + tanh(t)) is x / (1 + e^-2t).
    case Unary::gelu_tanh: return x * logistic(twice_gelu_argument(x));
    case Unary::gelu: return x * phi(x);
    case Unary::rsqrt: return one() / apply(mpfr_sqrt, x);
    case Unary::sqrt: return apply(mpfr_sqrt, x);
    case Unary::reciprocal: return one() / x;
    case Unary::square: return x * x;
    case Unary::sin: return apply(mpfr_sin, x);
    case Unary::cos: return apply(mpfr_cos, x);
    case Unary::softplus: return softplus(x);
    case Unary::mish: return x * apply(mpfr_tanh, softplus(x));
    case Unary::silu_derivative: {
      const Real s = logistic(x);
      return s * (one() + x * logistic(-x));
    }
    case Unary::gelu_derivative: return phi(x) + x * density(x);
    case Unary::gelu_tanh_derivative: {
      const Real t = twice_gelu_argument(x);
      return logistic(t) * (one() + x * twice_gelu_slope(x) * logistic(-t));
    }
    case Unary::mish_derivative: {
      const Real t = apply(mpfr_tanh, softplus(x));
      return t + x * (one() - t * t) * logistic(x);
    }
    case Unary::cube: break;  // two roundings, not one
  }
  __builtin_trap();
}

}  // namespace

float exact(Unary function, float x) {
  return mpfr_get_flt(value(function, Real(static_cast<double>(x))).get(), MPFR_RNDN);
}

}  // namespace exhaustive
