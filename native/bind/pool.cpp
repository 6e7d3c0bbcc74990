// The state pool for Python, as `loragraft._native.engine.StatePool`: what the tests drive.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "engine/state_pool.h"
#include "kernels.h"

namespace nb = nanobind;

namespace lg {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutMatrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutVector = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Places = std::vector<std::pair<int64_t, int64_t>>;

void require(bool ok, const char* what) {
    if (!ok) {
        throw std::invalid_argument(std::string("state pool: ") + what);
    }
}

std::vector<RowPlace> rows_of(const Places& places) {
    std::vector<RowPlace> rows;
    for (const auto& [sequence, position] : places) {
        rows.push_back({sequence, position});
    }
    return rows;
}

// A pool and what the shapes of arrays are checked against.
class BoundPool {
  public:
    // layers: (kv_heads, key_dim, value_dim, window) each
    BoundPool(const std::vector<std::tuple<int, int, int, int64_t>>& layers, std::vector<int64_t> state_floats,
              const std::string& type, int64_t max_bytes, const std::string& isa)
        : layers_(shapes(layers)), state_floats_(state_floats),
          pool_(layers_, std::move(state_floats), type_of(type), max_bytes,
                (isa.empty() ? kernels() : kernels(isa.c_str())).pages) {}

    StatePool& pool() { return pool_; }

    void append(ThreadPool& threads, int layer, const Places& places, Matrix k, Matrix v) {
        const LayerShape& s = shape(layer);
        require(k.shape(0) == places.size() && int64_t(k.shape(1)) == int64_t(s.kv_heads) * s.key_dim, "k's shape");
        require(v.shape(0) == places.size() && int64_t(v.shape(1)) == int64_t(s.kv_heads) * s.value_dim, "v's shape");
        nb::gil_scoped_release release;
        pool_.append(threads, layer, rows_of(places), k.data(), v.data());
    }

    void attend(ThreadPool& threads, int layer, const Places& places, Matrix q, OutMatrix y, int heads, float scale,
                float soft_cap, std::optional<Vector> sinks) const {
        const LayerShape& s = shape(layer);
        require(q.shape(0) == places.size() && int64_t(q.shape(1)) == int64_t(heads) * s.key_dim, "q's shape");
        require(y.shape(0) == places.size() && int64_t(y.shape(1)) == int64_t(heads) * s.value_dim, "y's shape");
        require(!sinks || int64_t(sinks->shape(0)) == heads, "one sink for each head");
        const AttentionTask task{q.data(), y.data(), heads, scale, soft_cap, sinks ? sinks->data() : nullptr};
        nb::gil_scoped_release release;
        pool_.attend(threads, layer, task, rows_of(places));
    }

    // What a row at `position` goes on from.
    void get_state(int64_t sequence, int64_t position, int layer, OutVector out) const {
        const float* state = pool_.state_before(sequence, position, layer);
        require(int64_t(out.shape(0)) == state_floats_[size_t(layer)], "the state's size");
        for (size_t i = 0; i < out.shape(0); ++i) {
            out.data()[i] = state ? state[i] : 0.0f;
        }
    }

    void set_state(int64_t sequence, int layer, Vector from) {
        float* state = pool_.state_after(sequence, layer);
        require(int64_t(from.shape(0)) == state_floats_[size_t(layer)], "the state's size");
        std::copy_n(from.data(), from.shape(0), state);
    }

  private:
    static std::vector<LayerShape> shapes(const std::vector<std::tuple<int, int, int, int64_t>>& layers) {
        std::vector<LayerShape> shapes;
        for (const auto& [kv_heads, key_dim, value_dim, window] : layers) {
            shapes.push_back({kv_heads, key_dim, value_dim, window});
        }
        return shapes;
    }
    static KvType type_of(const std::string& name) {
        require(name == "f32" || name == "f16" || name == "q8_0", "keys and values are f32, f16 or q8_0");
        return name == "f32" ? KvType::F32 : name == "f16" ? KvType::F16 : KvType::Q8_0;
    }
    const LayerShape& shape(int layer) const {
        require(layer >= 0 && size_t(layer) < layers_.size(), "no such layer");
        return layers_[size_t(layer)];
    }

    const std::vector<LayerShape> layers_;
    const std::vector<int64_t> state_floats_;
    StatePool pool_;
};

} // namespace
} // namespace lg

void bind_pool(nb::module_& m) {
    using namespace lg;
    nb::register_exception_translator([](const std::exception_ptr& p, void*) {
        try {
            std::rethrow_exception(p);
        } catch (const PoolFull& e) {
            PyErr_SetString(PyExc_MemoryError, e.what());
        }
    });
    nb::class_<BoundPool>(m, "StatePool")
        .def(nb::init<const std::vector<std::tuple<int, int, int, int64_t>>&, std::vector<int64_t>, const std::string&,
                      int64_t, const std::string&>(),
             nb::arg("layers"), nb::arg("state_floats"), nb::arg("type"), nb::arg("max_bytes") = 0,
             nb::arg("isa") = "")
        .def("open", [](BoundPool& p) { return p.pool().open(); })
        .def("fork", [](BoundPool& p, int64_t sequence, int64_t length) { return p.pool().fork(sequence, length); })
        .def("truncate", [](BoundPool& p, int64_t sequence, int64_t length) { p.pool().truncate(sequence, length); })
        .def("close", [](BoundPool& p, int64_t sequence) { p.pool().close(sequence); })
        .def("length", [](BoundPool& p, int64_t sequence) { return p.pool().length(sequence); })
        .def_prop_ro("bytes", [](BoundPool& p) { return p.pool().bytes(); })
        .def("reserve", [](BoundPool& p, const Places& tokens) { p.pool().reserve(tokens); })
        .def("advance", [](BoundPool& p, const Places& tokens) { p.pool().advance(tokens); })
        .def("append", &BoundPool::append)
        .def("attend", &BoundPool::attend, nb::arg("pool"), nb::arg("layer"), nb::arg("rows"), nb::arg("q"),
             nb::arg("y"), nb::arg("heads"), nb::arg("scale"), nb::arg("soft_cap") = 0.0f,
             nb::arg("sinks").none() = nb::none())
        .def("get_state", &BoundPool::get_state)
        .def("set_state", &BoundPool::set_state);
}
