// Programs for Python: `loragraft._native.engine.Program`, which backends/cpu/program.py builds step by step.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bind/arrays.h"
#include "bind/weight.h"
#include "engine/program.h"
#include "kernels.h"

namespace nb = nanobind;

namespace lg {
namespace {

std::vector<float> floats(const std::optional<Vector>& array) {
    return array ? std::vector<float>(array->data(), array->data() + array->size()) : std::vector<float>();
}

KvType kv_type(const std::string& name) {
    require(name == "f32" || name == "f16" || name == "q8_0", "keys and values are f32, f16 or q8_0");
    return name == "f32" ? KvType::F32 : name == "f16" ? KvType::F16 : KvType::Q8_0;
}

Rounding rounding(const std::string& name) {
    require(name == "f32" || name == "q8" || name == "nvfp4", "activations are f32, q8 or nvfp4");
    return name == "f32" ? Rounding::F32 : name == "q8" ? Rounding::Q8 : Rounding::NVFP4;
}

Gating gating_of(const std::string& name) {
    require(name.empty() || name == "softmax" || name == "sigmoid", "gating is softmax or sigmoid");
    return name.empty() ? Gating::NONE : name == "softmax" ? Gating::SOFTMAX : Gating::SIGMOID;
}

Gates gates_of(const std::string& name) {
    require(name == "softmax" || name == "sigmoid" || name == "sparse_mixer", "no such gates");
    return name == "softmax" ? Gates::SOFTMAX : name == "sigmoid" ? Gates::SIGMOID : Gates::SPARSE_MIXER;
}

std::vector<LayerShape> shapes(const std::vector<std::tuple<int, int, int, int64_t>>& layers) {
    std::vector<LayerShape> shapes;
    for (const auto& [kv_heads, key_dim, value_dim, window] : layers) {
        shapes.push_back({kv_heads, key_dim, value_dim, window});
    }
    return shapes;
}

Unary unary(const std::string& name, float a, float b) {
    const EngineKernels& k = kernels().engine;
    const std::map<std::string, Unary> known{
        {"silu", k.silu},
        {"sigmoid", k.sigmoid},
        {"gelu_tanh", k.gelu_tanh},
        {"gelu_erf", k.gelu_erf},
        {"softplus", k.softplus},
        {"soft_cap", [f = k.soft_cap, a](const float* x, float* y, int64_t n) { f(x, y, n, a); }},
        {"clamp", [f = k.clamp, a, b](const float* x, float* y, int64_t n) { f(x, y, n, a, b); }},
    };
    const auto found = known.find(name);
    require(found != known.end(), "no such function of one value");
    return found->second;
}

Binary binary(const std::string& name) {
    const EngineKernels& k = kernels().engine;
    const std::map<std::string, Binary> known{{"add", k.add}, {"mul", k.mul}, {"silu_mul", k.silu_mul}};
    const auto found = known.find(name);
    require(found != known.end(), "no such function of two values");
    return found->second;
}

int attention(Program& p, Value q, Value k, Value v, Value y, int layer, int heads, float scale, float soft_cap,
              std::optional<Vector> sinks, std::optional<Vector> slopes, int64_t chunk) {
    require(layer >= 0 && size_t(layer) < p.layers().size(), "attention: no such layer");
    const LayerShape& shape = p.layers()[size_t(layer)];
    require(heads > 0 && heads % shape.kv_heads == 0, "attention: heads");
    require(q.width == int64_t(heads) * shape.key_dim && k.width == int64_t(shape.kv_heads) * shape.key_dim,
            "attention: widths of q and k");
    require(v.width == int64_t(shape.kv_heads) * shape.value_dim && y.width == int64_t(heads) * shape.value_dim,
            "attention: widths of v and y");
    return p.add(attention_step(q, k, v, y, layer, heads, scale, soft_cap, floats(sinks), floats(slopes), chunk));
}

using Heads = std::tuple<int64_t, int64_t, int64_t, int64_t, bool>;

ScanShape scan_shape(const Heads& heads) {
    const auto& [own, key_heads, key_dim, value_dim, tiled] = heads;
    return {own, key_heads, key_dim, value_dim, tiled};
}

using AdaptedLayer = std::tuple<int, int64_t, float, Array<const float, 3>>;

// A step's A, in stacks; each with the layers that it is of.
void add_linear(Adapter& adapter, int step,
                const std::vector<std::tuple<Array<const float, 3>, bool, std::vector<AdaptedLayer>>>& stacks) {
    require(!stacks.empty(), "adapter: no A");
    const auto& first_a = std::get<0>(stacks.front());
    const size_t experts = first_a.shape(0), cols = first_a.shape(2);
    for (const auto& [a, q8, layers] : stacks) {
        require(a.shape(0) == experts && a.shape(2) == cols, "adapter: A's shape");
        int64_t last = 0;
        for (const auto& [layer, first, scale, b] : layers) {
            require(b.shape(0) == experts && first == last, "adapter: B's shape");
            last = first + int64_t(b.shape(2));
        }
        require(last == int64_t(a.shape(1)), "adapter: ranks of A and B");
    }
    StepLora& lora = adapter.linear(step, int64_t(experts), int64_t(cols));
    for (const auto& [a, q8, layers] : stacks) {
        adapter.stack(lora, a.data(), int64_t(a.shape(1)), q8);
        for (const auto& [layer, first, scale, b] : layers) {
            adapter.layer(lora, layer, first, scale, b.data(), int64_t(b.shape(1)), int64_t(b.shape(2)));
        }
    }
}

void add_embed(Adapter& adapter, int step, Matrix a, Matrix b, float scale) {
    require(a.shape(0) == b.shape(1), "adapter: ranks of A and B");
    EmbedLora lora{int64_t(a.shape(0)), int64_t(a.shape(1)), int64_t(b.shape(0)), scale, {}, {}};
    lora.a.assign(a.data(), a.data() + a.size());
    lora.b.assign(b.data(), b.data() + b.size());
    adapter.embed(step, std::move(lora));
}

// Runs a batch; the output's rows are written to `output`. `look`: called with a step's number, its x and the experts'
// ids, as arrays that are valid during the call.
void run(Program& p, Ids tokens, Array<const int64_t, 1> sequences, Ids positions, Array<const bool, 1> wants, Ids sets_of,
         const std::vector<const AdapterSet*>& sets, std::optional<Matrix> hidden, Value value, OutMatrix output,
         nb::object look) {
    Rows rows;
    rows.count = int64_t(tokens.shape(0));
    for (size_t size : {sequences.shape(0), positions.shape(0), wants.shape(0), sets_of.shape(0)}) {
        require(int64_t(size) == rows.count, "run: a value for each row");
    }
    int64_t wanted = 0;
    for (int64_t row = 0; row < rows.count; ++row) {
        wanted += wants.data()[row];
    }
    require(int64_t(output.shape(0)) == (value.space == WANTED ? wanted : rows.count)
                && int64_t(output.shape(1)) == value.width,
            "run: the output's shape");
    rows.tokens = tokens.data();
    rows.sequences = sequences.data();
    rows.positions = positions.data();
    rows.wants = reinterpret_cast<const uint8_t*>(wants.data());
    rows.sets = sets_of.data();
    if (hidden) {
        require(int64_t(hidden->shape(0)) == rows.count, "run: a hidden row for each row");
        rows.hidden = hidden->data();
        rows.hidden_width = int64_t(hidden->shape(1));
    }
    Look shown;
    if (!look.is_none()) {
        shown = [&look](int step, const float* x, int64_t n, int64_t each, int64_t cols, const int32_t* ids, int64_t used) {
            nb::gil_scoped_acquire acquire;
            const size_t size[3] = {size_t(n), each == 1 ? size_t(cols) : size_t(each), size_t(cols)};
            nb::ndarray<nb::numpy, const float> seen(x, each == 1 ? 2 : 3, size, nb::handle());
            nb::object chosen = nb::none();
            if (ids) {
                const size_t shape[2] = {size_t(n), size_t(used)};
                chosen = nb::cast(nb::ndarray<nb::numpy, const int32_t>(ids, 2, shape, nb::handle()),
                                  nb::rv_policy::reference);
            }
            look(step, nb::cast(seen, nb::rv_policy::reference), chosen);
        };
    }
    nb::gil_scoped_release release;
    p.run(rows, sets, value, output.data(), shown ? &shown : nullptr);
}

} // namespace
} // namespace lg

void bind_program(nb::module_& m) {
    using namespace lg;
    m.def("scan_floats", [](const Heads& heads) { return scan_floats(scan_shape(heads)); }, nb::arg("heads"),
          "Of the state of a scan: (heads, key_heads, key_dim, value_dim, tiled).");
    nb::class_<Value>(m, "Value")
        .def(
            "__init__",
            [](Value* v, int64_t id, int64_t offset, int64_t width, bool wanted) {
                new (v) Value{id, offset, width, wanted ? WANTED : ALL};
            },
            nb::arg("id"), nb::arg("offset"), nb::arg("width"), nb::arg("wanted"));
    nb::class_<LayerSite>(m, "LayerSite")
        .def(
            "__init__",
            [](LayerSite* site, const BoundWeight& weight, Value y, std::optional<Vector> scale,
               std::optional<Vector> bias, float arch_scale, std::optional<Vector> input_scale) {
                new (site) LayerSite{&weight, y, floats(scale), floats(bias), floats(input_scale), arch_scale};
            },
            nb::keep_alive<1, 2>(), nb::arg("weight"), nb::arg("y"), nb::arg("scale").none(), nb::arg("bias").none(),
            nb::arg("arch_scale"), nb::arg("input_scale").none());
    nb::class_<RopeTable>(m, "RopeTable");
    nb::class_<Adapter>(m, "Adapter")
        .def(nb::init<>())
        .def("linear", &add_linear, nb::arg("step"), nb::arg("stacks"))
        .def("embed", &add_embed, nb::arg("step"), nb::arg("a"), nb::arg("b"), nb::arg("scale"));
    nb::class_<AdapterSet>(m, "AdapterSet")
        .def(nb::init<const std::vector<std::pair<const Adapter*, double>>&>(), nb::keep_alive<1, 2>(),
             nb::arg("members"))
        .def(
            "rescale",
            [](AdapterSet& set, int step, size_t member, size_t layer, Array<const float, 3> b) {
                set.rescale(step, member, layer, b.data(), int64_t(b.shape(0)), int64_t(b.shape(1)),
                            int64_t(b.shape(2)));
            },
            nb::arg("step"), nb::arg("member"), nb::arg("layer"), nb::arg("b"))
        .def(
            "dora",
            [](AdapterSet& set, int step, size_t layer, Vector factors) { set.dora(step, layer, floats(factors)); },
            nb::arg("step"), nb::arg("layer"), nb::arg("factors"));
    nb::class_<Program>(m, "Program")
        .def(
            "__init__",
            [](Program* p, int threads, const std::string& activations, int64_t floats_per_row,
               const std::vector<std::tuple<int, int, int, int64_t>>& layers, std::vector<int64_t> state_floats,
               const std::string& keys_values, int64_t max_bytes) {
                require(floats_per_row >= 0 && max_bytes >= 0, "program: sizes");
                new (p) Program(threads, rounding(activations), floats_per_row, shapes(layers),
                                std::move(state_floats), kv_type(keys_values), max_bytes);
            },
            nb::arg("threads"), nb::arg("activations"), nb::arg("floats_per_row"), nb::arg("layers"),
            nb::arg("state_floats"), nb::arg("keys_values"), nb::arg("max_bytes"))
        // ---- building; each returns the step's number ----
        .def(
            "embed",
            [](Program& p, const BoundWeight& w, Value y, bool by_position, float scale, float arch_scale) {
                return p.add(embed_step(p.next(), &w, y, by_position, scale, arch_scale));
            },
            nb::keep_alive<1, 2>())
        .def("hidden", [](Program& p, Value y) { return p.add(hidden_step(y)); })
        .def("last", [](Program& p, Value x, Value y) { return p.add(last_step(x, y)); })
        .def(
            "linear",
            [](Program& p, Value x, std::optional<Value> ids, std::vector<LayerSite> layers) {
                return p.add(linear_step(p.next(), x, ids ? &*ids : nullptr, std::move(layers)));
            },
            nb::keep_alive<1, 4>(), nb::arg("x"), nb::arg("ids").none(), nb::arg("layers"))
        .def("rms_norm", [](Program& p, Value x, Value y, Vector w, int64_t group, float eps) {
            return p.add(rms_norm_step(x, y, floats(w), group, eps));
        })
        .def(
            "layer_norm",
            [](Program& p, Value x, Value y, Vector w, std::optional<Vector> b, float eps) {
                return p.add(layer_norm_step(x, y, floats(w), floats(b), eps));
            },
            nb::arg("x"), nb::arg("y"), nb::arg("w"), nb::arg("b").none(), nb::arg("eps"))
        .def(
            "unary",
            [](Program& p, const std::string& name, Value x, Value y, float a, float b) {
                return p.add(unary_step(x, y, unary(name, a, b)));
            },
            nb::arg("name"), nb::arg("x"), nb::arg("y"), nb::arg("a") = 0.0f, nb::arg("b") = 0.0f)
        .def("affine", [](Program& p, Value x, Value y, float factor, float shift) {
            return p.add(affine_step(x, y, factor, shift));
        })
        .def("binary", [](Program& p, const std::string& name, Value a, Value b, Value y) {
            return p.add(binary_step(a, b, y, binary(name)));
        })
        .def("mul_rows", [](Program& p, Value a, Value b, Value y) { return p.add(mul_rows_step(a, b, y)); })
        .def("match_rms", [](Program& p, Value x, Value y, Value to, int64_t n, float least) {
            return p.add(match_rms_step(x, y, to, n, least));
        })
        .def("gaussian_top_k", [](Program& p, Value x, Value to, int64_t n, float deviations) {
            return p.add(gaussian_top_k_step(x, to, n, deviations));
        })
        .def("channel_scale", [](Program& p, Value x, Value y, Vector weight) {
            return p.add(channel_scale_step(x, y, floats(weight)));
        })
        .def("split", [](Program& p, Value x, Value y, int64_t parts, int64_t start) {
            return p.add(split_step(x, y, parts, start));
        })
        .def("concat", [](Program& p, Value a, Value b, Value y, int64_t parts) {
            return p.add(concat_step(a, b, y, parts));
        })
        .def("all_experts", [](Program& p, Value ids) { return p.add(all_experts_step(ids)); })
        .def("top_k", [](Program& p, Value logits, Value ids) { return p.add(top_k_step(logits, ids)); })
        .def(
            "choose",
            [](Program& p, Value logits, Value ids, const std::string& gating, std::optional<Vector> bias,
               int64_t groups, int64_t groups_used, int64_t best) {
                return p.add(choice_step(logits, ids, {gating_of(gating), floats(bias), groups, groups_used, best}));
            },
            nb::arg("logits"), nb::arg("ids"), nb::arg("gating"), nb::arg("bias").none(), nb::arg("groups"),
            nb::arg("groups_used"), nb::arg("best"))
        .def("position_scale",
             [](Program& p, Value x, Value y, double length, double offset, double slope) {
                 return p.add(position_scale_step(x, y, length, offset, slope));
             })
        .def("xielu",
             [](Program& p, Value x, Value y, float alpha_p, float alpha_n, float beta, float eps) {
                 return p.add(xielu_step(x, y, alpha_p, alpha_n, beta, eps));
             })
        .def("route",
             [](Program& p, Value logits, Value ids, Value weights, const std::string& gates, bool normalize,
                float scale, float margin) {
                 return p.add(route_step(logits, ids, weights, gates_of(gates), normalize, scale, margin));
             })
        .def("experts_sum",
             [](Program& p, Value y, Value weights, Value sum) { return p.add(experts_sum_step(y, weights, sum)); })
        .def(
            "rope_table",
            [](Program& p, Array<const double, 1> per_position, double magnitude) {
                return p.rope_table({per_position.data(), per_position.data() + per_position.size()}, magnitude);
            },
            nb::rv_policy::reference_internal)
        .def("rope", [](Program& p, Value x, Value y, const RopeTable& table, int heads, bool adjacent) {
            return p.add(rope_step(x, y, &table, heads, adjacent));
        })
        .def("attention", &attention, nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("y"), nb::arg("layer"),
             nb::arg("heads"), nb::arg("scale"), nb::arg("soft_cap"), nb::arg("sinks").none(),
             nb::arg("slopes").none() = nb::none(), nb::arg("chunk") = 0)
        .def("time_step", [](Program& p, Value x, Value y, Vector bias, float low, float high) {
            return p.add(time_step(x, y, floats(bias), low, high));
        })
        .def(
            "short_conv",
            [](Program& p, Value x, Value y, int state, Matrix w, std::optional<Vector> bias) {
                return p.add(short_conv_step(x, y, state, {w.data(), w.data() + w.size()}, floats(bias),
                                             int(w.shape(1))));
            },
            nb::arg("x"), nb::arg("y"), nb::arg("state"), nb::arg("w"), nb::arg("bias").none())
        .def(
            "scan",
            [](Program& p, Value q, Value k, Value v, Value rate, std::optional<Value> beta, Value y, int state,
               const Heads& heads, Vector decay, std::optional<Vector> skip) {
                ScanValues values{q, k, v, rate, beta ? *beta : Value{}, y, beta.has_value()};
                return p.add(scan_step(values, scan_shape(heads), state, floats(decay), floats(skip)));
            },
            nb::arg("q"), nb::arg("k"), nb::arg("v"), nb::arg("rate"), nb::arg("beta").none(), nb::arg("y"),
            nb::arg("state"), nb::arg("heads"), nb::arg("decay"), nb::arg("skip").none())
        // ---- running ----
        .def("check", [](Program& p, const AdapterSet& set) { p.check(set); })
        .def_prop_ro("threads", [](Program& p) -> ThreadPool& { return p.threads(); },
                     nb::rv_policy::reference_internal)
        .def("open", [](Program& p) { return p.states().open(); })
        .def("fork", [](Program& p, int64_t sequence, int64_t length) { return p.states().fork(sequence, length); })
        .def("truncate", [](Program& p, int64_t sequence, int64_t length) { p.states().truncate(sequence, length); })
        .def("close", [](Program& p, int64_t sequence) { p.states().close(sequence); })
        .def_prop_ro("bytes", [](Program& p) { return p.states().bytes(); })
        .def("run", &run, nb::arg("tokens"), nb::arg("sequences"), nb::arg("positions"), nb::arg("wants"),
             nb::arg("sets_of"), nb::arg("sets"), nb::arg("hidden").none(), nb::arg("value"), nb::arg("output"),
             nb::arg("look").none());
}
