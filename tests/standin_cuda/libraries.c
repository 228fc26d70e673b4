/* cuBLAS, cuBLASLt, cuDNN and CUPTI for the stand-in of runtime.c: a product or a convolution is one launch, which computes
   nothing.

   One shared library is made for each, with the functions below that belong to it (IS_CUBLAS, IS_CUBLASLT, IS_CUDNN; none for CUPTI, so that a profiler sees nothing) and a stub
   that says "success" for every other function that PyTorch asks of it. */

#include <driver_types.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))

int standin_launch(cudaStream_t stream, const char *kernel); /* runtime.c */

static __thread cudaStream_t current; /* of the handle that this thread uses */

/* What the stubs call. */
int standin_library_call(const char *call) {
    static const char *launching[] = {"gemm", "Gemm", "gemv", "dot", "cudnnBatchNormalization", "cudnnPooling"};
    for (size_t i = 0; i < sizeof launching / sizeof *launching; i++)
        if (strstr(call, launching[i])) return standin_launch(current, call) ? 8 : 0; /* 8: an error in both libraries */
    return 0;
}

#ifdef IS_CUBLAS
API int cublasSetStream_v2(void *handle, cudaStream_t stream) { return (void)handle, current = stream, 0; }
API int cublasCreate_v2(void **handle) { return *handle = malloc(1), 0; }
#endif

#ifdef IS_CUBLASLT
struct result { /* as cublasLt.h has it, which needs headers that not every PyTorch brings */
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
};
API int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted, struct result results[],
    int *found) {
    (void)handle, (void)product, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)wanted;
    memset(results, 0, sizeof *results);
    return *found = 1, 0;
}
API int cublasLtMatmul(
    void *handle, void *product, const void *alpha, const void *a, void *a_layout, const void *b, void *b_layout,
    const void *beta, const void *c, void *c_layout, void *d, void *d_layout, const void *algorithm, void *workspace,
    size_t bytes, cudaStream_t stream) {
    (void)handle, (void)product, (void)alpha, (void)a, (void)a_layout, (void)b, (void)b_layout, (void)beta, (void)c;
    (void)c_layout, (void)d, (void)d_layout, (void)algorithm, (void)workspace, (void)bytes;
    return standin_launch(stream, "cublasLtMatmul") ? 8 : 0;
}
#endif

#ifdef IS_CUDNN
#include <cudnn.h>
API size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
API size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }
API cudnnStatus_t cudnnGetProperty(libraryPropertyType type, int *value) {
    *value = type == MAJOR_VERSION ? CUDNN_MAJOR : type == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
    return CUDNN_STATUS_SUCCESS;
}
API const char *cudnnGetErrorString(cudnnStatus_t status) { return status ? "an error of the stand-in" : "success"; }
API void cudnnGetLastErrorString(char *message, size_t size) { strncpy(message, "none", size); }
API cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) { return *handle = malloc(1), CUDNN_STATUS_SUCCESS; }
API cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    return (void)handle, current = stream, CUDNN_STATUS_SUCCESS;
}
API cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
    return (void)handle, *stream = current, CUDNN_STATUS_SUCCESS;
}
API cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t ops, const cudnnTensorDescriptor_t x,
    const cudnnTensorDescriptor_t z, const cudnnTensorDescriptor_t y, const cudnnTensorDescriptor_t scales,
    const cudnnActivationDescriptor_t activation, size_t *bytes) {
    (void)handle, (void)mode, (void)ops, (void)x, (void)z, (void)y, (void)scales, (void)activation;
    return *bytes = 0, CUDNN_STATUS_SUCCESS;
}
API cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t ops, const cudnnTensorDescriptor_t x,
    const cudnnTensorDescriptor_t y, const cudnnTensorDescriptor_t dy, const cudnnTensorDescriptor_t dz,
    const cudnnTensorDescriptor_t dx, const cudnnTensorDescriptor_t scales, const cudnnActivationDescriptor_t activation,
    size_t *bytes) {
    (void)handle, (void)mode, (void)ops, (void)x, (void)y, (void)dy, (void)dz, (void)dx, (void)scales, (void)activation;
    return *bytes = 0, CUDNN_STATUS_SUCCESS;
}
API cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t ops, const cudnnActivationDescriptor_t activation,
    const cudnnTensorDescriptor_t x, size_t *bytes) {
    (void)handle, (void)mode, (void)ops, (void)activation, (void)x;
    return *bytes = 0, CUDNN_STATUS_SUCCESS;
}
API cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *descriptor) {
    *descriptor = calloc(1, sizeof(cudnnBackendDescriptorType_t));
    **(cudnnBackendDescriptorType_t **)descriptor = type;
    return CUDNN_STATUS_SUCCESS;
}
API cudnnStatus_t cudnnBackendGetAttribute(
    const cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t wanted,
    int64_t *found, void *values) {
    (void)descriptor, (void)type;
    int64_t count = 1;
    switch (name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS: case CUDNN_ATTR_ENGINECFG_ENGINE: break; /* one engine, any */
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE: case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        if (values && wanted) *(int64_t *)values = 0;
        break;
    default: count = 0;
    }
    if (found) *found = count;
    return CUDNN_STATUS_SUCCESS;
}
API cudnnStatus_t cudnnBackendExecute(
    cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t variables) {
    (void)handle, (void)plan, (void)variables;
    return standin_launch(current, "cudnnBackendExecute") ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}
#endif
