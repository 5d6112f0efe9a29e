// A CUDA driver's library whose calls succeed and do nothing: what a round takes on it is the host's own time. Results are ones, so a run
// goes on; it learns nothing. When the program ends it says how many graphs and kernels it was given.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t address = 0x700000000000ull;
static long handles = 1, graphs, kernels;

static void *handle(void) { return (void *)(16 * ++handles); }

__attribute__((destructor)) static void say(void) {
    if (graphs || kernels) {
        fprintf(stderr, "null driver: %ld graphs, %ld kernels one by one\n", graphs, kernels);
    }
}

#define NOTHING(name) \
    int name(void) { return 0; }

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0, 0; }
int cuDeviceGetName(char *name, int room, int device) { return strncpy(name, "null", room), 0; }
// 132 multiprocessors (attribute 16), compute capability 9.0 (75 and 76).
int cuDeviceGetAttribute(int *value, int which, int device) {
    return *value = which == 16 ? 132 : which == 75 ? 9 : which == 76 ? 0 : 1, 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = handle(), 0; }
int cuCtxGetCurrent(void **context) { return *context = (void *)16, 0; }
int cuCtxGetDevice(int *device) { return *device = 0, 0; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = *total = 80ull << 30, 0; }
int cuMemAlloc_v2(uint64_t *at, size_t bytes) {
    *at = address;
    address += (bytes + 1023) / 512 * 512;
    return 0;
}
int cuMemHostAlloc(void **at, size_t bytes, unsigned flags) { return posix_memalign(at, 4096, bytes ? bytes : 1) ? 2 : 0; }
int cuMemFreeHost(void *at) { return free(at), 0; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    if (bytes % 8 == 0) {
        for (size_t i = 0; i < bytes / 8; ++i) ((double *)to)[i] = 1.0;
    } else {
        memset(to, 0, bytes);
    }
    return 0;
}
int cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return *stream = handle(), 0; }
int cuEventCreate(void **event, unsigned flags) { return *event = handle(), 0; }
int cuEventElapsedTime(float *ms, void *from, void *to) { return *ms = 0.1f, 0; }
int cuEventElapsedTime_v2(float *ms, void *from, void *to) { return *ms = 0.1f, 0; }
int cuModuleLoadData(void **module, const void *image) { return *module = handle(), 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) { return *function = handle(), 0; }
int cuTensorMapEncodeTiled(void *map) { return memset(map, 0, 128), 0; }
int cuStreamEndCapture(void *stream, void **graph) { return *graph = handle(), 0; }
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) { return *made = handle(), 0; }
int cuGetErrorString(int error, const char **text) { return *text = "error", 0; }
int cuGetErrorName(int error, const char **text) { return *text = "error", 0; }
int cuGraphLaunch(void *graph, void *stream) { return ++graphs, 0; }
int cuLaunchKernel(void *function) { return ++kernels, 0; }

NOTHING(cuCtxSetCurrent)
NOTHING(cuDevicePrimaryCtxRelease_v2)
NOTHING(cuDevicePrimaryCtxSetFlags_v2)
NOTHING(cuEventDestroy_v2)
NOTHING(cuEventQuery)
NOTHING(cuEventRecord)
NOTHING(cuEventRecordWithFlags)
NOTHING(cuEventSynchronize)
NOTHING(cuFuncGetAttribute)
NOTHING(cuFuncSetAttribute)
NOTHING(cuGraphDestroy)
NOTHING(cuGraphExecDestroy)
NOTHING(cuMemFree_v2)
NOTHING(cuMemcpyDtoDAsync_v2)
NOTHING(cuMemcpyHtoDAsync_v2)
NOTHING(cuMemsetD8Async)
NOTHING(cuModuleUnload)
NOTHING(cuStreamBeginCapture_v2)
NOTHING(cuStreamDestroy_v2)
NOTHING(cuStreamSynchronize)
NOTHING(cuStreamWaitEvent)
