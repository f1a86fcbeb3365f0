"""How a peer of `bench peers` answers. It needs the standard library alone, so that any interpreter can import it."""

import json
import sys
import time
from collections.abc import Callable

Steps = Callable[[int], tuple[int, float]]
"""Makes at least so many steps; gives how many they were, and their seconds."""


def answer(version: str, steps_of: Callable[[int], Steps], *, warm_up_steps: int) -> None:
    """Answer each line of input, how many steps of which batch size, with a JSON object, until the input ends.

    `steps_of` a batch size begins with these steps, which are not counted.
    """
    print(json.dumps({"version": version}), flush=True)
    batch_size = 0
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["batch_size"] != batch_size:
            batch_size = asked["batch_size"]
            steps = steps_of(batch_size)
            steps(warm_up_steps)
        used = time.process_time()
        done, seconds = steps(asked["num_steps"])
        found = {"steps": done, "seconds": seconds, "processor_seconds": time.process_time() - used}
        print(json.dumps(found), flush=True)
