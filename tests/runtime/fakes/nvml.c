/* A driver with two GPUs: the second measures no power. FAKE_NVML_FAIL names a function that fails. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, GPU_IS_LOST = 15 };
static const char *bus_ids[] = {"00000000:3B:00.0", "00000000:AF:00.0"};
static int open_sessions = 0;
typedef struct { char legacy[16]; unsigned int numbers[5]; char bus_id[32]; } Pci;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Utilization;

static int status(const char *name) {
    const char *failing = getenv("FAKE_NVML_FAIL");
    return failing && !strcmp(failing, name) ? GPU_IS_LOST : SUCCESS;
}
static int index_of(void *device) { return (int)((size_t)device - 1); }

int fake_open_sessions(void) { return open_sessions; }
int nvmlInitWithFlags(unsigned int flags) { (void)flags; open_sessions++; return status("nvmlInitWithFlags"); }
int nvmlShutdown(void) { open_sessions--; return SUCCESS; }
int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
    snprintf(text, size, "580.65.06");
    return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device) {
    for (int index = 0; index < 2; index++)
        if (!strcmp(bus_id, bus_ids[index]) || !strcmp(bus_id, bus_ids[index] + 4))
            return nvmlDeviceGetHandleByIndex_v2((unsigned)index, device);
    return NOT_FOUND;
}
int nvmlDeviceGetName(void *device, char *text, unsigned int size) {
    snprintf(text, size, index_of(device) ? "NVIDIA T400" : "NVIDIA RTX A4000");
    return SUCCESS;
}
int nvmlDeviceGetPciInfo_v3(void *device, Pci *info) {
    memset(info, 0, sizeof *info);
    strcpy(info->bus_id, bus_ids[index_of(device)]);
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    *memory = (Memory){16ull << 30, 10ull << 30, 6ull << 30};
    return status("nvmlDeviceGetMemoryInfo");
}
int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) {
    *milliwatts = 41250;
    return index_of(device) ? NOT_SUPPORTED : SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    *millijoules = 9876543210ull;
    return index_of(device) ? NOT_SUPPORTED : SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates) {
    *rates = (Utilization){73, 21};
    return SUCCESS;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
    *celsius = 54;
    return sensor == 0 ? SUCCESS : INVALID_ARGUMENT;
}
int nvmlDeviceGetClockInfo(void *device, int clock, unsigned int *mhz) {
    (void)device;
    *mhz = 1560;
    return clock == 1 ? SUCCESS : INVALID_ARGUMENT;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    *reasons = index_of(device) ? 0x20 : 0x1;
    return SUCCESS;
}
