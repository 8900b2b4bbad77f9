// The way from Python into an operator: functions that read their positional arguments themselves, in a fraction of the
// time that a generic binding takes.
//
// A function answers None for every call that is not an ordinary one: an argument of another type than it takes, a
// subclass of Tensor, a transform or a forward-mode gradient. The Python function around it then knows what to do or what
// to say, and nothing has happened yet.
#pragma once

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/python_headers.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <vector>

#include "checks/arguments.h"

namespace fusedtricks {

class PythonArguments {
 public:
  PythonArguments(PyObject* const* values, Py_ssize_t count) : values_(values), count_(count) {}

  // Each reads the next argument. What it answers counts only where fit() does.
  const at::Tensor& tensor();
  std::optional<at::Tensor> optional_tensor();
  double number();
  std::optional<double> optional_number();
  double probability();
  bool flag();
  int64_t integer();
  // None, or 64 bits, signed or not.
  std::optional<int64_t> seed();
  std::vector<int64_t> integers();
  std::string_view text();
  // Two arguments: the name, and None or a dict of parameters.
  Activation activation();
  // All arguments that are left: the parameters of the activation of that name.
  Activation activation_of(std::string_view name);

  // Whether all arguments were read and fit, and no mode is on that an ordinary call does not take part in.
  bool fit() const;

  // Calls f without the GIL; gives its result to Python.
  template <class F>
  PyObject* released(const F& f) const {
    if constexpr (std::is_void_v<decltype(f())>) {
      const pybind11::gil_scoped_release without_gil;
      f();
      return nullptr;
    } else {
      at::Tensor result;
      {
        const pybind11::gil_scoped_release without_gil;
        result = f();
      }
      return THPVariable_Wrap(std::move(result));
    }
  }

  // An argument itself, as what a function in place gives back.
  PyObject* same(Py_ssize_t place) const {
    Py_INCREF(values_[place]);
    return values_[place];
  }

 private:
  PyObject* const* values_;
  Py_ssize_t count_, next_ = 0;
  bool fits_ = true;

  PyObject* next() {
    if (next_ < count_) return values_[next_++];
    fits_ = false;
    return Py_None;
  }
  template <class T>
  T unfit(T value) {
    fits_ = false;
    return value;
  }
  // A plain Tensor or Parameter without a forward-mode gradient.
  const at::Tensor* plain_tensor(PyObject* value);
};

using PythonBody = PyObject* (*)(PythonArguments&);

template <PythonBody body>
PyObject* fast_call(PyObject* /*module*/, PyObject* const* values, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  PythonArguments arguments(values, count);
  PyObject* result = body(arguments);
  return result ? result : Py_NewRef(Py_None);
  END_HANDLE_TH_ERRORS
}

// Functions for the module. A body answers a new reference, or nullptr where the arguments do not fit.
class PythonFunction {
 public:
  template <PythonBody body>
  static PythonFunction of(const char* name) {
    return PythonFunction(name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fast_call<body>)));
  }

  // Puts all of them into the module.
  static void add_to(PyObject* module);

 private:
  PythonFunction(const char* name, PyCFunction function);
};

}  // namespace fusedtricks
