"""Models of a fake Ollama server and the documents that describe them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from conformance.fakes.names import Name, parse_name

DEFAULT_MODIFIED = "2026-11-21T11:58:56.190013695Z"


def derived_digest(text: str) -> str:
    """A stable manifest digest: equal names on two fakes are the same model."""
    return hashlib.sha256(f"manifest of {text}".encode()).hexdigest()


@dataclass(frozen=True)
class FakeModel:
    """A model as one server holds it; a frozen value, replaced when anything changes.

    Args:
        digest: 64 hex digits; derived from the canonical name when empty.
        show_extra: top-level keys laid over the show document.
        verbose_tokens: length of the tokenizer arrays in a verbose show (150000 gives megabytes).
        remote_host: set for a stub that Ollama would run elsewhere.
    """

    name: str
    digest: str = ""
    size: int = 117911
    modified_at: str = DEFAULT_MODIFIED
    family: str = "llama"
    parameter_size: str = "28K"
    quantization_level: str = "F32"
    capabilities: Sequence[str] = ("completion",)
    context_length: int = 256
    embedding_length: int = 32
    system: str = ""
    parameters: Sequence[tuple[str, Any]] = ()
    license: str = ""
    remote_host: str | None = None
    remote_model: str | None = None
    show_extra: Mapping[str, Any] = field(default_factory=dict)
    verbose_tokens: int = 269

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", derived_digest(self.canonical.key))

    @property
    def canonical(self) -> Name:
        return parse_name(self.name)

    @property
    def shortest(self) -> str:
        return self.canonical.shortest

    @property
    def modified_unix(self) -> int:
        return int(datetime.fromisoformat(self.modified_at[:19] + "+00:00").timestamp())


def as_model(model: str | FakeModel) -> FakeModel:
    return FakeModel(model) if isinstance(model, str) else model


def details(model: FakeModel, quantization: str | None = None) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": quantization or model.quantization_level,
    }


def remote_fields(model: FakeModel) -> dict[str, Any]:
    if model.remote_host is None:
        return {}
    return {
        "remote_model": model.remote_model or model.canonical.model,
        "remote_host": model.remote_host,
    }


def tags_item(model: FakeModel) -> dict[str, Any]:
    lengths = {
        "context_length": model.context_length,
        "embedding_length": model.embedding_length,
    }
    return {
        "name": model.shortest,
        "model": model.shortest,
        **remote_fields(model),
        "modified_at": model.modified_at,
        "size": model.size,
        "digest": model.digest,
        "details": details(model) | lengths,
        "capabilities": list(model.capabilities),
    }


def ps_item(model: FakeModel, expires_at: str) -> dict[str, Any]:
    return {
        "name": model.shortest,
        "model": model.shortest,
        "size": model.size,
        "digest": model.digest,
        "details": details(model, "unknown"),
        "expires_at": expires_at,
        "size_vram": model.size,
        "context_length": model.context_length,
    }


def openai_item(model: FakeModel, name: str | None = None) -> dict[str, Any]:
    return {
        "id": name or model.shortest,
        "object": "model",
        "created": model.modified_unix,
        "owned_by": model.canonical.namespace,
    }


def tokenizer(model: FakeModel, verbose: bool) -> dict[str, Any]:
    """The tokenizer arrays; Ollama sends null for them unless the request says verbose."""
    count = model.verbose_tokens
    return {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": [0] * count if verbose else None,
        "tokenizer.ggml.token_type": [1] * count if verbose else None,
        "tokenizer.ggml.tokens": [f"<token {n}>" for n in range(count)] if verbose else None,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def model_info(model: FakeModel, verbose: bool) -> dict[str, Any]:
    family = model.family
    return {
        "general.architecture": family,
        "general.file_type": 0,
        "general.parameter_count": 27552,
        f"{family}.attention.head_count": 2,
        f"{family}.attention.head_count_kv": 2,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-05,
        f"{family}.block_count": 1,
        f"{family}.context_length": model.context_length,
        f"{family}.embedding_length": model.embedding_length,
        f"{family}.feed_forward_length": 64,
        f"{family}.rope.dimension_count": 16,
        f"{family}.vocab_size": model.verbose_tokens,
        **tokenizer(model, verbose),
    }


def go_value(value: Any) -> str:
    """A parameter's value as Go's %#v prints it in `parameters`."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def modelfile(model: FakeModel, system: str, options: Mapping[str, Any], store: str) -> str:
    lines = [
        '# Modelfile generated by "ollama show"',
        "# To build a new Modelfile based on this, replace FROM with:",
        f"# FROM {model.shortest}",
        "",
        f"FROM {store}/blobs/sha256-{model.digest}",
        "TEMPLATE {{ .Prompt }}",
    ]
    if system:
        lines.append(f"SYSTEM {system}")
    pairs = [*model.parameters, *options.items()]
    return "\n".join([*lines, *(f"PARAMETER {key} {value}" for key, value in pairs)]) + "\n"


@dataclass(frozen=True)
class ShowAsk:
    """The fields of a show request that change its document."""

    verbose: bool = False
    system: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def show_document(model: FakeModel, ask: ShowAsk, store: str) -> dict[str, Any]:
    """The show document in Ollama's key order; absent where Ollama omits empty values."""
    system = ask.system or model.system
    listed = "\n".join(f"{key:<30} {go_value(value)}" for key, value in model.parameters)
    document = {
        "license": model.license,
        "modelfile": modelfile(model, system, ask.options, store),
        "parameters": listed,
        "template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        "system": system,
        "details": details(model, "unknown"),
        **remote_fields(model),
        "model_info": model_info(model, ask.verbose),
        "tensors": [
            {"name": "token_embd.weight", "type": "F32", "shape": [32, 269]},
            {"name": "output_norm.weight", "type": "F32", "shape": [32]},
        ],
        "capabilities": list(model.capabilities),
        "modified_at": model.modified_at,
    }
    kept = {key: value for key, value in document.items() if value != ""}
    return kept | dict(model.show_extra)
