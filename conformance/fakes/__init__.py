"""Scripted Ollama servers that misbehave on demand, and a client that sees every byte."""
