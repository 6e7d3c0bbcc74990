// How Python's arrays come into the core.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

namespace lg {

template <typename T, int Axes>
using Array = nanobind::ndarray<T, nanobind::ndim<Axes>, nanobind::c_contig, nanobind::device::cpu>;

using Matrix = Array<const float, 2>;
using OutMatrix = Array<float, 2>;
using Vector = Array<const float, 1>;
using Ids = Array<const int32_t, 1>;
using Rows8 = Array<const uint8_t, 2>;

} // namespace lg
