"""Stand-ins for what Caravan talks to: Ollama servers, broken peers, clients, processes."""
