/* A driver that has one entry: cuda.bindings asks it for every other, and tests/ptx_driver.py, in Python, gives them. */
typedef void *(*function_of)(const char *name);
static function_of found;

void set_functions(function_of given) { found = given; }

int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    (void)version, (void)flags;
    *function = found ? found(name) : 0;
    if (status) *status = *function ? 0 : 1;
    return *function ? 0 : 500; /* CUDA_ERROR_NOT_FOUND */
}

/* For who measures the host: a launch that does nothing, and the current device, which is the first. */
int launch_nothing(void) { return 0; }

int first_device(int *device) {
    *device = 0;
    return 0;
}
