/* A CUDA runtime whose device memory is the host's, kept apart by a table: it really moves bytes, late (a stream
   runs when it is waited for), counts calls, and fails where FAKE_CUDA_FAIL says: NAME=CODE, NAME=CODE@N for the
   N-th call. FAKE_CUDA_GPUS, FAKE_CUDA_CC, FAKE_CUDA_DRIVER and FAKE_CUDA_MEMORY describe the machine. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELD = 256, QUEUED = 64, FUNCTIONS = 64 };
typedef struct { void *address; size_t size; char kind; } Block;
typedef struct { void *target; const void *source; size_t size; int (*run)(void); } Work;
static Block held[HELD];
static struct { char name[48]; int calls; } functions[FUNCTIONS];
static Work queue[QUEUED];
static int queued = 0, sticky = 0, streams = 0, device = 0;
static size_t used = 0;
static int stream_object;

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

int fake_calls(const char *name) {
    for (int i = 0; i < FUNCTIONS; i++)
        if (!strcmp(functions[i].name, name)) return functions[i].calls;
    return 0;
}
int fake_held(void) {
    int count = streams;
    for (int i = 0; i < HELD; i++) count += held[i].address != NULL;
    return count;
}
int fake_device(void) { return device; }
void fake_reset(void) {
    memset(functions, 0, sizeof functions);
    queued = sticky = 0;
}

/* Count a call; give the code that it is to fail with. */
static int status(const char *name) {
    int calls = 0;
    for (int i = 0; i < FUNCTIONS; i++) {
        if (!functions[i].name[0]) strcpy(functions[i].name, name);
        if (!strcmp(functions[i].name, name)) { calls = ++functions[i].calls; break; }
    }
    if (sticky) return sticky;
    const char *failing = getenv("FAKE_CUDA_FAIL");
    size_t length = strlen(name);
    if (!failing || strncmp(failing, name, length) || failing[length] != '=') return 0;
    const char *at = strchr(failing, '@');
    return !at || atoi(at + 1) == calls ? atoi(failing + length + 1) : 0;
}
static int hold(void **pointer, size_t size, char kind) {
    for (int i = 0; i < HELD; i++)
        if (!held[i].address) {
            held[i] = (Block){malloc(size ? size : 1), size, kind};
            *pointer = held[i].address;
            memset(*pointer, 0xA5, size);
            return 0;
        }
    return 2;
}
static int let_go(void *pointer, char kind) {
    for (int i = 0; i < HELD; i++)
        if (held[i].address == pointer && held[i].kind == kind) {
            if (kind == 'd') used -= held[i].size;
            free(pointer);
            held[i].address = NULL;
            return 0;
        }
    return 1; /* cudaErrorInvalidValue: freed twice, or of the other kind */
}
/* Whether all of a range lies in one block of a kind: 'd' of the device, 'h' pinned. */
static int lies_in(const void *pointer, size_t size, char kind) {
    for (int i = 0; i < HELD; i++) {
        const char *start = held[i].address, *place = pointer;
        if (start && held[i].kind == kind && place >= start && place + size <= start + held[i].size) return 1;
    }
    return 0;
}

const char *cudaGetErrorName(int code) {
    return code == 2 ? "cudaErrorMemoryAllocation" : code == 700 ? "cudaErrorIllegalAddress" : "cudaErrorOther";
}
const char *cudaGetErrorString(int code) {
    return code == 2     ? "out of memory"
           : code == 700 ? "an illegal memory access was encountered"
           : code == 719 ? "unspecified launch failure"
                         : "some other error";
}
int cudaDriverGetVersion(int *version) { *version = (int)setting("FAKE_CUDA_DRIVER", 13000); return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return 0; }
int cudaGetDeviceCount(int *count) {
    int code = status("cudaGetDeviceCount");
    if (code) return code;
    if (setting("FAKE_CUDA_DRIVER", 13000) < 12000) return 35;
    *count = (int)setting("FAKE_CUDA_GPUS", 2);
    return *count ? 0 : 100;
}
int cudaSetDevice(int number) {
    int code = status("cudaSetDevice");
    if (code) return code;
    if (number >= setting("FAKE_CUDA_GPUS", 2)) return 101;
    device = number;
    return 0;
}
int cudaGetDeviceProperties(char *properties, int number) {
    int code = status("cudaGetDeviceProperties");
    if (code) return code;
    snprintf(properties, 256, number ? "Fake GPU B" : "Fake GPU A");
    memset(properties + 256, 0x11 * (number + 1), 16);
    memset(properties + 272, 0xFF, 800);
    return 0;
}
int cudaDeviceGetPCIBusId(char *text, int size, int number) {
    snprintf(text, (size_t)size, "0000:%02X:00.0", 0x3B + number);
    return status("cudaDeviceGetPCIBusId");
}
int cudaDeviceGetAttribute(int *value, int attribute, int number) {
    long capability = setting("FAKE_CUDA_CC", 87);
    (void)number;
    *value = (int)(attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 1);
    return status("cudaDeviceGetAttribute");
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *total = (size_t)setting("FAKE_CUDA_MEMORY", 1 << 30);
    *free_bytes = *total - used;
    return status("cudaMemGetInfo");
}
int cudaMalloc(void **pointer, size_t size) {
    int code = status("cudaMalloc");
    if (!code && used + size > (size_t)setting("FAKE_CUDA_MEMORY", 1 << 30)) code = 2;
    if (code) return code;
    used += size;
    return hold(pointer, size, 'd');
}
int cudaFree(void *pointer) { int code = status("cudaFree"), done = let_go(pointer, 'd'); return code ? code : done; }
int cudaMallocHost(void **pointer, size_t size) {
    int code = status("cudaMallocHost");
    return code ? code : hold(pointer, size, 'h');
}
int cudaFreeHost(void *pointer) {
    int code = status("cudaFreeHost"), done = let_go(pointer, 'h');
    return code ? code : done;
}
int cudaStreamCreateWithFlags(void **stream, unsigned int flags) {
    int code = status("cudaStreamCreateWithFlags");
    if (code) return code;
    streams++;
    *stream = &stream_object;
    return flags == 1 ? 0 : 1;
}
int cudaStreamDestroy(void *stream) {
    int code = status("cudaStreamDestroy");
    if (stream != &stream_object || !streams) return 1;
    streams--;
    return code;
}
static int enqueue(Work work) {
    if (queued == QUEUED) return 2;
    queue[queued++] = work;
    return 0;
}
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    int code = status("cudaMemcpyAsync");
    if (code) return code;
    if (stream != &stream_object) return 1;
    if (!lies_in(target, size, kind == 1 ? 'd' : 'h') || !lies_in(source, size, kind == 1 ? 'h' : 'd')) return 1;
    return enqueue((Work){target, source, size, NULL});
}
/* What a fake engine puts into the stream. */
int fake_launch(int (*run)(void)) { return enqueue((Work){NULL, NULL, 0, run}); }
int cudaStreamSynchronize(void *stream) {
    int code = status("cudaStreamSynchronize");
    if (stream != &stream_object) return 1;
    for (int i = 0; !code && i < queued; i++) {
        if (queue[i].run) code = queue[i].run();
        else memcpy(queue[i].target, queue[i].source, queue[i].size);
    }
    queued = 0;
    if (code >= 700) sticky = code;
    return code;
}
