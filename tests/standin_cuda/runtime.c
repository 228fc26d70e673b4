/* A CUDA runtime and driver without a GPU: memory, streams, events and the rules of capture are kept, kernels are not run.

   For tests of what PyTorch and Triton ask of a GPU: which kernels are launched, what waits for what, what is captured.
   Every call that matters is a line of the file that CUDA_STANDIN_LOG names:

     launch KERNEL        a kernel, launched
     copy KIND BYTES      KIND: htod, dtoh, dtod, htoh
     fill BYTES
     wait WHAT            the host waits for a stream, an event or the device, or for a copy
     allocate BYTES       of the device's memory
     capture N            begins; what follows on its streams is "captured ..." in place of being done
     captured LINE
     instantiated N       and can be replayed
     replay N
     mark WHAT            cudaProfilerStart and cudaProfilerStop: a test's own marks
     refused CALL REASON  what a GPU would have refused, too

   Device memory is memory of the process, zero at first, so that copies and fills are real. Capturing keeps the rules of the
   programming guide: no unsafe calls in global mode, no waits for what is captured, no work between two captures, and at the
   end every stream has been joined. Compiled against CUDA's own headers, which give the layouts. */

#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <driver_types.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define API __attribute__((visibility("default")))
#define MULTIPROCESSORS 132
#define MOST_MEMORY ((size_t)16 << 30) /* CUDA_STANDIN_MEMORY, in bytes, is less */
#define MOST_STREAMS 64 /* in one capture */

/* ---- the log */

static FILE *log_file;
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

__attribute__((constructor)) static void open_log(void) {
    const char *path = getenv("CUDA_STANDIN_LOG");
    if (path) log_file = fopen(path, "a");
    if (log_file) setvbuf(log_file, NULL, _IOLBF, 1 << 14); /* a line at a time: several processes may write */
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
    if (!log_file) return;
    va_list values;
    va_start(values, format);
    vfprintf(log_file, format, values);
    va_end(values);
    fputc('\n', log_file);
}

static __thread cudaError_t last_error;

static cudaError_t failed(cudaError_t error, const char *call, const char *reason) {
    say("refused %s %s", call, reason);
    return last_error = error;
}

/* What is called by the stubs of functions that are not here. */
API int standin_lacks(const char *call) { return failed(cudaErrorNotSupported, call, "not in the stand-in"); }

/* ---- streams, events, captures */

struct graph {
    int number, nodes;
};

struct capture {
    struct graph *graph;
    enum cudaStreamCaptureMode mode;
    pthread_t thread;
    struct CUstream_st *streams[MOST_STREAMS]; /* the first is where it began */
    int num_streams;
    bool is_invalid;
};

struct CUstream_st {
    struct capture *capture;
    int place;               /* among the capture's streams */
    int seen[MOST_STREAMS];  /* of each stream's work, how much is done before what comes next here */
    int flags, priority;
};

struct CUevent_st {
    struct capture *capture;
    int seen[MOST_STREAMS];
    double time_s;
};

static struct CUstream_st legacy, per_thread;
static struct capture *captures[MOST_STREAMS];
static int num_captures, num_graphs;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

static struct CUstream_st *stream_of(cudaStream_t stream) {
    if (stream == 0 || stream == (cudaStream_t)1) return &legacy;
    return stream == (cudaStream_t)2 ? &per_thread : stream;
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static cudaError_t invalidate(struct capture *capture, cudaError_t error, const char *call, const char *reason) {
    capture->is_invalid = true;
    return failed(error, call, reason);
}

/* Refuse what might wait for work that others capture, unless the thread has said that it knows better. */
static cudaError_t check_safe(const char *call) {
    if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
    for (int i = 0; i < num_captures; i++) {
        struct capture *capture = captures[i];
        bool is_own = pthread_equal(capture->thread, pthread_self());
        bool forbids = capture->mode == cudaStreamCaptureModeGlobal
            ? is_own || thread_mode == cudaStreamCaptureModeGlobal
            : capture->mode == cudaStreamCaptureModeThreadLocal && is_own;
        if (forbids) return invalidate(capture, cudaErrorStreamCaptureUnsupported, call, "unsafe while capturing");
    }
    return cudaSuccess;
}

static cudaError_t check_waits(const char *call, struct CUstream_st *stream) {
    if (stream->capture) return invalidate(stream->capture, cudaErrorStreamCaptureUnsupported, call, "of a capturing stream");
    if (stream == &legacy) return check_safe(call);
    return cudaSuccess;
}

/* Take note of work on a stream: done at once, or captured. */
__attribute__((format(printf, 2, 3))) static cudaError_t work(cudaStream_t handle, const char *format, ...) {
    char line[4096];
    va_list values;
    va_start(values, format);
    vsnprintf(line, sizeof line, format, values);
    va_end(values);
    struct CUstream_st *stream = stream_of(handle);
    struct capture *capture = stream->capture;
    if (!capture) {
        if (stream == &legacy)
            for (int i = 0; i < num_captures; i++)
                for (int k = 0; k < captures[i]->num_streams; k++)
                    if (!(captures[i]->streams[k]->flags & cudaStreamNonBlocking))
                        return invalidate(captures[i], cudaErrorStreamCaptureImplicit, line, "the legacy stream while capturing");
        say("%s", line);
        return cudaSuccess;
    }
    if (capture->is_invalid) return failed(cudaErrorStreamCaptureInvalidated, line, "the capture is invalid");
    capture->graph->nodes++;
    stream->seen[stream->place]++;
    say("captured %s", line);
    return cudaSuccess;
}

#define LOCKED(...)                                  \
    do {                                             \
        pthread_mutex_lock(&lock);                   \
        cudaError_t result = (__VA_ARGS__);          \
        pthread_mutex_unlock(&lock);                 \
        return result;                               \
    } while (0)

#define TRY(...)                                     \
    do {                                             \
        cudaError_t error = (__VA_ARGS__);           \
        if (error) return error;                     \
    } while (0)

static cudaError_t new_stream(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = calloc(1, sizeof **stream);
    (*stream)->flags = flags, (*stream)->priority = priority;
    return cudaSuccess;
}
API cudaError_t cudaStreamCreate(cudaStream_t *s) { return new_stream(s, 0, 0); }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { return new_stream(s, flags, 0); }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int p) { return new_stream(s, flags, p); }
API cudaError_t cudaStreamDestroy(cudaStream_t stream) { return (void)stream, cudaSuccess; }
API cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { return *p = stream_of(s)->priority, cudaSuccess; }

static cudaError_t wait_for(const char *call, cudaStream_t stream, bool waits) {
    TRY(check_waits(call, stream_of(stream)));
    if (waits) say("wait stream");
    return cudaSuccess;
}
API cudaError_t cudaStreamSynchronize(cudaStream_t s) { LOCKED(wait_for("cudaStreamSynchronize", s, true)); }
API cudaError_t cudaStreamQuery(cudaStream_t s) { LOCKED(wait_for("cudaStreamQuery", s, false)); }

static cudaError_t wait_for_device(void) {
    TRY(num_captures ? check_safe("cudaDeviceSynchronize") : cudaSuccess);
    say("wait device");
    return cudaSuccess;
}
API cudaError_t cudaDeviceSynchronize(void) { LOCKED(wait_for_device()); }

API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof **event);
    return cudaSuccess;
}
API cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
API cudaError_t cudaEventDestroy(cudaEvent_t event) { return (void)event, cudaSuccess; }

static cudaError_t record(cudaEvent_t event, cudaStream_t handle) {
    struct CUstream_st *stream = stream_of(handle);
    event->capture = stream->capture;
    event->time_s = now_s();
    memcpy(event->seen, stream->seen, sizeof event->seen);
    return cudaSuccess;
}
API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { LOCKED(record(event, stream)); }
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    (void)flags;
    LOCKED(record(event, stream));
}

static cudaError_t wait_for_event(const char *call, cudaEvent_t event, bool waits) {
    if (event->capture) return invalidate(event->capture, cudaErrorCapturedEvent, call, "of a captured event");
    TRY(waits ? cudaSuccess : check_safe(call));
    if (waits) say("wait event");
    return cudaSuccess;
}
API cudaError_t cudaEventSynchronize(cudaEvent_t e) { LOCKED(wait_for_event("cudaEventSynchronize", e, true)); }
API cudaError_t cudaEventQuery(cudaEvent_t e) { LOCKED(wait_for_event("cudaEventQuery", e, false)); }
API cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1e3f * (float)(end->time_s - start->time_s) + 1e-3f;
    return cudaSuccess;
}

static void join(struct capture *capture, struct CUstream_st *stream) {
    if (capture->num_streams == MOST_STREAMS) abort();
    stream->capture = capture;
    stream->place = capture->num_streams;
    memset(stream->seen, 0, sizeof stream->seen);
    capture->streams[capture->num_streams++] = stream;
}

static cudaError_t let_wait(cudaStream_t handle, cudaEvent_t event) {
    struct CUstream_st *stream = stream_of(handle);
    if (!event->capture) {
        if (stream->capture)
            return invalidate(stream->capture, cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent", "of uncaptured work");
        return cudaSuccess;
    }
    if (stream->capture && stream->capture != event->capture)
        return invalidate(stream->capture, cudaErrorStreamCaptureMerge, "cudaStreamWaitEvent", "of another capture");
    if (!stream->capture) join(event->capture, stream);
    for (int i = 0; i < MOST_STREAMS; i++)
        if (event->seen[i] > stream->seen[i]) stream->seen[i] = event->seen[i];
    return cudaSuccess;
}
API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    (void)flags;
    LOCKED(let_wait(stream, event));
}

static cudaError_t begin(cudaStream_t handle, struct graph *graph, enum cudaStreamCaptureMode mode) {
    struct CUstream_st *stream = stream_of(handle);
    if (stream == &legacy) return failed(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture", "on the legacy stream");
    if (stream->capture) return failed(cudaErrorIllegalState, "cudaStreamBeginCapture", "captures already");
    struct capture *capture = calloc(1, sizeof *capture);
    *capture = (struct capture){.graph = graph, .mode = mode, .thread = pthread_self()};
    captures[num_captures++] = capture;
    join(capture, stream);
    say("capture %d", graph->number);
    return cudaSuccess;
}
static struct graph *new_graph(void) {
    struct graph *graph = calloc(1, sizeof *graph);
    graph->number = ++num_graphs;
    return graph;
}
API cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode mode) { LOCKED(begin(s, new_graph(), mode)); }
API cudaError_t cudaStreamBeginCaptureToGraph(
    cudaStream_t s, cudaGraph_t graph, const cudaGraphNode_t *after, const cudaGraphEdgeData *data, size_t n,
    enum cudaStreamCaptureMode mode) {
    (void)after, (void)data, (void)n;
    LOCKED(begin(s, (struct graph *)graph, mode));
}

static cudaError_t end(cudaStream_t handle, cudaGraph_t *graph) {
    struct CUstream_st *origin = stream_of(handle);
    struct capture *capture = origin->capture;
    *graph = NULL;
    if (!capture) return failed(cudaErrorIllegalState, "cudaStreamEndCapture", "captures nothing");
    if (capture->streams[0] != origin)
        return invalidate(capture, cudaErrorStreamCaptureUnmatched, "cudaStreamEndCapture", "began on another stream");
    if (capture->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(capture->thread, pthread_self()))
        return invalidate(capture, cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture", "began in another thread");
    cudaError_t error = capture->is_invalid ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
    for (int i = 0; i < capture->num_streams; i++) {
        if (!error && origin->seen[i] < capture->streams[i]->seen[i]) error = cudaErrorStreamCaptureUnjoined;
        capture->streams[i]->capture = NULL;
    }
    for (int i = 0; i < num_captures; i++)
        if (captures[i] == capture) captures[i] = captures[--num_captures];
    if (error) return failed(error, "cudaStreamEndCapture", error == cudaErrorStreamCaptureUnjoined ? "unjoined work" : "invalid");
    *graph = (cudaGraph_t)capture->graph;
    return cudaSuccess; /* events may still name the capture: it is never freed */
}
API cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph) { LOCKED(end(s, graph)); }

API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

static cudaError_t status_of(
    cudaStream_t handle, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph) {
    struct CUstream_st *stream = stream_of(handle);
    struct capture *capture = stream->capture;
    if (stream == &legacy && num_captures && thread_mode != cudaStreamCaptureModeRelaxed)
        for (int i = 0; i < num_captures; i++)
            if (!(captures[i]->streams[0]->flags & cudaStreamNonBlocking))
                return failed(cudaErrorStreamCaptureImplicit, "cudaStreamIsCapturing", "the legacy stream while capturing");
    *status = !capture ? cudaStreamCaptureStatusNone
        : capture->is_invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    if (capture && id) *id = capture->graph->number;
    if (capture && graph) *graph = (cudaGraph_t)capture->graph;
    return cudaSuccess;
}
API cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
    LOCKED(status_of(s, status, NULL, NULL));
}
static cudaError_t captured_so_far(
    cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **after, size_t *n) {
    if (after) *after = NULL;
    if (n) *n = 0;
    LOCKED(status_of(s, status, id, graph));
}
#if CUDART_VERSION >= 13000 || CUDA_VERSION >= 13000
API cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **after, const cudaGraphEdgeData **data, size_t *n) {
    if (data) *data = NULL;
    return captured_so_far(s, status, id, graph, after, n);
}
#else
API cudaError_t cudaStreamGetCaptureInfo_v2(
    cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **after, size_t *n) {
    return captured_so_far(s, status, id, graph, after, n);
}
#endif

API cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    *made = (cudaGraphExec_t)graph;
    say("instantiated %d", ((struct graph *)graph)->number);
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}
API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiateWithFlags(made, graph, flags);
}
API cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    LOCKED(work(stream, "replay %d", ((struct graph *)graph)->number));
}
API cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *n) {
    (void)nodes;
    *n = ((struct graph *)graph)->nodes;
    return cudaSuccess;
}
API cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return (void)graph, cudaSuccess; }
API cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return (void)graph, cudaSuccess; }
API cudaError_t cudaUserObjectCreate(
    cudaUserObject_t *object, void *pointer, cudaHostFn_t destroy, unsigned count, unsigned flags) {
    (void)pointer, (void)destroy, (void)count, (void)flags;
    return *object = NULL, cudaSuccess;
}
API cudaError_t cudaUserObjectRelease(cudaUserObject_t o, unsigned n) { return (void)o, (void)n, cudaSuccess; }
API cudaError_t cudaGraphRetainUserObject(cudaGraph_t g, cudaUserObject_t o, unsigned n, unsigned flags) {
    return (void)g, (void)o, (void)n, (void)flags, cudaSuccess;
}
API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    if (!stream_of(stream)->capture) function(data);
    LOCKED(work(stream, "host function"));
}

/* ---- memory */

struct block {
    char *start;
    size_t bytes;
    bool is_device;
};
static struct block *blocks;
static int num_blocks, room;
static size_t device_bytes;

static size_t memory(void) {
    const char *bytes = getenv("CUDA_STANDIN_MEMORY");
    return bytes ? strtoull(bytes, NULL, 10) : MOST_MEMORY;
}

static cudaError_t allocate(void **pointer, size_t bytes, bool is_device) {
    if (is_device) {
        TRY(check_safe("cudaMalloc"));
        if (device_bytes + bytes > memory()) return last_error = cudaErrorMemoryAllocation;
        device_bytes += bytes;
        say("allocate %zu", bytes);
    }
    void *start = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED) return last_error = cudaErrorMemoryAllocation;
    if (num_blocks == room) blocks = realloc(blocks, (room = 2 * room + 64) * sizeof *blocks);
    blocks[num_blocks++] = (struct block){start, bytes, is_device};
    *pointer = start;
    return cudaSuccess;
}
static struct block *block_of(const void *pointer) {
    for (int i = 0; i < num_blocks; i++)
        if ((char *)pointer >= blocks[i].start && (char *)pointer < blocks[i].start + (blocks[i].bytes ? blocks[i].bytes : 1))
            return &blocks[i];
    return NULL;
}
static cudaError_t release(void *pointer, bool is_device) {
    if (!pointer) return cudaSuccess;
    if (is_device) TRY(check_safe("cudaFree"));
    struct block *block = block_of(pointer);
    if (!block) return failed(cudaErrorInvalidValue, "cudaFree", "of no allocation");
    if (block->is_device) device_bytes -= block->bytes;
    munmap(block->start, block->bytes ? block->bytes : 1);
    *block = blocks[--num_blocks];
    return cudaSuccess;
}
API cudaError_t cudaMalloc(void **pointer, size_t bytes) { LOCKED(allocate(pointer, bytes, true)); }
API cudaError_t cudaFree(void *pointer) { LOCKED(release(pointer, true)); }
API cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) { (void)flags; LOCKED(allocate(pointer, bytes, false)); }
API cudaError_t cudaMallocHost(void **pointer, size_t bytes) { LOCKED(allocate(pointer, bytes, false)); }
API cudaError_t cudaFreeHost(void *pointer) { LOCKED(release(pointer, false)); }
API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = memory() - device_bytes;
    *total = memory();
    return cudaSuccess;
}
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(pointer);
    memset(attributes, 0, sizeof *attributes);
    attributes->type = !block ? cudaMemoryTypeUnregistered : block->is_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    attributes->devicePointer = block ? (void *)pointer : NULL;
    attributes->hostPointer = block && !block->is_device ? (void *)pointer : NULL;
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

static cudaError_t copy(void *to, const void *from, size_t bytes, cudaStream_t stream, bool waits) {
    struct block *source = block_of(from), *target = block_of(to);
    const char *kind = source && source->is_device ? (target && target->is_device ? "dtod" : "dtoh")
                                                   : (target && target->is_device ? "htod" : "htoh");
    if (waits) TRY(check_safe("cudaMemcpy"));
    bool is_captured = stream_of(stream)->capture;
    if (is_captured && (!source || !target))
        return invalidate(stream_of(stream)->capture, cudaErrorStreamCaptureUnsupported, "cudaMemcpyAsync", "of pageable memory");
    if (!is_captured) memmove(to, from, bytes);
    TRY(work(stream, "copy %s %zu", kind, bytes));
    if (waits) say("wait copy");
    return cudaSuccess;
}
API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    (void)kind;
    LOCKED(copy(to, from, bytes, 0, true));
}
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    (void)kind;
    LOCKED(copy(to, from, bytes, stream, false));
}
API cudaError_t cudaMemcpy2DAsync(
    void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height, enum cudaMemcpyKind kind,
    cudaStream_t stream) {
    (void)kind;
    if (!stream_of(stream)->capture)
        for (size_t row = 0; row < height; row++) memmove((char *)to + row * to_pitch, (char *)from + row * from_pitch, width);
    LOCKED(work(stream, "copy 2d %zu", width * height));
}
static cudaError_t fill(void *to, int value, size_t bytes, cudaStream_t stream) {
    if (!stream_of(stream)->capture) memset(to, value, bytes);
    return work(stream, "fill %zu", bytes);
}
API cudaError_t cudaMemset(void *to, int value, size_t bytes) { LOCKED(fill(to, value, bytes, 0)); }
API cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s) { LOCKED(fill(to, value, bytes, s)); }

/* ---- kernels of the runtime: the host's function stands for one, its name is registered at load time */

struct kernel {
    const void *host;
    const char *name;
};
static struct kernel *kernels;
static size_t num_kernels, kernel_room;

static struct kernel *kernel_slot(struct kernel *table, size_t size, const void *host) {
    size_t at = ((size_t)host >> 4) * 0x9E3779B97F4A7C15u >> 20 & (size - 1);
    while (table[at].host && table[at].host != host) at = (at + 1) & (size - 1);
    return &table[at];
}
API void __cudaRegisterFunction(
    void **handle, const char *host, char *device, const char *name, int limit, void *tid, void *bid, void *block, void *grid,
    int *size) {
    (void)handle, (void)device, (void)limit, (void)tid, (void)bid, (void)block, (void)grid, (void)size;
    pthread_mutex_lock(&lock);
    if (2 * (num_kernels + 1) > kernel_room) {
        size_t larger = kernel_room ? 2 * kernel_room : 1 << 16;
        struct kernel *table = calloc(larger, sizeof *table);
        for (size_t i = 0; i < kernel_room; i++)
            if (kernels[i].host) *kernel_slot(table, larger, kernels[i].host) = kernels[i];
        free(kernels);
        kernels = table, kernel_room = larger;
    }
    struct kernel *slot = kernel_slot(kernels, kernel_room, host);
    num_kernels += !slot->host;
    *slot = (struct kernel){host, name};
    pthread_mutex_unlock(&lock);
}
API void **__cudaRegisterFatBinary(void *binary) { return (void)binary, calloc(1, sizeof(void *)); }
API void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
API void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
API void __cudaRegisterVar(
    void **handle, char *host, char *address, const char *name, int ext, size_t size, int constant, int global) {
    (void)handle, (void)host, (void)address, (void)name, (void)ext, (void)size, (void)constant, (void)global;
}

static __thread struct {
    struct { unsigned x, y, z; } grid, block;
    size_t shared;
    cudaStream_t stream;
} pushed;
typedef struct { unsigned x, y, z; } Size3;
API unsigned __cudaPushCallConfiguration(Size3 grid, Size3 block, size_t shared, cudaStream_t stream) {
    memcpy(&pushed.grid, &grid, sizeof grid), memcpy(&pushed.block, &block, sizeof block);
    pushed.shared = shared, pushed.stream = stream;
    return 0;
}
API cudaError_t __cudaPopCallConfiguration(Size3 *grid, Size3 *block, size_t *shared, cudaStream_t *stream) {
    memcpy(grid, &pushed.grid, sizeof *grid), memcpy(block, &pushed.block, sizeof *block);
    *shared = pushed.shared, *stream = pushed.stream;
    return cudaSuccess;
}
static cudaError_t launch(const void *function, cudaStream_t stream) {
    const char *name = kernel_room ? kernel_slot(kernels, kernel_room, function)->name : NULL;
    return work(stream, "launch %s", name ? name : "unknown");
}
API cudaError_t cudaLaunchKernel(const void *f, Size3 grid, Size3 block, void **args, size_t shared, cudaStream_t stream) {
    (void)grid, (void)block, (void)args, (void)shared;
    LOCKED(launch(f, stream));
}
API cudaError_t __cudaLaunchKernel(const void *f, Size3 grid, Size3 block, void **args, size_t shared, cudaStream_t stream) {
    (void)grid, (void)block, (void)args, (void)shared;
    LOCKED(launch(f, stream));
}
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **args) {
    (void)args;
    LOCKED(launch(f, config->stream));
}
API int standin_launch(cudaStream_t stream, const char *kernel) { LOCKED(work(stream, "launch %s", kernel)); } /* libraries.c */
API cudaError_t __cudaGetKernel(void **kernel, const void *f) { return *kernel = (void *)f, cudaSuccess; }
API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *f) {
    (void)f;
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024, attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    attributes->maxDynamicSharedSizeBytes = 227 << 10;
    return cudaSuccess;
}
API cudaError_t cudaFuncSetAttribute(const void *f, int attribute, int v) { return (void)f, (void)attribute, (void)v, cudaSuccess; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int block, size_t shared) {
    return (void)f, (void)block, (void)shared, *n = 2, cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int *n, const void *f, int block, size_t shared, unsigned flags) {
    return (void)f, (void)block, (void)shared, (void)flags, *n = 2, cudaSuccess;
}

/* ---- the device: the figures of an H200's compute capability, and little memory */

static int attribute_of(int attribute) { /* numbered alike in the driver and the runtime */
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 0x7fffffff;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 227 << 10;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 228 << 10;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrMultiProcessorCount: return MULTIPROCESSORS;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrClockRate: case cudaDevAttrMemoryClockRate: return 1000000;
    case cudaDevAttrGlobalMemoryBusWidth: return 6144;
    case cudaDevAttrL2CacheSize: return 50 << 20;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrConcurrentKernels: case cudaDevAttrCooperativeLaunch: return 1;
    default: return 0;
    }
}
API cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    return (void)device, *value = attribute_of(attribute), cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    (void)device;
    memset(p, 0, sizeof *p);
    strcpy(p->name, "stand-in without a GPU");
    p->uuid.bytes[0] = 1;
    p->totalGlobalMem = memory();
    p->major = attribute_of(cudaDevAttrComputeCapabilityMajor);
    p->multiProcessorCount = MULTIPROCESSORS;
    p->warpSize = 32;
    p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = 227 << 10, p->sharedMemPerMultiprocessor = 228 << 10;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->maxBlocksPerMultiProcessor = 32;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->l2CacheSize = 50 << 20, p->memoryBusWidth = 6144;
    p->unifiedAddressing = p->concurrentKernels = p->cooperativeLaunch = 1;
    p->textureAlignment = 512;
    return cudaSuccess;
}
API cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int device) { return cudaGetDeviceProperties(p, device); }
API cudaError_t cudaGetDeviceCount(int *n) { return *n = 1, cudaSuccess; }
API cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
API cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { return (void)a, (void)b, *can = 0, cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char *id, int n, int d) { return (void)d, snprintf(id, n, "0000:00:00.0"), cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDA_VERSION, cudaSuccess; }
API cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDA_VERSION, cudaSuccess; }
API cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
API cudaError_t cudaPeekAtLastError(void) { return last_error; }
API const char *cudaGetErrorName(cudaError_t error) { return error ? "error of the stand-in" : "cudaSuccess"; }
API const char *cudaGetErrorString(cudaError_t error) {
    static __thread char text[64];
    snprintf(text, sizeof text, "CUDA's error %d", error);
    return text;
}
API cudaError_t cudaProfilerStart(void) { return say("mark start"), cudaSuccess; }
API cudaError_t cudaProfilerStop(void) { return say("mark stop"), cudaSuccess; }
API cudaError_t cudaGetDriverEntryPointByVersion(
    const char *symbol, void **function, unsigned version, unsigned long long flags,
    enum cudaDriverEntryPointQueryResult *status) {
    (void)version, (void)flags;
    *function = dlsym(RTLD_DEFAULT, symbol);
    if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

/* ---- the driver: what Triton needs */

struct CUfunc_st {
    char name[256];
};
API CUresult cuInit(unsigned flags) { return (void)flags, CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int *version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int *n) { return *n = 1, CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice *device, int ordinal) { return (void)ordinal, *device = 0, CUDA_SUCCESS; }
API CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    return (void)device, *value = attribute_of((int)attribute), CUDA_SUCCESS;
}
API CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { return (void)d, *c = (CUcontext)&legacy, CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) {
    return (void)d, *flags = 0, *active = 1, CUDA_SUCCESS;
}
API CUresult cuCtxGetCurrent(CUcontext *c) { return *c = (CUcontext)&legacy, CUDA_SUCCESS; }
API CUresult cuCtxSetCurrent(CUcontext c) { return (void)c, CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice *device) { return *device = 0, CUDA_SUCCESS; }
API CUresult cuCtxGetLimit(size_t *value, CUlimit limit) { return (void)limit, *value = 0, CUDA_SUCCESS; }
API CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return (void)limit, (void)value, CUDA_SUCCESS; }
API CUresult cuGetErrorString(CUresult error, const char **text) { return *text = cudaGetErrorString((cudaError_t)error), CUDA_SUCCESS; }
API CUresult cuModuleLoadData(CUmodule *module, const void *image) { return *module = (CUmodule)image, CUDA_SUCCESS; }
API CUresult cuModuleUnload(CUmodule module) { return (void)module, CUDA_SUCCESS; }
API CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    (void)module;
    *function = calloc(1, sizeof **function);
    snprintf((*function)->name, sizeof (*function)->name, "%s", name);
    return CUDA_SUCCESS;
}
API CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
    (void)f;
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 32 : 0;
    return CUDA_SUCCESS;
}
API CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) { return (void)f, (void)a, (void)v, CUDA_SUCCESS; }
API CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) { return (void)f, (void)c, CUDA_SUCCESS; }
API CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of((void *)pointer);
    pthread_mutex_unlock(&lock);
    if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER || !block || !block->is_device) return CUDA_ERROR_INVALID_VALUE;
    *(CUdeviceptr *)value = pointer;
    return CUDA_SUCCESS;
}
API CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    return (CUresult)cudaStreamIsCapturing(stream, (enum cudaStreamCaptureStatus *)status);
}
API CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction f, void **args, void **extra) {
    (void)args, (void)extra;
    pthread_mutex_lock(&lock);
    cudaError_t error = work(config->hStream, "launch %s", f->name);
    pthread_mutex_unlock(&lock);
    return (CUresult)error;
}
API CUresult cuLaunchKernel(
    CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, CUstream stream,
    void **args, void **extra) {
    (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)args, (void)extra;
    pthread_mutex_lock(&lock);
    cudaError_t error = work(stream, "launch %s", f->name);
    pthread_mutex_unlock(&lock);
    return (CUresult)error;
}
