"""Pure wire forms: how Ollama, OpenAI and Anthropic bodies look."""
