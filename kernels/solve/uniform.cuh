// The sum of the tasks' gradients, or their mean where the number is 1, as surgery/methods/uniform.rs.
#pragma once

#include "problem.cuh"

namespace solve {

__device__ __forceinline__ void uniform(Set& set) { set.fill(set.weights, set.number(0) != 0.0 ? 1.0 / set.count : 1.0); }

}  // namespace solve
