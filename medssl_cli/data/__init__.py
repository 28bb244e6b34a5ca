"""From a cache to batches: examples, what is sampled of them, random changes on the device, views of methods."""
