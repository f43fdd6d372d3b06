"""Finds the adapter that LLMQUEUE_BACKEND names."""

from __future__ import annotations

import importlib

from llmqueue.backend.models_backend import Fields, ModelsBackend
from llmqueue.backend.openai import OpenAIBackend
from llmqueue.backend.protocol import Backend
from llmqueue.errors import UsageError


def load_backend(name: str, base_url: str, secret: str | None, fields: Fields) -> Backend:
    """Returns the adapter `models`, `openai`, or what `package.module:factory` makes of (base_url, secret)."""
    if name == "models":
        return ModelsBackend(base_url, secret, fields)
    if name == "openai":
        return OpenAIBackend(base_url, secret)
    module_name, _, factory_name = name.partition(":")
    if not factory_name:
        raise UsageError(f"LLMQUEUE_BACKEND is {name!r}; it takes models, openai, or package.module:factory.")
    try:
        backend: Backend = getattr(importlib.import_module(module_name), factory_name)(base_url, secret)
    except Exception as error:
        # whatever an import or a factory of somebody's raises is said in one line, without a traceback
        raise UsageError(f"LLMQUEUE_BACKEND={name}: {type(error).__name__}: {error}") from error
    return backend
