// The way from Python into an operator: functions that read their positional arguments themselves, in a fraction of the
// time that a generic binding takes.
//
// A function answers None for every call that is not an ordinary one: an argument of another type than it takes, a
// subclass of Tensor, a dtype, layout or device without kernels, a transform, a tracer or a forward-mode gradient. The
// Python function around it then knows what to do or what to say, and nothing has happened yet.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "core/activation_functions.h"
#include "ops/one_thread.h"

struct _object;  // Python's PyObject, whose headers the sources of operators do without
using PyObject = _object;

namespace fusedtricks {

// Lets other Python threads run for as long as it lives.
class WithoutGil {
 public:
  WithoutGil();
  ~WithoutGil();
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  void* thread_;
};

// New references.
PyObject* to_python(at::Tensor&& t);
PyObject* pair_to_python(PyObject* first, at::Tensor&& second);

// The same on threads that hold the GIL; nothing on others.
class WithoutGilIfHeld {
 public:
  WithoutGilIfHeld() {
    if (holds_gil()) released_.emplace();
  }

 private:
  std::optional<WithoutGil> released_;
  static bool holds_gil();
};

class PythonArguments {
 public:
  PythonArguments(PyObject* const* values, ptrdiff_t count) : values_(values), count_(count) {}

  // Each reads the next argument. What it answers counts only where fit() does.
  // A tensor that there are kernels for.
  const at::Tensor& tensor();
  const at::Tensor& tensor_of_any_dtype();
  std::optional<at::Tensor> optional_tensor();
  double number();
  std::optional<double> optional_number();
  double probability();
  bool flag();
  int64_t integer();
  // None, or 64 bits, signed or not.
  std::optional<int64_t> seed();
  std::vector<int64_t> integers();
  // A list or tuple of tensors in dtypes that there are kernels for, on any device.
  std::vector<at::Tensor> tensors();
  std::string_view text();
  // As it is, borrowed; None where there is none.
  PyObject* object() { return next(); }
  // Two arguments: the name, and None or a dict of parameters.
  Activation activation();
  // All arguments that are left: the parameters of the activation of that name.
  Activation activation_of(std::string_view name);

  bool has_next() const { return next_ < count_; }
  // Whether all arguments were read and fit, and no mode is on that an ordinary call does not take part in.
  bool fit() const;

  // Calls f without the GIL; gives its result to Python.
  template <class F>
  PyObject* released(const F& f) const {
    if constexpr (std::is_void_v<decltype(f())>) {
      const WithoutGil released;
      const OneThreadIfForked one_thread;
      f();
      return nullptr;
    } else {
      at::Tensor result;
      {
        const WithoutGil released;
        const OneThreadIfForked one_thread;
        result = f();
      }
      return to_python(std::move(result));
    }
  }

  // An argument itself, as what a function in place gives back.
  PyObject* same(ptrdiff_t place) const;

 private:
  PyObject* const* values_;
  ptrdiff_t count_, next_ = 0;
  bool fits_ = true;

  PyObject* next();
  template <class T>
  T unfit(T value) {
    fits_ = false;
    return value;
  }
  // A plain Tensor or Parameter without a forward-mode gradient.
  const at::Tensor* plain_tensor(PyObject* value);
};

using PythonBody = PyObject* (*)(PythonArguments&);

// A body as a function of Python's C interface: errors become exceptions, nullptr becomes None.
PyObject* call_body(PythonBody body, PyObject* const* values, ptrdiff_t count);

// Functions for the module. A body answers a new reference, or nullptr where the arguments do not fit.
class PythonFunction {
 public:
  template <PythonBody body>
  static PythonFunction of(const char* name) {
    return PythonFunction(name, [](PyObject* /*module*/, PyObject* const* values, ptrdiff_t count) {
      return call_body(body, values, count);
    });
  }

  // Puts all of them into the module.
  static void add_to(PyObject* module);

 private:
  using FastCall = PyObject* (*)(PyObject* module, PyObject* const* values, ptrdiff_t count);
  PythonFunction(const char* name, FastCall function);
};

}  // namespace fusedtricks
