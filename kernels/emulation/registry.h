// Calls a kernel by the driver's convention: an array of pointers to its arguments.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct TaskloomKernel {
    const char* name;
    void (*call)(void** arguments);
    uint32_t count;
    // (count) bytes of each argument
    const uint32_t* sizes;
};

template <size_t...>
struct TaskloomIndices {};
template <size_t N, size_t... Rest>
struct TaskloomCount : TaskloomCount<N - 1, N - 1, Rest...> {};
template <size_t... All>
struct TaskloomCount<0, All...> {
    using Indices = TaskloomIndices<All...>;
};

template <auto kernel>
struct TaskloomCall;

template <typename... Arguments, void (*kernel)(Arguments...)>
struct TaskloomCall<kernel> {
    static constexpr uint32_t sizes[sizeof...(Arguments) + 1] = {sizeof(Arguments)..., 0};

    template <size_t... At>
    __attribute__((no_sanitize("thread"))) static void spread(void** arguments, TaskloomIndices<At...>) {
        kernel(*static_cast<Arguments*>(arguments[At])...);
    }
    __attribute__((no_sanitize("thread"))) static void call(void** arguments) { spread(arguments, typename TaskloomCount<sizeof...(Arguments)>::Indices()); }
    static constexpr TaskloomKernel entry(const char* name) { return {name, call, sizeof...(Arguments), sizes}; }
};
