"""C++ code around a compiled graph: a Python function that calls it, once or several times in a row.

`SOURCE` is appended to the C++ code that Inductor writes for a graph. Inductor's own binding makes new handles of all tensors
in each call. This one keeps the handles of tensors that are the same objects as in the last call.

The module that is built has three functions. ``begin`` takes torch's function that makes handles of tensors, and returns an
object that keeps handles between calls. ``call`` takes this object and the list of all inputs, and returns the handles of the
results. ``several`` calls the graph many times in a row: before each call it copies a row of one input to that input's first
row, and puts a part of another input in its place. It returns the first result of each call, as numbers, and the handles of the
results of the last call.
"""

NAME = "pyro_vi_compiled"
"""Name of the module that is built."""

SOURCE = r"""
namespace {

constexpr Py_ssize_t NUMBER_OF_INPUTS = @INPUTS@, NUMBER_OF_RESULTS = @RESULTS@;

struct Known {
    PyObject* make_handles = nullptr;
    std::array<PyObject*, NUMBER_OF_INPUTS> tensors{};
    std::array<AtenTensorHandle, NUMBER_OF_INPUTS> handles{};

    void drop(Py_ssize_t i) {
        if (handles[i]) aoti_torch_delete_tensor_object(handles[i]);
        handles[i] = nullptr;
        Py_CLEAR(tensors[i]);
    }
    ~Known() {
        for (Py_ssize_t i = 0; i < NUMBER_OF_INPUTS; i++) drop(i);
        Py_XDECREF(make_handles);
    }
};

void check(AOTITorchError error, const char* what) {
    if (error) throw std::runtime_error(std::string("torch failed to ") + what);
}

AtenTensorHandle handle_of(PyObject* make_handles, PyObject* tensor) {
    PyObject* one = PyList_New(1);
    if (!one) return nullptr;
    PyList_SET_ITEM(one, 0, Py_NewRef(tensor));
    PyObject* made = PyObject_CallOneArg(make_handles, one);
    Py_DECREF(one);
    if (!made) return nullptr;
    auto handle = PyList_Check(made) && PyList_GET_SIZE(made) == 1
        ? static_cast<AtenTensorHandle>(PyCapsule_GetPointer(PyList_GET_ITEM(made, 0), nullptr)) : nullptr;
    Py_DECREF(made);
    if (!handle && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "an input is not a tensor");
    return handle;
}

// The known handles, brought up to date with a list of inputs; null and a Python error if that fails.
Known* taken_in(PyObject* capsule, PyObject* inputs) {
    auto* known = static_cast<Known*>(PyCapsule_GetPointer(capsule, nullptr));
    if (!known) return nullptr;
    if (!PyList_CheckExact(inputs) || PyList_GET_SIZE(inputs) != NUMBER_OF_INPUTS) {
        PyErr_SetString(PyExc_TypeError, "takes one list of @INPUTS@ tensors");
        return nullptr;
    }
    for (Py_ssize_t i = 0; i < NUMBER_OF_INPUTS; i++) {
        PyObject* given = PyList_GET_ITEM(inputs, i);
        if (given == known->tensors[i]) continue;
        AtenTensorHandle handle = handle_of(known->make_handles, given);
        if (!handle) return nullptr;
        known->drop(i);
        known->handles[i] = handle;
        known->tensors[i] = Py_NewRef(given);
    }
    return known;
}

// The graph takes over the handles of its inputs, so that each call needs its own.
void call_once(Known* known, std::array<AtenTensorHandle, NUMBER_OF_RESULTS>& results, Py_ssize_t other = -1,
               AtenTensorHandle part = nullptr) {
    std::array<AtenTensorHandle, NUMBER_OF_INPUTS> inputs{};
    for (Py_ssize_t i = 0; i < NUMBER_OF_INPUTS; i++) {
        if (i == other) inputs[i] = part;
        else check(aoti_torch_new_tensor_handle(known->handles[i], &inputs[i]), "copy a handle");
    }
    inductor_entry_impl(inputs.data(), results.data());
}

PyObject* packed(const std::array<AtenTensorHandle, NUMBER_OF_RESULTS>& results) {
    PyObject* list = PyList_New(NUMBER_OF_RESULTS);
    for (Py_ssize_t i = 0; list && i < NUMBER_OF_RESULTS; i++)
        PyList_SET_ITEM(list, i, results[i] ? PyCapsule_New(results[i], nullptr, nullptr) : Py_NewRef(Py_None));
    return list;
}

double number_in(AtenTensorHandle scalar) {
    int32_t dtype;
    check(aoti_torch_get_dtype(scalar, &dtype), "read a dtype");
    if (dtype == aoti_torch_dtype_float32()) {
        float value;
        check(aoti_torch_item_float32(scalar, &value), "read a number");
        return value;
    }
    if (dtype != aoti_torch_dtype_float64()) throw std::runtime_error("the first result is of an unknown dtype");
    double value;
    check(aoti_torch_item_float64(scalar, &value), "read a number");
    return value;
}

template <typename Work> PyObject* guarded(Work work) {
    try {
        PyObject* result = work();
        if (PyErr_Occurred()) { Py_XDECREF(result); return nullptr; }
        return result;
    } catch (std::exception const& error) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, error.what());
    } catch (...) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_RuntimeError, "unknown error");
    }
    return nullptr;
}

PyObject* begin(PyObject*, PyObject* make_handles) {
    auto* known = new Known;
    known->make_handles = Py_NewRef(make_handles);
    return PyCapsule_New(known, nullptr, [](PyObject* capsule) {
        delete static_cast<Known*>(PyCapsule_GetPointer(capsule, nullptr));
    });
}

PyObject* call(PyObject*, PyObject* arguments) {
    PyObject *capsule, *inputs;
    if (!PyArg_ParseTuple(arguments, "OO", &capsule, &inputs)) return nullptr;
    Known* known = taken_in(capsule, inputs);
    if (!known) return nullptr;
    return guarded([&] {
        std::array<AtenTensorHandle, NUMBER_OF_RESULTS> results{};
        call_once(known, results);
        return packed(results);
    });
}

// several(known, inputs, many, rows, control): input `control` is contiguous, of doubles, with at least `many` rows; input
// `rows` is a vector of `many` equal parts.
PyObject* several(PyObject*, PyObject* arguments) {
    PyObject *capsule, *inputs;
    Py_ssize_t many, rows, control;
    if (!PyArg_ParseTuple(arguments, "OOnnn", &capsule, &inputs, &many, &rows, &control)) return nullptr;
    Known* known = taken_in(capsule, inputs);
    if (!known) return nullptr;
    return guarded([&]() -> PyObject* {
        void* data;
        int64_t *sizes, *strides, values;
        check(aoti_torch_get_data_ptr(known->handles[control], &data), "read an address");
        check(aoti_torch_get_numel(known->handles[control], &values), "count");
        check(aoti_torch_get_sizes(known->handles[control], &sizes), "read a shape");
        if (many < 1 || sizes[0] < many) throw std::runtime_error("too many steps in a call");
        const int64_t width = values / sizes[0];
        auto* first = static_cast<double*>(data);
        const std::vector<double> before(first, first + values);
        check(aoti_torch_get_sizes(known->handles[rows], &sizes), "read a shape");
        check(aoti_torch_get_strides(known->handles[rows], &strides), "read strides");
        const int64_t length = sizes[0] / many, stride = strides[0];
        std::vector<double> found(many);
        std::array<AtenTensorHandle, NUMBER_OF_RESULTS> results{};
        try {
            for (Py_ssize_t i = 0; i < many; i++) {
                for (auto& result : results) if (result) { aoti_torch_delete_tensor_object(result); result = nullptr; }
                std::copy_n(before.begin() + i * width, width, first);
                AtenTensorHandle part;  // its offset counts from that of the whole
                check(aoti_torch__reinterpret_tensor(known->handles[rows], 1, &length, &stride, i * length * stride, &part),
                      "take a part");
                call_once(known, results, rows, part);
                if (PyErr_Occurred()) throw std::runtime_error("a Python error");
                found[i] = number_in(results[0]);
            }
        } catch (...) {
            std::copy(before.begin(), before.end(), first);
            throw;
        }
        std::copy(before.begin(), before.end(), first);
        PyObject* numbers = PyList_New(many);
        for (Py_ssize_t i = 0; numbers && i < many; i++) PyList_SET_ITEM(numbers, i, PyFloat_FromDouble(found[i]));
        return Py_BuildValue("NN", numbers, packed(results));
    });
}

PyMethodDef methods[] = {
    {"begin", begin, METH_O, ""}, {"call", call, METH_VARARGS, ""}, {"several", several, METH_VARARGS, ""},
    {nullptr, nullptr, 0, nullptr}};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, "@NAME@", nullptr, -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit_@NAME@(void) { return PyModule_Create(&definition); }
"""


def source(inputs: int, results: int) -> str:
    """Return the C++ code for a graph with these numbers of inputs and results.

    Example:
        >>> "PyInit_pyro_vi_compiled" in source(3, 1)
        True
    """
    named = SOURCE.replace("@NAME@", NAME)
    return named.replace("@INPUTS@", str(inputs)).replace("@RESULTS@", str(results))
