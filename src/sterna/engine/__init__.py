"""Requests in, token streams out: pages, scheduler, sampler and the engine's thread."""
