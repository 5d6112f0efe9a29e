// Surgery and clipping on the device: from Gram matrices to one factor per set of weights and task, in f64, so that a round needs no
// read by the host. As surgery/methods and train/solve.rs.
//
// A kernel for each method, with a block for each set; then `surgery_finish`. Floor: some T^3 multiply-adds a set, T^2 doubles:
// microseconds, bound by latency.
#include "solve/aligned_mtl.cuh"
#include "solve/config.cuh"
#include "solve/db_mtl.cuh"
#include "solve/dualproj.cuh"
#include "solve/fairgrad.cuh"
#include "solve/finish.cuh"
#include "solve/gradnorm.cuh"
#include "solve/gradvac.cuh"
#include "solve/imtl_g.cuh"
#include "solve/mgda.cuh"
#include "solve/nash_mtl.cuh"
#include "solve/pcgrad.cuh"
#include "solve/uniform.cuh"

// In: a problem, whose rows are described in solve/problem.cuh.
// Out: weights and statuses, and what the method remembers. Where the round is halted nothing changes.
extern "C" __global__ void __launch_bounds__(128, 1) surgery_aligned_mtl(const solve::Problem* problem) {
    solve::run<solve::aligned_mtl>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_config(const solve::Problem* problem) {
    solve::run<solve::config>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_db_mtl(const solve::Problem* problem) {
    solve::run<solve::db_mtl>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_dualproj(const solve::Problem* problem) {
    solve::run<solve::dualproj>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_fairgrad(const solve::Problem* problem) {
    solve::run<solve::fairgrad>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_gradnorm(const solve::Problem* problem) {
    solve::run<solve::gradnorm>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_gradvac(const solve::Problem* problem) {
    solve::run<solve::gradvac>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_imtl_g(const solve::Problem* problem) {
    solve::run<solve::imtl_g>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_mgda(const solve::Problem* problem) {
    solve::run<solve::mgda>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_nash_mtl(const solve::Problem* problem) {
    solve::run<solve::nash_mtl>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_pcgrad(const solve::Problem* problem) {
    solve::run<solve::pcgrad>(problem);
}

extern "C" __global__ void __launch_bounds__(128, 1) surgery_uniform(const solve::Problem* problem) {
    solve::run<solve::uniform>(problem);
}

// In: a problem with its weights.
// Out: weights on the run's scale; factors, shared_factors, head_factors and summary. If anything is not finite only `summary` and
// `halted` change. What is halted stays so until the host clears it: a round that was given to the device before the host had read the
// one before changes nothing either.
extern "C" __global__ void __launch_bounds__(256) surgery_finish(const solve::Problem* problem) {
    __shared__ double warps[kWarp];
    solve::finish(*problem, warps);
}
