"""Where memory for a call cannot be had it is a MemoryError, not another number.

A process (this file, run as a script) forbids itself more memory than it has, and then makes calls that need some.
"""

import json
import sys

import numpy as np
import processes
import pytest

import nbbce

CASES = {
    "serial": lambda x, w: nbbce.binary_cross_entropy(x[:, :32], x[:, :32], w[:, :32], pos_weight=w[:, :32]),
    "parallel": lambda x, w: nbbce.binary_cross_entropy(x, x, w, pos_weight=w),
    "columns": lambda x, w: nbbce.binary_cross_entropy(x, x, w, pos_weight=w, axis=0),
    "rows": lambda x, w: nbbce.binary_cross_entropy(x, x, w, pos_weight=w, axis=1),
    "unchecked": lambda x, w: nbbce.binary_cross_entropy(x, x, w, pos_weight=w, validate=False),
}
# Of 1/2 for 1/2, with the weight 2 and 2 for the positive share: 2 (log 2 + 2 log 2) / 2.
LOSS = 3 * np.log(2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux holds a process to its address space")
@pytest.mark.parametrize("threads", [1, 2])
def test_call_that_gets_no_memory_is_a_memory_error_and_the_next_one_is_right(threads):
    answers = processes.printed_by(__file__, NUMBA_NUM_THREADS=str(threads))
    assert set(answers) == set(CASES)
    for name, outcome in answers.items():
        assert outcome == {"before": "right", "without": "MemoryError", "after": "right"}, name


def outcome_of(call, arrays):
    try:
        return "right" if np.allclose(call(*arrays), LOSS, rtol=1e-12) else "wrong"
    except (MemoryError, ValueError) as error:
        return type(error).__name__


if __name__ == "__main__":
    import resource

    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    arrays = [np.full((400, 3000), number).T for number in (0.5, 2.0)]
    results = {name: {"before": outcome_of(call, arrays)} for name, call in CASES.items()}
    for name, call in CASES.items():
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), unlimited[1]))
        # What the allocator keeps free is taken too.
        held, size = [], 2**22
        while size >= 2**14:
            try:
                held.append(np.empty(size, np.uint8))
            except MemoryError:
                size //= 2
        results[name]["without"] = outcome_of(call, arrays)
        held.clear()
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        results[name]["after"] = outcome_of(call, arrays)
    print(json.dumps(results))
