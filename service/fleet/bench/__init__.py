"""``vbon fleet bench``: the same service with and without Ray, over engines that do no work."""
